"""The folders of a run: weights that may be kept, and checkpoints that it goes on from."""

import shutil
from pathlib import Path

_COMPLETE = "complete"


def step_folder(work: Path, step: int) -> Path:
    """Where a run keeps the weights of ``step``."""
    return work / f"step-{step}"


def checkpoint_folder(work: Path, step: int) -> Path:
    """Where a run writes what it needs to go on after ``step``."""
    return work / f"checkpoint-{step}"


def number(folder: Path) -> int:
    """The step that a folder of either kind is of."""
    return int(folder.name.rsplit("-", 1)[1])


def complete(checkpoint: Path) -> None:
    """Mark a checkpoint as written to its end, and remove those before it."""
    (checkpoint / _COMPLETE).touch()
    for folder in checkpoint.parent.glob("checkpoint-*"):
        if folder != checkpoint:
            shutil.rmtree(folder)


def newest(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=number)
    for folder in checkpoints:
        if not (folder / _COMPLETE).exists():
            shutil.rmtree(folder)
    intact = [folder for folder in checkpoints if folder.exists()]
    return intact[-1] if intact else None
