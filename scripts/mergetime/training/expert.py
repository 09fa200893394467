"""From the files of a domain to its experts: model and data in, one run, and what is kept of it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from mergetime.artifacts.files import check_finite
from mergetime.artifacts.forms import CHECKPOINT, Form, trained_as
from mergetime.artifacts.saving import save_adapter, save_model
from mergetime.config.experts import Training
from mergetime.core import provenance
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError
from mergetime.modalities import kernels, learning, reading
from mergetime.modalities.parts import DEFAULT
from mergetime.training.durations import DurationRule
from mergetime.training.folders import step_folder
from mergetime.training.model import add_lora
from mergetime.training.run import Progress, train
from mergetime.training.signals import Stop
from mergetime.training.trainer import Model, Plan


@dataclass(frozen=True)
class Learner:
    """What learns: the base in ``folder``, through LoRA factors or with all its weights; ``base_id`` is its hub id."""

    folder: Path
    base_id: str
    training: Training
    dtype: torch.dtype
    seed: int
    modality: str = DEFAULT

    def build(self) -> Model:
        """The model before its first step; where all weights learn, in float32, as small steps need."""
        part = learning.get(self.modality)
        whole = self.form == CHECKPOINT
        dtype = torch.float32 if whole else self.dtype
        base = part.load_base(self.folder, dtype=dtype, four_bit=self.training.mode == "qlora")
        return base if whole else add_lora(part, base, rank=self.training.rank, alpha=self.alpha, seed=self.seed)

    @property
    def alpha(self) -> float:
        """LoRA alpha; the rank where the config has none."""
        return float(self.training.alpha or self.training.rank)

    @property
    def form(self) -> Form:
        """What :meth:`save` writes."""
        return trained_as(self.training.mode)

    def save(self, model: Model, folder: Path) -> None:
        """Write what was trained, whole models in the dtype of the base."""
        if isinstance(model, PreTrainedModel):
            save_model(model, folder, dtype=self.dtype)
        else:
            save_adapter(model, folder, base=self.base_id)


def train_expert(
    learner: Learner, train_file: Path, validation_file: Path, plan: Plan, work: Path, out: Path, stop: Stop
) -> dict[str, Any]:
    """Train in ``work``, put experts and curve into ``out``, and return what there is to say of them.

    Raises:
        Stopped: because ``stop`` said so; ``work`` holds a checkpoint to go on from.
        UserError: where a file has no examples, one does not fit into the GPU's memory, or a kernel is wrong.
        ValueError: where the curve has no T*.
    """
    part = reading.get(learner.modality)
    reader = part.reader(learner.folder)
    examples, validation = _read(part, reader, train_file), _read(part, reader, validation_file)
    built: dict[str, Any] = {}

    def build() -> Model:
        model = learner.build()
        if not built:
            computed = torch.bfloat16 if plan.bfloat16 else torch.float32
            built.update(_sizes(model), kernels=kernels.check(model, dtype=computed, backward=True))
        return model

    progress = train(learning.get(learner.modality), build, examples, validation, plan, work, learner.save, stop)
    fitted = {
        "micro_batch_size": progress.fit.micro_batch_size,
        "gradient_checkpointing": progress.fit.checkpointing,
    }
    return built | fitted | progress.meter.facts() | _keep(learner, plan.durations, progress, work, out)


def _read(part: reading.Reading, reader: Any, file: Path) -> list[Any]:
    rows = pq.read_table(file, columns=list(part.COLUMNS)).to_pylist()
    if not rows:
        raise UserError(f"{file}: holds no examples; prepare the domain again with more of them")
    return [part.encode(reader, row) for row in rows]


def _sizes(model: Model) -> dict[str, Any]:
    if isinstance(model, PreTrainedModel):
        total = sum(parameter.numel() for parameter in model.parameters())
        return {"target_modules": None, "trainable_parameters": total, "parameters": total}
    # PEFT counts 4-bit weights as they were before.
    trainable, total = model.get_nb_trainable_parameters()
    adapted = sorted(model.peft_config["default"].to_dict()["target_modules"])
    return {"target_modules": adapted, "trainable_parameters": trainable, "parameters": total}


def _keep(learner: Learner, durations: DurationRule, progress: Progress, work: Path, out: Path) -> dict[str, Any]:
    """Put the experts of all durations and the curve into place; what was found, for the record.

    Raises:
        UserError: where the weights of one of them are not finite.
    """
    curve = progress.meter.curve
    optimum, steps = durations.optimum(curve), durations.kept(curve)
    for duration, step in steps.items():
        check_finite(
            step_folder(work, step) / learner.form.weights,
            f"expert {out}: {duration} (step {step})",
            "training diverged; lower learning_rate, or keep no expert of this duration",
        )
    digests = {}
    for duration, step in steps.items():
        (out / duration).mkdir(parents=True, exist_ok=True)
        for name in learner.form.files:
            _link(step_folder(work, step) / name, out / duration / name)
            digests[f"{duration}/{name}"] = provenance.sha256(out / duration / name)
    with completed(out / "curve.parquet") as (beside,):
        pd.DataFrame(progress.meter.rows).to_parquet(beside)
    return {
        "t_star": optimum.step,
        "t_star_loss": optimum.loss,
        "t_star_boundary": optimum.boundary,
        "lowest_step": optimum.lowest_step,
        "last_step": progress.last_step,
        "steps": steps,
        "files_sha256": digests,
    }


def _link(source: Path, target: Path) -> None:
    """The same file at ``target``, without a copy where the file system can."""
    with completed(target) as (beside,):
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)
