"""Files that are whole whenever they are there: written beside their place, then renamed.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def completed(*paths: Path, mark: str = "partial") -> Iterator[list[Path]]:
    """Paths beside ``paths`` to write to; renamed in order when all went well, removed when not.

    Args:
        paths: the files; their folders are there.
        mark: the suffix of what is not whole yet. The same in every process, so that what a kill leaves is removed by
            the next try; it may be a link to another file, and is never written into.
    """
    partial = [path.with_name(f".{path.name}.{mark}") for path in paths]
    try:
        for beside in partial:
            beside.unlink(missing_ok=True)
        yield partial
        for beside, path in zip(partial, paths, strict=True):
            beside.replace(path)
    finally:
        for beside in partial:
            beside.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write ``data`` beside ``path``, then rename, so that no reader sees half a file.

    Several processes may do so at once: each writes to a file that has its process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with completed(path, mark=str(os.getpid())) as (beside,):
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


def unfinished_of(name: str) -> str | None:
    """The name of the file that a killed process was writing where it left one called ``name``; None for any other."""
    unfinished = re.fullmatch(r"\.(.+)\.(?:partial|[0-9]+)", name)
    return unfinished[1] if unfinished else None
