"""What was measured: the records that Snakemake keeps of finished jobs (its ``benchmark`` files)."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mergetime.planning.jobs import Job

Group = tuple[str, ...]
"""What jobs have in common that are expected to take equally long: rule, and base and split where they have one."""


@dataclass(frozen=True)
class MeasuredTimes:
    """Wall seconds of the recorded jobs of a group."""

    mean_s: float
    jobs: int


def group_of(job: Job) -> Group:
    """The jobs that a job is compared with: of its rule (all batches), its base, and its split if it evaluates."""
    split = job.split if job.stage == "evaluate" else None
    return tuple(part for part in (job.stem, job.wildcards.get("base"), split) if part)


def own_seconds(job: Job, root: Path) -> float | None:
    """Wall seconds that this very job took when it last ran; None if there is no record."""
    return seconds_in(root / job.benchmark) if job.benchmark else None


def seconds_in(file: Path, name: str = "s") -> float | None:
    """Wall seconds, or others by their name, of the last run in one of Snakemake's records; None if there are none."""
    lines = file.read_text().splitlines() if file.is_file() else []
    value = json.loads(lines[-1]).get(name) if lines else None
    return float(value) if isinstance(value, int | float) else None


def means(jobs: Iterable[Job], root: Path) -> dict[Group, MeasuredTimes]:
    """Mean wall seconds of the recorded jobs, by group."""
    found: dict[Group, list[float]] = defaultdict(list)
    for job in jobs:
        seconds = own_seconds(job, root)
        if seconds is not None:
            found[group_of(job)].append(seconds)
    return {group: MeasuredTimes(sum(values) / len(values), len(values)) for group, values in found.items()}
