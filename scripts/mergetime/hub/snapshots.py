"""What a repository holds at a commit, as the hub lists it, and whether that is what is on disk."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergetime.artifacts.files import is_plain_name
from mergetime.artifacts.names import MODEL_INDEX
from mergetime.core.errors import UserError
from mergetime.core.provenance import sha256

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""What the safetensors library accepts."""


@dataclass(frozen=True)
class Listed:
    """A file in the hub's listing: its SHA-256 if it is a large one (LFS), else git's digest of it as a blob."""

    size: int
    sha256: str | None
    blob: str


def listing(name: str, kind: str, revision: str) -> dict[str, Listed]:
    """The files of a repository at a commit, by path; ``kind`` is ``model`` or ``dataset``.

    Raises:
        UserError: where the hub lists a file that has no size or digest, or a name of no file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(name, recursive=True, revision=revision, repo_type=kind)
    owner = f"{'data set' if kind == 'dataset' else kind} {name} at {revision}"
    return {file.path: _listed(owner, file) for file in entries if isinstance(file, RepoFile)}


def _listed(owner: str, file: "RepoFile") -> Listed:
    """An entry of the listing, which may say anything."""
    known = Listed(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
    if not isinstance(file.path, str) or not file.path.isprintable():
        raise UserError(f"{owner}: the hub lists {file.path!r}, which is no name of a file; choose another revision")
    if not isinstance(known.size, int) or known.size < 0 or not isinstance(known.sha256 or known.blob, str):
        raise UserError(f"{owner}: the hub lists {file.path} without its size or its digest; choose another revision")
    return known


@dataclass(frozen=True)
class DamagedFile:
    """What is wrong with a fetched file, and what is deleted of it so that it can be fetched anew.

    ``deleted`` are the file and, in the client's cache, the link that leads to it; nothing that is not the client's.
    """

    wrong: str
    deleted: tuple[Path, ...] = ()


def damage(file: Path, listed: Listed, home: Path) -> DamagedFile | None:
    """What of a fetched file is not as the hub lists it; None if all is.

    Args:
        file: the file, or a link to it within ``home``.
        listed: the hub's listing of it.
        home: the folder that the client fetches into.
    """
    if not os.path.lexists(file):
        return DamagedFile("is missing")
    inside, real, folder = (Path(os.path.realpath(path)) for path in (home, file, file.parent))
    if not folder.is_relative_to(inside):
        return DamagedFile(f"is in {folder}, outside {home}")
    if not real.is_relative_to(inside):
        return DamagedFile(f"leads to {real}, outside {home}")
    if not os.path.lexists(real):
        return DamagedFile("is a link to nothing", (file,))
    if not stat.S_ISREG(real.lstat().st_mode):
        return DamagedFile("is no regular file")
    wrong = _difference(real, listed)
    return DamagedFile(wrong, tuple(dict.fromkeys([real, file]))) if wrong else None


def _difference(file: Path, listed: Listed) -> str | None:
    size = file.stat().st_size
    if size != listed.size:
        return f"has {size} bytes, the hub lists {listed.size}"
    if listed.sha256 and (digest := sha256(file)) != listed.sha256:
        return f"has SHA-256 {digest}, the hub lists {listed.sha256}"
    if (
        not listed.sha256
        and re.fullmatch(r"[0-9a-f]{40}", listed.blob)
        and (digest := blob_digest(file)) != listed.blob
    ):
        return f"has the git digest {digest}, the hub lists {listed.blob}"
    return None


def damaged(folder: Path, files: Mapping[str, Listed], home: Path) -> dict[str, DamagedFile]:
    """What is wrong with files below ``folder``, by path; ``home`` as in :func:`damage`."""
    problems = {path: damage(folder / path, listed, home) for path, listed in files.items()}
    return {path: wrong for path, wrong in problems.items() if wrong}


def blob_digest(file: Path) -> str:
    """The digest that git gives a file's content."""
    digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def broken_weights(folder: Path) -> str | None:
    """Why the safetensors files of a folder cannot be loaded, naming one; None if each is whole and none is missing."""
    for file in sorted(folder.glob("*.safetensors")):
        wrong = _broken_file(file)
        if wrong:
            return f"{file.name} {wrong}"
    index = folder / MODEL_INDEX
    if index.is_file():
        try:
            shards: Iterable[str] = json.loads(index.read_text())["weight_map"].values()
            missing = sorted({name for name in shards if not (is_plain_name(name) and (folder / name).is_file())})
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
            return f"{MODEL_INDEX} is no index of shards"
        if missing:
            return f"{MODEL_INDEX} names {', '.join(missing[:3])}, which the repository does not hold"
    return None


def _broken_file(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(_LONGEST_HEADER, size - _LENGTH_BYTES):
            return f"is no safetensors file: its {size} bytes do not hold the header that they announce"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError, IndexError):
            return "is no safetensors file: its header is not JSON with data_offsets"
    needed = _LENGTH_BYTES + length + max(ends, default=0)
    return None if needed == size else f"has {size} bytes, its header describes {needed}"
