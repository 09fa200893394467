"""Whether the lock that Snakemake finds in its folder is that of a run that lives, or of one that was killed.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import fcntl
import shutil
from pathlib import Path
from typing import TextIO

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def remove_stale_locks(state: Path) -> TextIO | None:
    """Remove Snakemake's locks from its folder ``state`` if every run that could hold one is dead, with its jobs.

    For as long as they live, however they end, a run and its jobs share the operating system's lock on the file
    ``alive``. Whoever gets that lock alone knows that none lives on this machine, nor on those whose locks the file
    system tells of. Not every file system does tell. So each run also leaves its boot's name among Snakemake's locks,
    which goes with them: locks of another machine, or of this one before it went down, stay for a person to judge
    (``snakemake --unlock``).

    Args:
        state: Snakemake's folder, ``.snakemake``.

    Returns:
        What must stay open as long as this run lives; None where files cannot be locked.
    """
    locks = state / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    alive = (state / "alive").open("a")
    try:
        boot = f"{_BOOT.read_text().strip()}.boot"
        if _is_alone(alive) and {file.name for file in locks.glob("*.boot")} == {boot}:
            shutil.rmtree(locks)
            locks.mkdir()
        fcntl.flock(alive, fcntl.LOCK_SH)
        (locks / boot).touch()
    except OSError:
        alive.close()
        return None
    return alive


def _is_alone(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
