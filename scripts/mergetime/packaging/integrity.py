"""Whether a package is whole: its checksums, its files, what they say of themselves.

It proves that nothing changed since the package was made, not who made it.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import UserError, printable
from mergetime.packaging.package import (
    CHECKSUMS,
    CITATION,
    CONFORMS_TO,
    CRATE,
    LICENCE,
    README,
    STUDY,
    TABLES,
    metadata_text,
)


def damages(folder: Path) -> list[str]:
    """What is wrong with a package: one line for each damaged or missing file, in the order of their names."""
    problems: dict[str, str] = {}
    for name, problem in _damages(folder):
        problems.setdefault(name, problem)
    return [printable(f"{name}: {problem}") for name, problem in sorted(problems.items())]


def _damages(folder: Path) -> Iterator[tuple[str, str]]:
    """Every problem, the telling ones of a file first."""
    listed: dict[str, str] = {}
    if _is_link(folder, CHECKSUMS):
        yield CHECKSUMS, "a link; a package holds its files itself"
    elif not (folder / CHECKSUMS).is_file():
        yield CHECKSUMS, "not a regular file" if (folder / CHECKSUMS).exists() else "missing"
    else:
        try:
            listed = _checksums((folder / CHECKSUMS).read_text())
        except ValueError as error:
            yield CHECKSUMS, f"damaged: {error}"
    for name in {*TABLES, STUDY, CITATION, CRATE, README, *listed}:
        if _is_link(folder, name):
            yield name, "a link; a package holds its files itself"
        elif (folder / name).exists() and not (folder / name).is_file():
            yield name, "not a regular file"
        elif not (folder / name).is_file():
            old = listed and name not in listed
            yield name, f"missing, and not in {CHECKSUMS}: an earlier version made no such file" if old else "missing"
        elif name not in listed:
            yield name, f"not in {CHECKSUMS}"
        elif provenance.sha256(folder / name) != listed[name]:
            yield name, "damaged: its SHA-256 is not the recorded one"
    inside = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    yield from ((name, "a link; a package holds its files itself") for name in inside if _is_link(folder, name))
    present = {name for name, file in inside.items() if file.is_file() and not _is_link(folder, name)}
    yield from ((name, f"not in {CHECKSUMS}") for name in present - {CHECKSUMS, *listed})
    for name in sorted(present):
        if name.endswith(".parquet"):
            yield from ((name, problem) for problem in _schema_problems(folder / name, name))
    if STUDY in present:
        try:
            reading.load(folder / STUDY)
        except (UserError, ValueError) as error:
            yield STUDY, f"damaged: {error}"
    if CRATE in present:
        yield from _crate_problems(folder, present)


def _is_link(folder: Path, name: str) -> bool:
    """Whether a path of a package, or a folder on the way to it, is a link."""
    path = PurePosixPath(name)
    return any((folder / part).is_symlink() for part in (path, *path.parents[:-1]))


def _schema_problems(path: Path, name: str) -> Iterator[str]:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError):
        yield "damaged: not a Parquet file"
        return
    if name in TABLES:
        wanted = tables.arrow_schema(TABLES[name][0])
        if [(field.name, field.type) for field in schema] != [(field.name, field.type) for field in wanted]:
            missing = ", ".join(column for column in wanted.names if column not in schema.names)
            yield "its columns are not this version's" + (f"; it lacks {missing}" if missing else "")
    if metadata_text(schema.metadata, b"licence") != LICENCE:
        yield f"its schema does not state the licence {LICENCE}"
    for field in schema:
        if not metadata_text(field.metadata, b"meaning") or not metadata_text(field.metadata, b"unit"):
            yield f"column {field.name} has no description or unit"


def _crate_problems(folder: Path, present: set[str]) -> Iterator[tuple[str, str]]:
    try:
        graph = json.loads((folder / CRATE).read_text())["@graph"]
        entities = {entity["@id"]: entity for entity in graph}
        conforms = entities[CRATE]["conformsTo"]["@id"]
        root = entities[entities[CRATE]["about"]["@id"]]
        parts = {part["@id"] for part in root["hasPart"]}
        if not all(isinstance(part, str) for part in parts):
            raise TypeError("hasPart names a part by something other than text")
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        yield CRATE, f"damaged: no RO-Crate ({error})"
        return
    if conforms != CONFORMS_TO:
        yield CRATE, f"conforms to {conforms}, not to {CONFORMS_TO}"
    for key in ("name", "description", "datePublished", "license"):
        if not root.get(key):
            yield CRATE, f"its root data set has no {key}"
    for name in sorted(parts | present - {CRATE, CHECKSUMS}):
        if name not in parts:
            yield CRATE, f"does not list {name}"
        elif name not in present:
            yield name, "missing"
        elif entities.get(name, {}).get("sha256") != provenance.sha256(folder / name):
            yield name, f"damaged: its SHA-256 is not the one in {CRATE}"


def _checksums(text: str) -> dict[str, str]:
    """Digests by path, from lines of sha256sum."""
    digests = {}
    for number, line in enumerate(text.splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ValueError(f"line {number} is not a digest and a path")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"line {number} leads out of the package: {name}")
        digests[name] = digest
    return digests
