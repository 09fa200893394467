"""What a check is given, and what it says."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting:
    """At which shapes a check runs (``true``: those of the models; ``tiny``: a trial), and a folder for its files.

    The folder is all checks' own: what one has made there, the next ones find.
    """

    shape: str
    work: Path

    @property
    def tiny(self) -> bool:
        """Whether this is only a trial of the check."""
        return self.shape == "tiny"


@dataclass(frozen=True)
class Figure:
    """What was measured, or shown; ``passed`` is False where it is not as it must be."""

    name: str
    value: float | None = None
    unit: str = ""
    note: str = ""
    passed: bool = True


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """The check cannot be made here; the message says why."""


def device() -> str:
    """Where tensors are."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def finish() -> None:
    """Wait until the GPU has done all it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Chip, and versions of what computes."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {}
    for package in ("torch", "triton", "transformers", "peft", "bitsandbytes", "flash-linear-attention", "lm_eval"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    chip: dict[str, Any] = {"gpu": None, "gpu_memory_mib": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        chip = {"gpu": properties.name, "gpu_memory_mib": properties.total_memory >> 20}
    return {**chip, "versions": versions}


def write(file: Path, said: Figure | dict[str, Any]) -> None:
    """Append what a check says, where it is kept even if the check is stopped later."""
    with file.open("a") as stream:
        stream.write(json.dumps(asdict(said) if isinstance(said, Figure) else said) + "\n")
