"""A person's folder for a merge: whatever lies there that no merge wrote stays as it is."""

import fcntl
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergetime.artifacts.files import read_json
from mergetime.artifacts.forms import FORMS
from mergetime.artifacts.names import MODEL_INDEX, MODEL_SHARDS
from mergetime.core.atomic import unfinished_of
from mergetime.core.errors import UserError
from mergetime.core.provenance import sha256

RECORD = "merged.json"
STAGE = "merge_experts"
_UNFINISHED = ".merge_unfinished"
"""Lies in a folder from the first file of a merge to its record, locked as long as the merge lives.

Where a kill left it, files of a merge's names are that merge's."""
_WRITTEN = (RECORD, MODEL_INDEX, MODEL_SHARDS, *(file for form in FORMS.values() for file in form.files))


@contextmanager
def claimed(out: Path, beside: Collection[str] = ()) -> Iterator[Callable[[], list[Path]]]:
    """Hold the folder for a merge that is written inside; it may be new, empty, or an earlier merge's.

    What is yielded removes the files of the earlier merge that this one has not written, and names those that it has,
    for its record.

    Args:
        out: the folder.
        beside: the names of files that the merge may write beside its weights.

    Raises:
        UserError: where it holds a file that no merge wrote, or one that changed since its merge, or where another
            merge is writing into it.
    """
    before = _files(out)
    _check(out, before, beside)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        yield from _held(out, before, made)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    if (out / _UNFINISHED).is_symlink():
        raise UserError(f"{out / _UNFINISHED}: is a link; remove it, or give --out another folder")
    mark = os.open(out / _UNFINISHED, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{out}: another merge is writing there; wait for it, or give --out another folder") from error
    finally:
        os.close(mark)


def _held(out: Path, before: dict[Path, int], made: list[Path]) -> Iterator[Callable[[], list[Path]]]:

    def written() -> list[Path]:
        files = _files(out)
        for path in files.keys() - {out / RECORD}:
            if files[path] == before.get(path):
                path.unlink()
        return sorted(_files(out).keys() - {out / RECORD})

    try:
        yield written
    except BaseException:
        if _files(out) == before:
            (out / _UNFINISHED).unlink()
            _remove_empty([*out.rglob("*"), *made])
        raise
    (out / _UNFINISHED).unlink()


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in sorted(folders, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _files(out: Path) -> dict[Path, int]:
    """The files below a folder with the times of their last change; without what a kill may leave."""
    return {
        path: path.lstat().st_mtime_ns
        for path in out.rglob("*")
        if path.name != _UNFINISHED and unfinished_of(path.name) is None
        if path.is_symlink() or not path.is_dir()
    }


def _check(out: Path, files: dict[Path, int], beside: Collection[str]) -> None:
    killed = (out / _UNFINISHED).is_file()
    record = read_json(out / RECORD, str(out)) if out / RECORD in files else {}
    outputs = record.get("outputs") if record.get("stage") == STAGE else None
    listed = outputs if isinstance(outputs, dict) else {}
    for path in sorted(files):
        name = path.relative_to(out).as_posix()
        if name == RECORD and listed:
            continue
        is_a_merges = name in beside or any(fnmatch.fnmatchcase(name, pattern) for pattern in _WRITTEN)
        if killed and not path.is_symlink() and (is_a_merges or name in listed):
            continue
        if name not in listed:
            raise UserError(f"{out}: holds {name}, which no merge wrote; give --out another folder")
        if path.is_symlink() or sha256(path) != listed[name]:
            raise UserError(f"{out}: {name} has changed since its merge; give --out another folder")
