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
        *(("domain", name, domain.dataset, domain.revision) for name, domain in study.domains.items()),
        *(("benchmark", name, benchmark.dataset, benchmark.revision) for name, benchmark in study.benchmarks.items()),
        *(("judge", name, judge.model, judge.revision) for name, judge in study.judges.items()),
        *(("imported expert", name, expert.model, expert.revision) for name, expert in study.experts.imported.items()),
    ]
    return listing(["what", "id", "repository", "commit"], rows)


def versions(written: Iterable[dict[str, Any]]) -> Listing:
    """Versions of packages, and machines, that the records name; more than one where stages differ."""
    by_name: dict[str, dict[str, None]] = {}
    for record in written:
        for name, value in [*record["versions"].items(), *record["machine"].items()]:
            if not name.endswith("_mb"):
                by_name.setdefault(name, {})[value] = None
    return listing(["package or machine", "versions"], [(name, ", ".join(values)) for name, values in by_name.items()])


def code(written: Iterable[dict[str, Any]]) -> Listing:
    """The digest of the code by stage; more than one where artifacts of a stage were made by different code."""
    by_stage: dict[str, dict[str, int]] = {}
    for record in written:
        counted = by_stage.setdefault(record["stage"], {})
        counted[record["code"]] = counted.get(record["code"], 0) + 1
    rows = [(stage, digest, count) for stage, counted in by_stage.items() for digest, count in counted.items()]
    return listing(["stage", "digest of its code", "artifacts"], rows, numbers=(2,))


def digests(files: Iterable[Path], folder: Path) -> Listing:
    """SHA-256 of files, by their path below the study's folder."""
    rows = [(file.relative_to(folder).as_posix(), provenance.sha256(file)) for file in files]
    return listing(["file", "SHA-256"], rows)
