"""How fast work goes: measured figures from a table, used on other sizes and chips by operations, else an assumption.

An operation is a multiplication or an addition, as :mod:`.costs` counts them: so a figure of a small model says what
share of its chip's peak is reached, and a larger model is taken to reach as much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from mergetime.artifacts.forms import CHECKPOINT, Mode, trained_as
from mergetime.config.fields import Count, Parameters, PlainWords, Positive, Strict
from mergetime.config.sources import Modality
from mergetime.config.study import PlanAssumptions
from mergetime.core import yaml_text
from mergetime.core.errors import UserError
from mergetime.core.sections import validated
from mergetime.modalities.parts import DEFAULT
from mergetime.planning import costs
from mergetime.planning.costs import DType, Rate

CPU = "cpu"
"""The chip of studies whose config gives no size of a base: one core a job."""
Kernels = Literal["torch", "fused", "vllm"]
Stage = Literal["start", "light", "prepare", "train", "validate", "read", "generate", "outside"]
UNITS = {
    "start": "s a job",
    "light": "s a job",
    "prepare": "examples/s",
    "train": "tokens/s",
    "validate": "tokens/s",
    "read": "tokens/s",
    "generate": "tokens/s",
    "outside": "share of time",
}
_STAND_INS: dict[Stage, tuple[Stage, ...]] = {
    "train": ("train",),
    "validate": ("validate", "read", "train"),
    "read": ("read", "validate", "train"),
}
"""Stages whose share of the peak is taken where a stage has none: all are passes over whole texts."""
Line = Annotated[str, StringConstraints(max_length=300, pattern=r"^[ -~]+$")]


class Chip(Strict):
    """What a chip can do at most, dense and without sparsity."""

    teraflops: Positive = Field(description="10^12 operations a second; of GPUs in bfloat16")
    bandwidth_gb_s: Positive = Field(description="memory bandwidth, 10^9 bytes a second")


class MeasuredRate(Strict):
    """What was measured once.

    Tokens leave padding out where the program knows it. Those of ``generate`` are of all sequences of a batch, until
    its last one ends; ``outside`` is the share of an evaluation's seconds outside the model.
    """

    stage: Stage
    figure: Positive
    unit: Literal["s a job", "examples/s", "tokens/s", "share of time"]
    chip: PlainWords = Field(description="the GPU as its driver names it, or cpu")
    machine: Line | None = Field(None, description="what there is to say of the machine")
    modality: Modality = DEFAULT
    kernels: Kernels = Field("torch", description="torch: PyTorch's operations; fused: flash-linear-attention; or vllm")
    dtype: DType = "bfloat16"
    mode: Mode | None = Field(None, description="of train")
    model: PlainWords | None = None
    parameters: Parameters | None = Field(None, description="of the language model, where tokens are counted")
    batch_size: Count | None = Field(None, description="of generate")
    date: date
    command: Line

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.unit != UNITS[self.stage]:
            raise ValueError(f"unit of stage {self.stage} is {UNITS[self.stage]!r}, not {self.unit!r}")
        if self.unit == "tokens/s" and self.parameters is None:
            raise ValueError(f"parameters: a rate of stage {self.stage} needs the size of the model")
        if self.stage == "train" and self.mode is None:
            raise ValueError("mode: a rate of stage train needs one of lora, qlora and full")
        if self.stage == "generate" and self.batch_size is None:
            raise ValueError("batch_size: a rate of stage generate needs the batch that it was reached with")
        if self.stage == "outside" and self.figure >= 1:
            raise ValueError(f"figure: {self.figure:g} is no share of time below 1")
        return self

    @property
    def operations_per_s(self) -> float:
        """The rate in operations, of stages that count tokens."""
        return self.figure * operations_per_token(self.stage, self.mode) * (self.parameters or 0)


class RateTable(Strict):
    """The chips that plans know, and what was measured on them."""

    chips: dict[PlainWords, Chip]
    figures: list[MeasuredRate]

    @model_validator(mode="after")
    def _chips_known(self) -> Self:
        for place, figure in enumerate(self.figures):
            if figure.chip not in self.chips:
                raise ValueError(f"figures.{place}.chip: {figure.chip!r} is not among chips; add its peaks there")
        return self


@dataclass(frozen=True)
class Workload:
    """What work is done on and with; ``mode`` counts in training alone."""

    chip: str
    kernels: Kernels
    modality: str
    dtype: DType
    parameters: int
    mode: Mode | None = None


@dataclass(frozen=True)
class Pace:
    """Operations a second, and where the number comes from, for the report."""

    operations_per_s: float
    source: str


def load(path: Path) -> RateTable:
    """The table in a YAML file.

    Raises:
        UserError: in one line that names the file, the line's place among ``figures`` and the key.
    """
    return validated(RateTable, yaml_text.read(path), str(path))


def operations_per_token(stage: Stage, mode: Mode | None = None) -> float:
    """Operations a token and parameter: those of training by :func:`.costs.training_operations`, else of a pass."""
    if stage != "train":
        return 2.0
    return costs.training_operations(1, 1, every_weight=mode is not None and trained_as(mode) == CHECKPOINT)


def nearest(table: RateTable, stage: Stage, workload: Workload, *, chips: Sequence[str]) -> MeasuredRate | None:
    """The figure of a stage on one of these chips that is most like the workload: in mode first, then in size."""
    fitting = [
        figure
        for figure in table.figures
        if (figure.stage, figure.modality, figure.kernels) == (stage, workload.modality, workload.kernels)
        and figure.chip in chips
    ]

    def unlike(figure: MeasuredRate) -> tuple[bool, float]:
        size = abs(math.log(figure.parameters / workload.parameters)) if figure.parameters else 0.0
        return figure.mode != workload.mode, size

    return min(fitting, key=unlike, default=None)


def peak(table: RateTable, plan: PlanAssumptions, chip: str) -> Rate:
    """The most that a chip can do: as the plan says of its GPU, else by the table.

    Raises:
        UserError: where neither knows the chip.
    """
    known = table.chips.get(chip)
    if chip == CPU:
        if known is None:
            raise UserError(f"{plan.rates}: chips: {CPU!r} is missing, which this study runs on; add its peaks")
        return Rate(known.teraflops * 1e12, known.bandwidth_gb_s * 1e9)
    teraflops = plan.teraflops or (known.teraflops if known else None)
    bandwidth = plan.bandwidth_gb_s or (known.bandwidth_gb_s if known else None)
    if teraflops is None or bandwidth is None:
        listed = ", ".join(name for name in table.chips if name != CPU)
        raise UserError(
            f"plan.gpu: {chip!r} is not among the chips of {plan.rates} ({listed}); name one of them, add it there, or "
            "give plan.teraflops and plan.bandwidth_gb_s"
        )
    return Rate(teraflops * 1e12, bandwidth * 1e9)


def pace(table: RateTable, plan: PlanAssumptions, stage: Stage, workload: Workload) -> Pace:
    """How fast whole texts pass through a model: measured on the chip, else by the share of a GPU's peak elsewhere.

    Only where no chip has a figure for these kernels it is the plan's assumption.
    """
    top, gpu = peak(table, plan, workload.chip), workload.chip != CPU
    elsewhere = [chip for chip in table.chips if chip not in (CPU, workload.chip)] if gpu else []
    for chips in ([workload.chip], elsewhere):
        for stand_in in _STAND_INS[stage]:
            figure = nearest(table, stand_in, workload, chips=chips)
            if figure is None:
                continue
            here = figure.chip == workload.chip
            # Chips and dtypes reach their own peaks alike.
            scale = 1.0 if here else top.operations_per_s / (table.chips[figure.chip].teraflops * 1e12)
            scale *= costs.dtype_share(workload.dtype, gpu=gpu) / costs.dtype_share(figure.dtype, gpu=gpu)
            rate = figure.operations_per_s * scale
            if here and figure.stage == stage:
                return Pace(rate, origin(figure, workload))
            share = rate / top.operations_per_s
            return Pace(rate, f"assumed: {share:.2%} of peak, {origin(figure, workload)}")
    rate = costs.reached(top, plan.utilization, workload.dtype, gpu=gpu).operations_per_s
    return Pace(rate, assumption(plan))


def described(figure: MeasuredRate) -> str:
    """A figure that goes by jobs or shares, for the report."""
    return f"{figure.figure:.3g} {figure.unit}; measured: {figure.chip}, {figure.date}"


def figure_of(table: RateTable, stage: Stage, chip: str) -> MeasuredRate | None:
    """The figure of a stage that goes by jobs or shares; of several, the last."""
    return next((figure for figure in reversed(table.figures) if (figure.stage, figure.chip) == (stage, chip)), None)


def assumption(plan: PlanAssumptions) -> str:
    """What stands for a figure where none fits."""
    return f"assumed: {plan.utilization:.0%} of peak (plan.utilization)"


def origin(figure: MeasuredRate, workload: Workload) -> str:
    """Where a figure is from: ``measured`` on such a workload, ``scaled`` from another model or mode on its chip."""
    same_size = 0.95 < (figure.parameters or 0) / workload.parameters < 1.05
    same = (figure.chip, figure.dtype) == (workload.chip, workload.dtype) and same_size
    same = same and (figure.stage != "train" or figure.mode == workload.mode)
    how = "measured" if same else "scaled from"
    what = f"{figure.stage} {figure.mode or ''}".strip() + f", {figure.kernels}, {figure.dtype}"
    of_model = f" of {figure.model or f'{(figure.parameters or 0) / 1e6:,.0f} million parameters'}"
    return f"{how}: {figure.figure:,.0f} {figure.unit}{of_model} on {figure.chip}, {figure.date} ({what})"
