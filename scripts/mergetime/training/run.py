"""One training run with transformers' Trainer: a validation curve, what may become an expert, resumable at any step."""

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from mergetime.data.encoding import IGNORED, Encoded
from mergetime.errors import UserError
from mergetime.provenance import write_atomically
from mergetime.training import loss, memory
from mergetime.training.durations import Durations
from mergetime.training.meter import Clock, Energy, Meter
from mergetime.training.schedule import Schedule
from mergetime.training.signals import Stop, Stopped

_COMPLETE = "complete"
_METER = "meter.json"
_FIT = "fit.json"
_LINE_EVERY = 60.0

Model = PeftModel | PreTrainedModel


@dataclass(frozen=True)
class Plan:
    """What a run needs to know; ``micro_batch_size`` and ``gradient_checkpointing`` are None to fit the hardware."""

    schedule: Schedule
    durations: Durations
    batch_size: int
    micro_batch_size: int | None
    gradient_checkpointing: bool | None
    group_by_length: bool
    seed: int
    bfloat16: bool


@dataclass(frozen=True)
class Progress:
    """Where a finished run ended, what it counted, and how it used the hardware."""

    last_step: int
    meter: Meter
    fit: memory.Fit


class _LengthGrouped(LengthGroupedSampler):
    """transformers' own order, drawn from the seed and the epoch, so that a resumed epoch has it too."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return iter(super().__iter__())


class _Trainer(Trainer):
    """Trainer with the loss of :mod:`mergetime.training.loss`, and counts of what it trains on."""

    loss_is_scaled_for_ga = True

    def __init__(self, plan: Plan, meter: Meter, **given: Any) -> None:
        super().__init__(**given)
        # The loss is this class's own, whatever the model's forward takes.
        self.model_accepts_loss_kwargs = True
        self.plan, self.meter, self.clock, self.energy = plan, meter, Clock(), Energy()
        self.plain = loss.head_is_plain(given["model"])
        # Counted on the device, where reading every step would make the processor wait.
        self.counts = torch.tensor([meter.loss, meter.tokens], dtype=torch.float64, device=self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the mean loss over the response tokens of the effective batch."""
        assert num_items_in_batch is not None
        with self.accelerator.autocast():
            return loss.summed_loss(model, inputs, plain=self.plain) / num_items_in_batch

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """A micro-batch, forward and backward."""
        value: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        mask = inputs["attention_mask"]
        self.counts += torch.stack([value.detach().double(), mask.sum().to(self.counts)])
        self.meter.positions += mask.numel()
        return value

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Of each example, float64: the loss summed and the tokens that are right; and its response tokens."""
        batch = self._prepare_inputs(inputs)
        with self.accelerator.autocast():
            found = loss.predicted(model, batch, plain=self.plain)
        sums = torch.zeros(len(batch["labels"]), 3, dtype=torch.float64, device=found.losses.device)
        values = torch.stack([found.losses.double(), found.right.double(), torch.ones_like(found.losses).double()], 1)
        sums.index_add_(0, found.example, values)
        return None, sums[:, :2], sums[:, 2:]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, and count the time before it as training."""
        self.read()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def read(self) -> None:
        """Bring the meter up to date; what passed since the last reading was training."""
        self.meter.train(seconds := self.clock.lap())
        self.meter.seconds += seconds
        self.meter.use(self.energy.read())
        summed, tokens = self.counts.tolist()
        self.meter.window_tokens += int(tokens) - self.meter.tokens
        self.meter.loss, self.meter.tokens = summed, int(tokens)

    def read_validation(self) -> None:
        """Bring the meter up to date; what passed since the last reading was a validation."""
        seconds = self.clock.lap()
        self.meter.validation_seconds += seconds
        self.meter.seconds += seconds
        self.meter.use(self.energy.read())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        examples: Any = train_dataset or self.train_dataset
        if not self.plan.group_by_length:
            return RandomSampler(examples)
        return _LengthGrouped(self.plan.batch_size, [len(example.ids) for example in examples], self.plan.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)


