"""One training run with transformers' Trainer: a validation curve, what may become an expert, resumable at any step."""

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mergetime.core.atomic import write_atomically
from mergetime.core.errors import UserError
from mergetime.modalities.learning import Learning
from mergetime.training import memory
from mergetime.training.folders import checkpoint_folder, complete, newest, number, step_folder
from mergetime.training.meter import Meter
from mergetime.training.signals import Stop, Stopped
from mergetime.training.trainer import LossTrainer, Model, Plan, arguments, hardware, means

_METER = "meter.json"
_FIT = "fit.json"
_LINE_EVERY = 60.0


@dataclass(frozen=True)
class Progress:
    """Where a finished run ended, what it counted, and how it used the hardware."""

    last_step: int
    meter: Meter
    fit: memory.Fit


class _Flow(TrainerCallback):
    """What happens at every step: its rate, experts, rows, checkpoints, and the end."""

    def __init__(self, trainer: LossTrainer, plan: Plan, work: Path, save: Callable[[Path], None], stop: Stop):
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
            f"validation loss {meter.curve[-1].loss:.4f}, {meter.tokens_per_second or 0:.0f} tokens/s",
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
        meter, checkpoint = self.trainer.meter, checkpoint_folder(self.work, state.global_step)
        if meter.rows[-1]["step"] == state.global_step:
            # Writing a checkpoint is no training, and a stop comes without a validation.
            meter.seconds += self.trainer.clock.lap()
        else:
            self.trainer.read()
        meter.save(checkpoint / _METER)
        # What goes now is needed by no run that starts from this checkpoint.
        complete(checkpoint)
        for folder in self.work.glob("step-*"):
            if number(folder) <= state.global_step and not self.plan.durations.may_be_kept(number(folder), meter.curve):
                shutil.rmtree(folder)


def train(
    learning: Learning,
    build: Callable[[], Model],
    train_set: list[Any],
    validation: list[Any],
    plan: Plan,
    work: Path,
    save: Callable[[Model, Path], None],
    stop: Stop,
) -> Progress:
    """Train, from the newest whole checkpoint in ``work`` if there is one.

    The same inputs end in the same bytes, however often the run was stopped or killed: dropout is off, the order of
    the data comes from the seed and the epoch, and optimizer, counts and curve are part of a checkpoint.

    Args:
        learning: of the modality of model and examples.
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
            fit = fit or _fit(learning, model, train_set, plan)
            write_atomically(work / _FIT, json.dumps(asdict(fit)))
            return _attempt(learning, model, train_set, validation, plan, fit, work, save, stop, resumed=resumed)
        except torch.cuda.OutOfMemoryError as error:
            fit = memory.smaller(fit, plan.training.batch_size) if fit else None
            if fit is None:
                longest = max(example.length for example in train_set)
                raise UserError(
                    f"the GPU's memory does not hold the model and one example of {longest} {learning.LENGTH}; "
                    "set gradient_checkpointing: true, mode: qlora, or a lower max_tokens"
                ) from error
            print(f"out of GPU memory; going on with micro-batches of {fit.micro_batch_size}", file=sys.stderr)
        resumed = False
        # Outside of the handler, whose traceback holds on to the tensors.
        del model
        gc.collect()
        torch.cuda.empty_cache()


def _fit(learning: Learning, model: Model, examples: list[Any], plan: Plan) -> memory.Fit:
    return memory.choose(
        memory.load_of(learning, model, examples, bfloat16=plan.bfloat16, multiple=hardware().multiple),
        plan.training.batch_size,
        memory.available_bytes(),
        micro_batch_size=plan.training.micro_batch_size,
        checkpointing=plan.training.gradient_checkpointing,
    )


def _attempt(
    learning: Learning,
    model: Model,
    train_set: list[Any],
    validation: list[Any],
    plan: Plan,
    fit: memory.Fit,
    work: Path,
    save: Callable[[Model, Path], None],
    stop: Stop,
    *,
    resumed: bool,
) -> Progress:
    checkpoint = newest(work)
    meter = Meter()
    if checkpoint is not None:
        meter = Meter.load(checkpoint / _METER)
        meter.stops += resumed
        if _ended(number(checkpoint), plan, meter):
            return Progress(number(checkpoint), meter, fit)
    trainer = LossTrainer(
        plan,
        meter,
        learning,
        model=model,
        args=arguments(plan, fit, work, fresh=checkpoint is None),
        train_dataset=train_set,
        # Sorted, for batches without padding.
        eval_dataset=sorted(validation, key=lambda example: example.length, reverse=True),
        data_collator=lambda batch: learning.collate(batch, learning.padding(model), hardware().multiple),
        compute_metrics=means,
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
