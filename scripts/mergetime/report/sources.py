"""Where a study came from: what was fetched at which commits, with which versions and code, into which files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergetime.config.study import Study
from mergetime.core import provenance
from mergetime.report.listing import Listing, listing


def fetched(study: Study) -> Listing:
    """Every model, data set and benchmark with its commit on the hub."""
    rows = [
        *(("base", name, base.model, base.revision) for name, base in study.bases.items()),
        *(("domain", name, one.dataset, one.revision) for name, one in study.domains.items()),
        *(("benchmark", name, one.dataset, one.revision) for name, one in study.benchmarks.items()),
        *(("judge", name, one.model, one.revision) for name, one in study.judges.items()),
        *(("imported expert", name, one.model, one.revision) for name, one in study.experts.imported.items()),
    ]
    return listing(["what", "id", "repository", "commit"], rows)


def versions(written: Iterable[dict[str, Any]]) -> Listing:
    """Versions of packages, and machines, that the records name; more than one where stages differ."""
    found: dict[str, dict[str, None]] = {}
    for one in written:
        for name, value in [*one["versions"].items(), *one["machine"].items()]:
            if not name.endswith("_mb"):
                found.setdefault(name, {})[value] = None
    return listing(["package or machine", "versions"], [(name, ", ".join(values)) for name, values in found.items()])


def code(written: Iterable[dict[str, Any]]) -> Listing:
    """The digest of the code by stage; more than one where artifacts of a stage were made by different code."""
    found: dict[str, dict[str, int]] = {}
    for one in written:
        counted = found.setdefault(one["stage"], {})
        counted[one["code"]] = counted.get(one["code"], 0) + 1
    rows = [(stage, digest, count) for stage, counted in found.items() for digest, count in counted.items()]
    return listing(["stage", "digest of its code", "artifacts"], rows, numbers=(2,))


def digests(files: Iterable[Path], folder: Path) -> Listing:
    """SHA-256 of files, by their path below the study's folder."""
    rows = [(file.relative_to(folder).as_posix(), provenance.sha256(file)) for file in files]
    return listing(["file", "SHA-256"], rows)