class _Flow(TrainerCallback):
    """What happens at every step: its rate, experts, rows, checkpoints, and the end."""

    def __init__(self, trainer: _Trainer, plan: Plan, work: Path, save: Callable[[Path], None], stop: Stop):
        self.trainer, self.plan, self.work, self.stop = trainer, plan, work, stop
        self.save = save
        self.gradient_norm: float | None = None
        self.rate: float | None = None
        self.line = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Setting up is no training.
        self.trainer.clock.lap()
        self.trainer.energy.read()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        self.rate = self.plan.schedule.rate(state.global_step, self.trainer.meter.curve)
        for group in given["optimizer"].param_groups:
            group["lr"] = self.rate
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step, durations, meter = state.global_step, self.plan.durations, self.trainer.meter
        meter.window_steps += 1
        if durations.may_be_kept(step, meter.curve):
            self.save(step_folder(self.work, step))
        # The gradient's norm comes with the log.
        control.should_log = control.should_evaluate = durations.validates(step)
        if self.stop.name:
            control.should_save = control.should_training_stop = True
        self._say(step)
        return control

    def _say(self, step: int) -> None:
        if sys.stderr.isatty() or time.monotonic() - self.line < _LINE_EVERY:
            return
        self.line = time.monotonic()
        self.trainer.read()
        meter = self.trainer.meter
        print(
            f"step {step} of at most {self.plan.durations.last_step}, loss {meter.loss / meter.window_steps:.4f}, "
            f"validation loss {meter.curve[-1].loss:.4f}, {meter.tokens / meter.training_seconds:.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if logs and "grad_norm" in logs:
            self.gradient_norm = float(logs["grad_norm"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> TrainerControl:
        self.trainer.read_validation()
        validation = {name: metrics[f"eval_{name}"] for name in ("loss", "accuracy")}
        self.trainer.meter.row(state.global_step, validation, self.gradient_norm, self.rate)
        self.trainer.counts[0] = 0.0
        if self.plan.durations.over(self.trainer.meter.curve):
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        meter, newest = self.trainer.meter, checkpoint_folder(self.work, state.global_step)
        if meter.rows[-1]["step"] == state.global_step:
            # Writing a checkpoint is no training, and a stop comes without a validation.
            meter.seconds += self.trainer.clock.lap()
        else:
            self.trainer.read()
        meter.save(newest / _METER)
        (newest / _COMPLETE).touch()
        # What goes now is needed by no run that starts from this checkpoint.
        for folder in self.work.glob("checkpoint-*"):
            if folder != newest:
                shutil.rmtree(folder)
        for folder in self.work.glob("step-*"):
            if _number(folder) <= state.global_step and not self.plan.durations.may_be_kept(
                _number(folder), meter.curve
            ):
                shutil.rmtree(folder)


def step_folder(work: Path, step: int) -> Path:
    """Where a run keeps the weights of ``step``."""
    return work / f"step-{step}"


def checkpoint_folder(work: Path, step: int) -> Path:
    """Where a run writes what it needs to go on after ``step``."""
    return work / f"checkpoint-{step}"


def _number(folder: Path) -> int:
    return int(folder.name.rsplit("-", 1)[1])


def train(
    build: Callable[[], Model],
    train_set: list[Encoded],
    validation: list[Encoded],
    plan: Plan,
    work: Path,
    save: Callable[[Model, Path], None],
    stop: Stop,
) -> Progress:
    """Train, from the newest whole checkpoint in ``work`` if there is one.

    The same inputs end in the same bytes, however often the run was stopped or killed: dropout is off, the order of
    the data comes from the seed and the epoch, and optimizer, counts and curve are part of a checkpoint.

    Args:
        build: makes the model as it is before the first step.
        train_set: examples to train on.
        validation: examples that determine the curve.
        plan: how to train.
        work: folder of checkpoints and of :func:`step_folder`.
        save: writes a model's trained weights to a folder.
        stop: whether somebody asked for a stop.

    Raises:
        Stopped: at the end of a step, after a checkpoint, because ``stop`` said so.
        UserError: if the GPU has too little memory for one example.
    """
    fit = memory.Fit(**json.loads((work / _FIT).read_text())) if (work / _FIT).exists() else None
    resumed = True
    while True:
        model: Model | None = None
        try:
            model = build()
            fit = fit or _fit(model, train_set, plan)
            write_atomically(work / _FIT, json.dumps(asdict(fit)))
            return _attempt(model, train_set, validation, plan, fit, work, save, stop, resumed=resumed)
        except torch.cuda.OutOfMemoryError as error:
            fit = memory.smaller(fit, plan.batch_size) if fit else None
            if fit is None:
                raise UserError(
                    "the GPU's memory does not hold the model and one example of "
                    f"{max(len(example.ids) for example in train_set)} tokens; set gradient_checkpointing: true, "
                    "mode: qlora, or a lower max_tokens"
                ) from error
            print(f"out of GPU memory; going on with micro-batches of {fit.micro_batch_size}", file=sys.stderr)
        resumed = False
        # Outside of the handler, whose traceback holds on to the tensors.
        del model
        gc.collect()
        torch.cuda.empty_cache()


def _fit(model: Model, examples: list[Encoded], plan: Plan) -> memory.Fit:
    load = memory.load_of(
        model,
        tokens=max(len(example.ids) for example in examples),
        responses=max(len(example.ids) - example.prompt for example in examples),
        bfloat16=plan.bfloat16,
    )
    return memory.choose(
        load,
        plan.batch_size,
        memory.available_bytes(),
        micro_batch_size=plan.micro_batch_size,
        checkpointing=plan.gradient_checkpointing,
    )


def _attempt(
    model: Model,
    train_set: list[Encoded],
    validation: list[Encoded],
    plan: Plan,
    fit: memory.Fit,
    work: Path,
    save: Callable[[Model, Path], None],
    stop: Stop,
    *,
    resumed: bool,
) -> Progress:
    checkpoint = _newest(work)
    meter = Meter()
    if checkpoint is not None:
        meter = Meter.load(checkpoint / _METER)
        meter.stops += resumed
        if _ended(_number(checkpoint), plan, meter):
            return Progress(_number(checkpoint), meter, fit)
    trainer = _Trainer(
        plan,
        meter,
        model=model,
        args=_arguments(plan, fit, work, fresh=checkpoint is None),
        train_dataset=train_set,
        # Sorted, for batches without padding.
        eval_dataset=sorted(validation, key=lambda example: len(example.ids), reverse=True),
        data_collator=lambda batch: collate(batch, model.config.pad_token_id or 0),
        compute_metrics=_means,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Flow(trainer, plan, work, partial(save, model), stop))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    if not _ended(step, plan, meter):
        raise Stopped(stop.name or "nobody", step)
    return Progress(step, meter, fit)


def _ended(step: int, plan: Plan, meter: Meter) -> bool:
    return step >= plan.durations.last_step or plan.durations.over(meter.curve)


def _arguments(plan: Plan, fit: memory.Fit, work: Path, *, fresh: bool) -> TrainingArguments:
    every = plan.durations.every
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=fit.micro_batch_size,
        gradient_accumulation_steps=plan.batch_size // fit.micro_batch_size,
        per_device_eval_batch_size=4 * fit.micro_batch_size,
        max_steps=plan.durations.last_step,
        learning_rate=plan.schedule.peak,
        # The rate of each step is set where it begins.
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        bf16=plan.bfloat16,
        activation_checkpointing=fit.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if fit.checkpointing else None,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=fresh,
        logging_strategy="steps",
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to=[],
        seed=plan.seed,
        data_seed=plan.seed,
    )
    # With several GPUs in sight, Trainer would spread each batch over them.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _newest(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=_number)
    for folder in checkpoints:
        if not (folder / _COMPLETE).exists():
            shutil.rmtree(folder)
    whole = [folder for folder in checkpoints if folder.exists()]
    return whole[-1] if whole else None


def collate(batch: list[Encoded], padding: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids, attention_mask, labels, each int64 [examples, longest]."""
    longest = max(len(example.ids) for example in batch)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": pad([example.ids for example in batch], padding),
        "attention_mask": pad([[1] * len(example.ids) for example in batch], 0),
        "labels": pad([example.labels for example in batch], IGNORED),
    }


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the loss over an example's response tokens, and their number: float32 [examples, 2], in nats."""
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1).float()], dim=1)


def _means(prediction: EvalPrediction) -> dict[str, float]:
    # Over tokens, not over batches: the mean of batch means would move with the batch size.
    sums = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    count = np.asarray(prediction.label_ids, dtype=np.float64).sum()
    return {"loss": float(sums[0] / count), "accuracy": float(sums[1] / count)}
