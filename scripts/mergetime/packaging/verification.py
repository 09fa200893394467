"""Whether a study's files are as the records beside them say, and what makes again those that are not."""

import functools
import json
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergetime.artifacts.forms import DELTA
from mergetime.core import provenance
from mergetime.packaging import integrity

_OF_PAPERS = ("make_table", "make_figure", "judge_claims", "compare_published", "audit_published")
"""Stages whose files a study has no more where its paper, or what a table needs of it, has changed."""
_PACKAGE, _CHECKPOINTS = "package", "checkpoints"
"""Folders of a study without records: one has checksums of its own, the other is a training under way."""


@dataclass(frozen=True)
class RecordedFile:
    """A file that a record lists; what is ``optional`` may have been removed after its use."""

    path: Path
    sha256: str
    optional: bool = False


@dataclass(frozen=True)
class Damage:
    """A file that is damaged or missing, what is wrong with it, and the target that Snakemake makes it again with.

    One that is ``outdated`` is whole, but made from other files than are there now.
    """

    path: Path
    problem: str
    target: Path
    outdated: bool = False

    def line(self, given: str = "") -> str:
        """All of that in one line; ``given`` is what the command names beside the target, such as a configfile.

        The command forces a job instead of deleting a file first: were the record deleted and the job to fail, nobody
        would know of the damage any more.
        """
        command = f"snakemake {shlex.quote(str(self.target))} --force {given}".rstrip()
        return f"{self.path}: {self.problem}; to make it again: {command}"


@dataclass(frozen=True)
class Report:
    """How many records and files of theirs were compared, what is wrong with them, and what the study has no more."""

    records: int
    files: int
    damages: tuple[Damage, ...]
    left_over: tuple[Path, ...] = ()


def verify(
    study: Path,
    fetched: Iterable[Path] = (),
    *,
    keeps_dense: bool = True,
    published: Collection[Path] | None = None,
) -> Report:
    """Compare every file that a record lists with the digest there.

    What has not been made or fetched yet has no record, and does not count as damage.

    Args:
        study: the study's folder, results/{study}.
        fetched: records of what the study fetches, wherever they are.
        keeps_dense: whether merges written as dense task vectors stay; where not, they may be missing.
        published: the tables, figures and verdicts that the study has, as Parquet files; records of others are left
            over and compared with nothing. None: all that there are.
    """
    damages: list[Damage] = []
    records = files = 0
    unread: dict[Path, str] = {}
    known: set[Path] = set()
    others: list[tuple[Path, Path]] = []
    left_over: list[Path] = []
    digest = functools.cache(provenance.sha256)
    # An imported expert is fetched, and stands among the study's own files.
    for path in sorted({*_jsons(study), *(file for file in fetched if file.is_file())}):
        try:
            record = _record(path)
        except (OSError, ValueError, RecursionError) as error:
            unread[path] = f"unreadable: {' '.join(str(error).split())}"
            continue
        if record is None:
            continue
        if published is not None and record["stage"] in _OF_PAPERS and path.with_suffix(".parquet") not in published:
            left_over.append(path)
            continue
        records += 1
        for listed in _listed(path, record, keeps_dense):
            files += 1
            known.add(listed.path)
            damages += (Damage(listed.path, problem, path) for problem in _problems(listed, path))
        others += ((path, file) for file in _others(record, digest))
        if record["stage"] == "make_package":
            damages += _in_package(path)
    # What was made from a file that is damaged now is whole: the file is the one to make again.
    damaged = {damage.path for damage in damages} | unread.keys()
    damages += (
        Damage(path, f"made from another {file} than is there now", path, outdated=True)
        for path, file in others
        if file not in damaged
    )
    # A JSON that a record lists is compared by its digest, whatever is in it.
    damages += (Damage(path, problem, path) for path, problem in unread.items() if path not in known)
    once = {damage.path: damage for damage in reversed(damages)}
    return Report(records, files, tuple(once[path] for path in sorted(once)), tuple(left_over))


def _jsons(study: Path) -> list[Path]:
    return sorted(
        file
        for file in study.rglob("*.json")
        if file.relative_to(study).parts[0] not in (_PACKAGE, _CHECKPOINTS) and file.is_file()
    )


def _record(path: Path) -> dict[str, Any] | None:
    """The record in a JSON file; None for a JSON that is something else, such as an adapter's configuration.

    Raises:
        ValueError: for what is no JSON, or a record without the digests of its files.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not {"stage", "outputs"} & content.keys():
        return None
    parts = [content.get("outputs"), _facts(content).get("files_sha256", {})]
    if "stage" not in content or not all(map(_are_digests, parts)):
        raise ValueError("a record without its stage or the digests of its files")
    return content


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    facts = record.get("facts")
    return facts if isinstance(facts, dict) else {}


def _are_digests(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values())


def _listed(path: Path, record: dict[str, Any], keeps_dense: bool) -> Iterator[RecordedFile]:
    """The files of a record: those beside it or below, and of an expert also those of every duration."""
    for name, digest in (record["outputs"] | _facts(record).get("files_sha256", {})).items():
        removed = not keeps_dense and record["stage"] == "merge_experts" and name == DELTA.weights
        yield RecordedFile(path.parent / name, digest, removed)


def _problems(listed: RecordedFile, record: Path) -> Iterator[str]:
    if not listed.path.exists():
        if not listed.optional:
            yield f"missing, though {record} lists it"
        return
    try:
        digest = provenance.sha256(listed.path)
    except OSError as error:
        yield f"unreadable: {error.strerror}"
        return
    if digest != listed.sha256:
        yield f"damaged: its SHA-256 is not the one in {record}"


def _others(record: dict[str, Any], digest: Callable[[Path], str]) -> Iterator[Path]:
    """The files that something was made from and that are others now, which a wrong clock can hide from Snakemake.

    What is gone, as dense merges that are not kept, does not count as damage.
    """
    inputs = record.get("inputs")
    for source in inputs.values() if isinstance(inputs, dict) else ():
        if isinstance(source, dict) and (path := Path(source["path"])).exists() and digest(path) != source["sha256"]:
            yield path


def _in_package(record: Path) -> Iterator[Damage]:
    folder = record.with_suffix("")
    for line in integrity.damages(folder):
        name, _, problem = line.partition(": ")
        yield Damage(folder / name, problem, record)
