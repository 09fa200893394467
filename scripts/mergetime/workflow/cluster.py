"""What SLURM says of jobs: those that an earlier run left behind, and what an attempt ran out of.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import functools
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from mergetime.core.errors import UserError
from mergetime.planning.jobs import stem_of

Resource = Literal["memory", "time"]

WARNED = {"train_expert": "--signal=URG@300"}
"""Rules whose jobs SLURM tells, five minutes before their time is up: they write a checkpoint, and the next attempt
goes on from there. To each, without the number that a further one of its kind has, its option of sbatch."""

_CANCEL_WITHIN_S = 300
# SLURM warns a job up to a minute early, and its end is seen a little later than that it has written its checkpoint.
_WARNED_S = 420
# What SLURM's daemon writes into a job's log: with cgroups, and where it polls.
_OUT_OF_MEMORY = re.compile(r"^slurmstepd.*(oom.kill|memory limit)", re.MULTILINE)
_FORMAT = "%i|%T|%L|%Z|%k"


class SlurmJob(NamedTuple):
    """A job as squeue lists it; ``left`` is what is left of its time, in SLURM's notation."""

    number: str
    state: str
    left: str
    comment: str


def parsed(listed: str, folder: Path) -> list[SlurmJob]:
    """The jobs in squeue's lines that were submitted in ``folder``."""
    rows = [line.split("|", maxsplit=4) for line in listed.splitlines()]
    here = folder.resolve()
    return [
        SlurmJob(number, state, left, comment.strip())
        for number, state, left, submitted_in, comment in rows
        if Path(submitted_in).resolve() == here
    ]


def jobs_of_this_folder(*options: str) -> list[SlurmJob]:
    """This user's jobs in SLURM that were submitted in the current folder.

    Raises:
        OSError, subprocess.SubprocessError: where squeue is missing or does not answer.
    """
    command = ["squeue", "--me", "--noheader", f"--format={_FORMAT}", *options]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return parsed(listed, Path.cwd())


def jobs_of_rules(jobs: Iterable[SlurmJob], rules: Iterable[str]) -> list[str]:
    """The numbers of the jobs that Snakemake submitted for these rules."""
    names = "|".join(map(re.escape, rules)) or "(?!)"
    ours = re.compile(rf"rule_({names})(_wildcards_.*)?", re.DOTALL)
    return [job.number for job in jobs if ours.fullmatch(job.comment)]


def cancel_jobs_of_earlier_runs(rules: Iterable[str]) -> None:
    """Cancel what a killed Snakemake left behind of these rules, and return when it has ended.

    Nobody waits for these jobs any more, and they would write the same files as their successors. To be called by a run
    that is alone in the folder, so that they are of no run that lives. Snakemake's lock alone does not say so: it lets
    runs that make different files, such as two studies, work in one folder.

    Raises:
        UserError: naming the jobs that do not end.
    """
    names = list(rules)
    left = jobs_of_rules(jobs_of_this_folder(), names)
    if not left:
        return
    print(f"Cancelling jobs of an earlier run: {' '.join(left)}", file=sys.stderr)
    subprocess.run(["scancel", *left], check=True, timeout=60)
    until = time.monotonic() + _CANCEL_WITHIN_S
    while left := jobs_of_rules(jobs_of_this_folder(), names):
        if time.monotonic() > until:
            raise UserError(f"jobs of an earlier run do not end: {' '.join(left)}")
        time.sleep(2)


def seconds(left: str) -> float:
    """SLURM's days-hours:minutes:seconds as seconds; infinity where there is no number."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", left):
        return math.inf
    days, _, clock = left.rpartition("-")
    parts = reversed(clock.split(":"))
    return int(days or 0) * 86400.0 + sum(int(part) * 60.0**power for power, part in enumerate(parts))


@functools.cache
def ran_out_of(rule: str, values: tuple[str, ...], attempt: int) -> frozenset[Resource]:
    """What this attempt, the last until now, of a job ran out of: memory, time, or neither.

    Both where SLURM does not answer or has forgotten the job. Kept, because SLURM forgets.

    Args:
        rule: the job's rule.
        values: its wildcards, in their order.
        attempt: counted from 1; the answer is about the newest job, so ask before the next attempt begins.
    """
    name = re.sub("[/]", "_", "_".join(values))
    comment = f"rule_{rule}_wildcards_{name}" if name else f"rule_{rule}"
    try:
        jobs = jobs_of_this_folder("--states=all")
    except (OSError, subprocess.SubprocessError):
        return frozenset({"memory", "time"})
    attempts = [job for job in jobs if job.comment == comment]
    if not attempts:
        return frozenset({"memory", "time"})
    newest = max(attempts, key=lambda job: int(job.number))
    log = Path("logs/slurm", f"rule_{rule}", name, f"{newest.number}.log")
    return _reason(newest, log.read_text(errors="replace") if log.is_file() else "", warned=stem_of(rule) in WARNED)


def _reason(job: SlurmJob, log: str, *, warned: bool) -> frozenset[Resource]:
    if job.state == "OUT_OF_MEMORY" or _OUT_OF_MEMORY.search(log):
        return frozenset({"memory"})
    stopped_in_time = job.state == "FAILED" and warned and seconds(job.left) < _WARNED_S
    return frozenset({"time"}) if job.state == "TIMEOUT" or stopped_in_time else frozenset()


def shares(rule: str, values: tuple[str, ...], attempt: int) -> tuple[int, int]:
    """How many times its memory and its time an attempt asks for: once, and once more as often as it ran out of it."""
    short = [ran_out_of(rule, values, before) for before in range(1, attempt)]
    return 1 + sum("memory" in lacked for lacked in short), 1 + sum("time" in lacked for lacked in short)
