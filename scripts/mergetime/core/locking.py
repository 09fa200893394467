"""Whether the lock that Snakemake finds in its folder is that of a run that lives, or of one that was killed.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import fcntl
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Run:
    """A run of Snakemake in its folder.

    Attributes:
        alive: What must stay open as long as the run lives; None where files cannot be locked.
        alone: Whether no other run was there when this one began, and none had left a lock.
    """

    alive: TextIO | None
    alone: bool


def remove_stale_locks(state: Path, *, on_cluster: bool) -> Run:
    """Remove Snakemake's locks from its folder ``state`` if every run that could hold one is dead, with its jobs.

    For as long as they live, however they end, a run and its jobs on this machine share the operating system's lock on
    the file ``alive``. Whoever gets that lock alone knows that none lives on this machine, nor on those whose locks the
    file system tells of. Not every file system does tell. So each run also signs Snakemake's locks, with which its
    signature goes: the name of this machine's boot, and whether its jobs are a cluster's, which outlive it. A run
    removes what was signed since this machine was started, where the jobs were this machine's, or a cluster's and it is
    a run on a cluster itself: it will cancel them. Other locks are a person's to judge (``snakemake --unlock``), as are
    those that nobody signed.

    Args:
        state: Snakemake's folder, ``.snakemake``.
        on_cluster: Whether this run's jobs are a cluster's.
    """
    locks = state / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    alive = (state / "alive").open("a")
    try:
        boot = _BOOT.read_text().strip()
        here, there = f"{boot}.machine.run", f"{boot}.cluster.run"
        signed = {file.name for file in locks.glob("*.run")}
        alone = _is_alone(alive)
        if alone and signed and signed <= ({here, there} if on_cluster else {here}):
            shutil.rmtree(locks)
            locks.mkdir()
        fcntl.flock(alive, fcntl.LOCK_SH)
        locked = _is_locked(locks)
        if signed or not locked:
            (locks / (there if on_cluster else here)).touch()
    except OSError:
        alive.close()
        return Run(None, alone=not _is_locked(locks))
    return Run(alive, alone=alone and not locked)


def leave_locks_to_a_person(state: Path) -> None:
    """Sign Snakemake's locks in its folder ``state`` so that no run will remove them."""
    (state / "locks/unknown.run").touch()


def _is_alone(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(locks: Path) -> bool:
    return any(locks.glob("*.lock"))
