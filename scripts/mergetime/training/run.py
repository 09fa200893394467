"""One training run with transformers' Trainer: adapters every E steps, validation every 4 E, resumable."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mergetime.data.encoding import IGNORED, Encoded
from mergetime.training.model import save_adapter
from mergetime.training.optimum import QUARTERS, Point, passed

_COMPLETE = "complete"


@dataclass(frozen=True)
class Plan:
    """What a run needs to know; ``longest`` is None where training ends at ``max_steps`` regardless of T*."""

    learning_rate: float
    warmup_steps: int
    batch_size: int
    micro_batch_size: int
    save_every: int
    max_steps: int
    longest: float | None
    seed: int
    bfloat16: bool


@dataclass(frozen=True)
class Progress:
    """Where a finished run ended and what it logged: rows of (step, train loss, validation loss, gradient norm)."""

    last_step: int
    rows: list[dict[str, float | int | None]]

    @property
    def curve(self) -> list[Point]:
        """The validation losses."""
        return curve_of(self.rows)


def curve_of(rows: list[dict[str, float | int | None]]) -> list[Point]:
    """The validation losses among logged rows."""
    return [Point(int(r["step"] or 0), float(r["validation_loss"])) for r in rows if r["validation_loss"] is not None]


class _Durations(TrainerCallback):
    """Saves adapters, marks checkpoints whole, and ends training when T* has been passed ``longest``-fold."""

    def __init__(self, plan: Plan, model: PeftModel, work: Path, base: str) -> None:
        self.plan, self.model, self.work, self.base = plan, model, work, base

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step % self.plan.save_every == 0:
            save_adapter(self.model, adapter_folder(self.work, state.global_step), base=self.base)
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.plan.longest and passed(curve_of(rows_of(state.log_history)), self.plan.longest):
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        (self.work / f"checkpoint-{state.global_step}" / _COMPLETE).touch()


def adapter_folder(work: Path, step: int) -> Path:
    """Where a run keeps the adapter of ``step``."""
    return work / f"step-{step}"


def train(
    model: PeftModel, train: list[Encoded], validation: list[Encoded], plan: Plan, work: Path, base: str
) -> Progress:
    """Train, from the newest whole checkpoint in ``work`` if there is one.

    The same inputs end in the same bytes, however often the run was killed: dropout is off, the order of the data
    comes from the seed and the epoch, and the optimizer's state is part of a checkpoint.
    """
    trainer = Trainer(
        model=model,
        args=_arguments(plan, work, fresh=_newest(work) is None),
        train_dataset=train,  # type: ignore[arg-type]
        eval_dataset=validation,  # type: ignore[arg-type]
        data_collator=lambda batch: collate(batch, model.config.pad_token_id or 0),
        compute_metrics=_mean_loss,
        preprocess_logits_for_metrics=token_losses,
        callbacks=[_Durations(plan, model, work, base)],
    )
    checkpoint = _newest(work)
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        rows = rows_of(state.log_history)
        ended = state.global_step >= plan.max_steps or (plan.longest and passed(curve_of(rows), plan.longest))
        if ended:
            return Progress(state.global_step, rows)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return Progress(trainer.state.global_step, rows_of(trainer.state.log_history))


def _arguments(plan: Plan, work: Path, *, fresh: bool) -> TrainingArguments:
    every = QUARTERS * plan.save_every
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.batch_size // plan.micro_batch_size,
        per_device_eval_batch_size=4 * plan.micro_batch_size,
        max_steps=plan.max_steps,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=plan.warmup_steps,
        optim="adamw_torch",
        weight_decay=0.0,
        bf16=plan.bfloat16,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=fresh,
        logging_strategy="steps",
        logging_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        seed=plan.seed,
        data_seed=plan.seed,
    )


def _newest(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the others are removed."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
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


def _mean_loss(prediction: EvalPrediction) -> dict[str, float]:
    # Over tokens, not over batches: the mean of batch means would move with the batch size.
    sums = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    return {"token_loss": float(sums[0] / sums[1])}


def rows_of(history: list[dict[str, float]]) -> list[dict[str, float | int | None]]:
    """The Trainer's log as one row a step: step, train_loss, validation_loss, gradient_norm."""
    rows: dict[int, dict[str, float | int | None]] = {}
    names = {"loss": "train_loss", "eval_token_loss": "validation_loss", "grad_norm": "gradient_norm"}
    for entry in history:
        found = {names[key]: float(value) for key, value in entry.items() if key in names}
        if found:
            step = int(entry["step"])
            row: dict[str, float | int | None] = dict.fromkeys(["step", *names.values()])
            rows.setdefault(step, row | {"step": step}).update(found)
    return [rows[step] for step in sorted(rows)]
