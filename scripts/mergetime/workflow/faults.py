"""So that a clock that was wrong costs a run nothing.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path


def date_to_present(files: Iterable[str | Path]) -> None:
    """Set files that a wrong clock has dated ahead to the present, and say so.

    Snakemake fails a job, and removes what it made, if that is older than an input; but it says so only afterwards.
    """
    present = time.time()
    ahead = [file for file in set(map(Path, files)) if file.exists() and file.stat().st_mtime > present]
    for file in ahead:
        os.utime(file)
    if ahead:
        print(
            f"{len(ahead)} files were dated in the future, such as {min(ahead)}; they are now dated to the present",
            file=sys.stderr,
        )
