"""Whether a folder that a stage fills holds the stage's files alone: anything else stays as it is, and is named."""

import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from mergetime.core.atomic import unfinished_of
from mergetime.core.errors import UserError

Expected = Callable[[str], bool]
"""Whether a stage writes a file of this path below its folder, with slashes; that of an empty folder ends in one."""


def refuse_foreign(folder: Path, expected: Expected, owner: str) -> None:
    """Refuse a folder that holds anything but what the stage writes; a folder that is not there holds nothing.

    Links, special files and empty folders are no stage's, whatever they are called: what is written to a link ends up
    elsewhere.

    Args:
        folder: the folder to be filled; it may be reached through links.
        expected: the stage's files.
        owner: what they are files of, for the message.

    Raises:
        UserError: naming the first that is not the stage's.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder}: is no folder; move it elsewhere, then run again")
    for path, kind in _foreign(folder, expected) if folder.exists() else ():
        raise UserError(f"{path}: is {kind}, and none of the files of {owner}; move it elsewhere, then run again")


def files_called(names: Collection[str]) -> Expected:
    """The files of these names, their folders, and what a process that was killed has left beside them."""
    known = frozenset(names)

    def expected(path: str) -> bool:
        if path.endswith("/"):
            # Snakemake makes the folders of all outputs before a job starts.
            return any(name.startswith(path) for name in known)
        above, slash, name = path.rpartition("/")
        return f"{above}{slash}{unfinished_of(name) or name}" in known

    return expected


def _foreign(folder: Path, expected: Expected, below: str = "") -> Iterator[tuple[Path, str]]:
    """What is not the stage's, sorted, and what kind of file it is."""
    for path in sorted(folder.iterdir()):
        mode, name = path.lstat().st_mode, f"{below}{path.name}"
        if stat.S_ISLNK(mode):
            yield path, "a link"
        elif stat.S_ISDIR(mode):
            if not any(path.iterdir()) and not expected(f"{name}/"):
                yield path, "an empty folder"
            yield from _foreign(path, expected, f"{name}/")
        elif not stat.S_ISREG(mode):
            yield path, "no regular file"
        elif not expected(name):
            yield path, "a file"
