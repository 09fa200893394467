"""A person's folder for a merge: whatever lies there that no merge wrote stays as it is."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergetime.artifacts.files import read_json
from mergetime.core.atomic import unfinished_of
from mergetime.core.errors import UserError
from mergetime.core.provenance import sha256

RECORD = "merged.json"
STAGE = "merge_experts"
_UNFINISHED = ".merge_unfinished"
"""Lies in a folder from the first file of a merge to its record: all beside it is that merge's, whatever killed it."""


@contextmanager
def claimed(out: Path) -> Iterator[Callable[[], list[Path]]]:
    """Hold the folder for a merge that is written inside; it may be new, empty, or an earlier merge's.

    What is yielded removes the files of the earlier merge that this one has not written, and names those that it has,
    for its record.

    Raises:
        UserError: where it holds a file that no merge wrote, or one that changed since its merge.
    """
    before = _files(out)
    _check(out, before)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    (out / _UNFINISHED).touch()

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


def _check(out: Path, files: dict[Path, int]) -> None:
    if not files or (out / _UNFINISHED).is_file():
        return
    record = read_json(out / RECORD, str(out)) if out / RECORD in files else {}
    outputs = record.get("outputs") if record.get("stage") == STAGE else None
    listed = outputs if isinstance(outputs, dict) else {}
    for path, changed in sorted(files.items()):
        name = path.relative_to(out).as_posix()
        if name == RECORD and listed:
            continue
        if name not in listed:
            raise UserError(f"{out}: holds {name}, which no merge wrote; give --out another folder")
        if changed > files[out / RECORD] and sha256(path) != listed[name]:
            raise UserError(f"{out}: {name} has changed since its merge; give --out another folder")
