"""A person's folder for a merge: whatever lies there that no merge wrote stays as it is."""

import fcntl
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergetime.artifacts.files import read_json
from mergetime.artifacts.forms import FORMS
from mergetime.artifacts.names import MODEL_INDEX, MODEL_SHARDS
from mergetime.core.atomic import unfinished_of
from mergetime.core.errors import UserError
from mergetime.core.folders import files_called, refuse_foreign
from mergetime.core.provenance import sha256

RECORD = "merged.json"
STAGE = "merge_experts"
_UNFINISHED = ".merge_unfinished"
"""Lies in a folder from the first file of a merge to its record, locked as long as the merge lives.

Where a kill left it, files of a merge's names are that merge's."""
_WRITTEN = (RECORD, MODEL_INDEX, *(file for form in FORMS.values() for file in form.files))


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
    _refuse_others(out, beside)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        before = _changed(out)

        def written() -> list[Path]:
            for path, changed in _changed(out).items():
                if changed == before.get(path) and path != out / RECORD:
                    path.unlink()
            return sorted(_changed(out).keys() - {out / RECORD})

        try:
            yield written
        except BaseException:
            if _changed(out) == before:
                (out / _UNFINISHED).unlink()
                _remove_empty([*out.rglob("*"), *made])
            raise
        (out / _UNFINISHED).unlink()


def check_claim(out: Path, beside: Collection[str] = ()) -> None:
    """Refuse what :func:`claimed` refuses, and write nothing.

    Raises:
        UserError, OSError: as there, also where the folder cannot be made or written into.
    """
    _refuse_others(out, beside)
    with suppress(FileNotFoundError):
        out.stat()  # says where a part of the path is a file
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{above}: cannot be written into; give --out another folder, or yourself the right to it")
    if (out / _UNFINISHED).exists():
        with _locked(out):
            pass


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of the folder's mark, which is made where there is none."""
    mark = os.open(out / _UNFINISHED, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{out}: another merge is writing there; wait for it, or give --out another folder") from error
    finally:
        os.close(mark)


def _refuse_others(out: Path, beside: Collection[str]) -> None:
    record = read_json(out / RECORD, str(out)) if (out / RECORD).is_file() else {}
    outputs = record.get("outputs") if record.get("stage") == STAGE else None
    digests = outputs if isinstance(outputs, dict) else {}
    killed = (out / _UNFINISHED).is_file()
    named = files_called(
        [_UNFINISHED, *digests, *([RECORD] if digests else []), *([*_WRITTEN, *beside] if killed else [])]
    )

    def expected(path: str) -> bool:
        return named(path) or (killed and fnmatch.fnmatchcase(unfinished_of(path) or path, MODEL_SHARDS))

    refuse_foreign(out, expected, "an earlier merge")
    for name, digest in sorted(digests.items()) if not killed else ():
        if (out / name).is_file() and sha256(out / name) != digest:
            raise UserError(f"{out}: {name} has changed since its merge; give --out another folder")


def _changed(out: Path) -> dict[Path, int]:
    """The files of a merge in a folder with the times of their last change; without what a kill may leave."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != _UNFINISHED)
    return {path: path.stat().st_mtime_ns for path in files if unfinished_of(path.name) is None}


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in sorted(folders, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
