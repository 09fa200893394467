"""A person's folder for a merge: whatever lies there that no merge wrote stays as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergetime.artifacts.files import read_json
from mergetime.core.errors import UserError
from mergetime.core.provenance import sha256

RECORD = "merged.json"
STAGE = "merge_experts"
_UNFINISHED = ".merge_unfinished"
"""Lies in a folder from the first file of a merge to its record: all beside it is that merge's, whatever killed it."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the folder for a merge that is written inside; it may be new, empty, or an earlier merge's.

    Raises:
        UserError: where it holds a file that no merge wrote, or one that changed since its merge.
    """
    before = _files(out)
    _check(out, before)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    (out / _UNFINISHED).touch()
    try:
        yield
    except BaseException:
        if _files(out) == before:
            (out / _UNFINISHED).unlink()
            for folder in made:
                folder.rmdir()
        raise
    (out / _UNFINISHED).unlink()


def written(out: Path) -> list[Path]:
    """The files of the merge in a folder that was claimed for it, but for its record."""
    return sorted(path for path in _files(out) if path != out / RECORD)


def _files(out: Path) -> dict[Path, int]:
    """The files below a folder with the times of their last change; without what a kill may leave."""
    return {
        path: path.lstat().st_mtime_ns
        for path in out.rglob("*")
        if path.name != _UNFINISHED and not (path.name[0] == "." and path.suffix == ".partial")
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
