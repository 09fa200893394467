"""What a run counts: the rows of its curve, tokens, seconds and energy, across all stops."""

import importlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mergetime.core.atomic import write_atomically
from mergetime.training.optimum import Point

Row = dict[str, float | int | None]
"""A row of curve.parquet, as :data:`ROW` and :data:`mergetime.results.columns.CURVES` name its columns."""

ROW = (
    "step", "train_loss", "validation_loss", "validation_accuracy", "gradient_norm", "learning_rate", "tokens",
    "tokens_per_second", "gpu_memory_mb", "energy_j",
)  # fmt: skip


@dataclass
class Meter:
    """Counts since the start of the run, and since the last row (``window``); all of it goes into each checkpoint.

    ``loss`` sums each step's mean loss in the window; ``tokens`` leave padding out, ``positions`` do not. Seconds are
    of training without validations and checkpoints, of validations, and of everything. ``warmup`` is of steps in which
    kernels are tuned and compiled: they train, and are no measure of how fast.
    """

    rows: list[Row] = field(default_factory=list)
    loss: float = 0.0
    tokens: int = 0
    positions: int = 0
    window_steps: int = 0
    window_tokens: int = 0
    window_seconds: float = 0.0
    window_energy: float | None = None
    training_seconds: float = 0.0
    warmup_seconds: float = 0.0
    warmup_tokens: int = 0
    validation_seconds: float = 0.0
    seconds: float = 0.0
    energy: float | None = None
    stops: int = 0

    @property
    def curve(self) -> list[Point]:
        """The validations."""
        return [
            Point(int(row["step"] or 0), float(row["validation_loss"] or 0), float(row["validation_accuracy"] or 0))
            for row in self.rows
        ]

    def train(self, seconds: float) -> None:
        """Count ``seconds`` of training."""
        self.window_seconds += seconds
        self.training_seconds += seconds

    def warm_up(self, seconds: float, tokens: int) -> None:
        """Count a step in which kernels were tuned."""
        self.warmup_seconds += seconds
        self.warmup_tokens += tokens

    @property
    def tokens_per_second(self) -> float | None:
        """The rate of training; None before a step that counts for it."""
        return (self.tokens - self.warmup_tokens) / self.training_seconds if self.training_seconds else None

    def use(self, joules: float | None) -> None:
        """Count energy; None where nothing measures it."""
        if joules is not None:
            self.energy = (self.energy or 0.0) + joules
            self.window_energy = (self.window_energy or 0.0) + joules

    def row(self, step: int, validation: dict[str, float], gradient_norm: float | None, rate: float | None) -> None:
        """Close the window with the validation after ``step``."""
        fast = self.window_tokens / self.window_seconds if self.window_seconds and self.window_steps else None
        values = (
            step, self.loss / self.window_steps if self.window_steps else None, validation["loss"],
            validation["accuracy"], gradient_norm, rate, self.tokens, fast, gpu_memory_mb(), self.window_energy,
        )  # fmt: skip
        self.rows.append(dict(zip(ROW, values, strict=True)))
        self.loss, self.window_steps, self.window_tokens, self.window_seconds = 0.0, 0, 0, 0.0
        self.window_energy = None

    def facts(self) -> dict[str, Any]:
        """What there is to say of a finished run."""
        return {
            "tokens": self.tokens,
            "tokens_per_second": round(rate, 1) if (rate := self.tokens_per_second) is not None else None,
            "warmup_seconds": round(self.warmup_seconds, 1),
            "padding_share": round(1 - self.tokens / self.positions, 4) if self.positions else None,
            "validation_share": round(self.validation_seconds / self.seconds, 4) if self.seconds else None,
            "energy_j": self.energy,
            "stops": self.stops,
        }

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_atomically(file, json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> "Meter":
        """Read what :meth:`save` wrote: floats come back as the same bits."""
        return cls(**json.loads(file.read_text()))


def gpu_memory_mb() -> float | None:
    """Peak memory of tensors on the GPU so far, in MiB; None without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


class Energy:
    """Joules that the GPU drew since the last reading, by NVML's counter; None without GPU, NVML or ``pynvml``."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._before = 0
        if not torch.cuda.is_available():
            return
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            self._nvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
            self._before = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            self._handle = None

    def read(self) -> float | None:
        """Joules since the last reading."""
        if self._handle is None:
            return None
        now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        self._before, used = now, now - self._before
        return float(used / 1000)


class Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._before = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap, the GPU's queue emptied first."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        passed, self._before = now - self._before, now
        return passed
