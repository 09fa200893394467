"""transformers' Trainer with our loss, counts and order of the data."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from mergetime.config.experts import Training
from mergetime.modalities.learning import Learning, Objective
from mergetime.training import memory
from mergetime.training.durations import DurationRule
from mergetime.training.meter import Clock, Energy, Meter
from mergetime.training.sampling import LengthGrouped
from mergetime.training.schedule import Schedule

Model = PeftModel | PreTrainedModel


@dataclass(frozen=True)
class Hardware:
    """What a run does otherwise on a GPU.

    Attributes:
        multiple: lengths of batches are rounded up to it. Kernels work in blocks of it, and are compiled and tuned by
            size, of which there are few then. Padding holds no item of the loss, which is the same.
        optimizer: AdamW by transformers' name; fused, a step is one kernel instead of one for each operation.
        pinned: whether batches wait in memory that the GPU reads by itself.
        tunes: whether kernels are tuned and compiled at the first batch of a shape, which counts apart then.
    """

    multiple: int
    optimizer: str
    pinned: bool
    tunes: bool


CPU = Hardware(multiple=1, optimizer="adamw_torch", pinned=False, tunes=False)
GPU = Hardware(multiple=64, optimizer="adamw_torch_fused", pinned=True, tunes=True)


def hardware() -> Hardware:
    """That of this machine."""
    return GPU if torch.cuda.is_available() else CPU


@dataclass(frozen=True)
class Plan:
    """What a run needs to know: the config's section on training, and what is made of it."""

    training: Training
    schedule: Schedule
    durations: DurationRule
    seed: int
    bfloat16: bool


class LossTrainer(Trainer):
    """Trainer with the loss of a modality, and counts of what it trains on."""

    loss_is_scaled_for_ga = True

    def __init__(self, plan: Plan, meter: Meter, learning: Learning, **given: Any) -> None:
        super().__init__(**given)
        # The loss is this class's own, whatever the model's forward takes.
        self.model_accepts_loss_kwargs = True
        self.plan, self.meter, self.clock, self.energy = plan, meter, Clock(), Energy()
        self.learning = learning
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()
        self.objective: Objective = learning.objective(given["model"])
        # Counted on the device, where reading every step would make the processor wait.
        self.counts = torch.tensor([meter.loss, meter.tokens], dtype=torch.float64, device=self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the mean loss over the items of the effective batch."""
        assert num_items_in_batch is not None
        with self.accelerator.autocast():
            return self.objective.summed_loss(model, inputs) / num_items_in_batch

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """A micro-batch, forward and backward; the first of a shape counts apart where kernels are tuned for it."""
        shape = tuple(tuple(tensor.shape) for tensor in inputs.values())
        tuned = hardware().tunes and shape not in self.shapes
        if tuned:
            self.read()
        value: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        used, positions = self.learning.size(inputs)
        self.counts += torch.stack([value.detach().double(), used.to(self.counts)])
        self.meter.positions += positions
        if tuned:
            self.shapes.add(shape)
            self._read_warmup()
        return value

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Of each example, float64: the loss summed and the items that are right; and the number of its items."""
        batch = self._prepare_inputs(inputs)
        with self.accelerator.autocast():
            items = self.objective.predicted(model, batch)
        sums = torch.zeros(len(batch["labels"]), 3, dtype=torch.float64, device=items.losses.device)
        values = torch.stack([items.losses.double(), items.right.double(), torch.ones_like(items.losses).double()], 1)
        sums.index_add_(0, items.example, values)
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

    def _read_warmup(self) -> None:
        """Bring the meter up to date; what passed since the last reading was a step that tuned kernels."""
        seconds = self.clock.lap()
        summed, tokens = self.counts.tolist()
        self.meter.warm_up(seconds, int(tokens) - self.meter.tokens)
        self.meter.seconds += seconds
        self.meter.use(self.energy.read())
        self.meter.loss, self.meter.tokens = summed, int(tokens)

    def read_validation(self) -> None:
        """Bring the meter up to date; what passed since the last reading was a validation."""
        seconds = self.clock.lap()
        self.meter.validation_seconds += seconds
        self.meter.seconds += seconds
        self.meter.use(self.energy.read())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        examples: Any = train_dataset or self.train_dataset
        if not self.plan.training.group_by_length:
            return RandomSampler(examples)
        return LengthGrouped(self.plan.training.batch_size, [example.length for example in examples], self.plan.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)


def arguments(plan: Plan, fit: memory.Fit, work: Path, *, fresh: bool) -> TrainingArguments:
    """A plan as Trainer takes it; ``fresh`` runs validate before their first step."""
    every = plan.durations.every
    trainer_arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=fit.micro_batch_size,
        gradient_accumulation_steps=plan.training.batch_size // fit.micro_batch_size,
        per_device_eval_batch_size=4 * fit.micro_batch_size,
        max_steps=plan.durations.last_step,
        learning_rate=plan.schedule.peak,
        # The rate of each step is set where it begins.
        lr_scheduler_type="constant",
        optim=hardware().optimizer,
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
        dataloader_pin_memory=hardware().pinned,
        disable_tqdm=not sys.stderr.isatty(),
        report_to=[],
        seed=plan.seed,
        data_seed=plan.seed,
    )
    # With several GPUs in sight, Trainer would spread each batch over them.
    trainer_arguments._n_gpu = min(1, trainer_arguments.n_gpu)
    return trainer_arguments


def means(prediction: EvalPrediction) -> dict[str, float]:
    """Validation loss and accuracy over items, not over batches, whose means would move with the batch size."""
    sums = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    count = np.asarray(prediction.label_ids, dtype=np.float64).sum()
    return {"loss": float(sums[0] / count), "accuracy": float(sums[1] / count)}
