"""A study's results as a package for others: described, licensed, citable, and checkable.

The package is a folder with the tidy files of the study, a description of every column in the Parquet files themselves,
CITATION.cff, an RO-Crate (https://www.researchobject.org/ro-crate/specification/1.1, metadata in
ro-crate-metadata.json), and digests in the format of sha256sum. Tables and figures are rebuilt from it alone.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mergetime import __version__, papers
from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import UserError
from mergetime.core.folders import files_called, refuse_foreign
from mergetime.core.tables import Column
from mergetime.papers import Paper
from mergetime.publishing.markdown import code, escape
from mergetime.results import columns as tidy

LICENCE = "CC-BY-4.0"
"""SPDX identifier of the licence of the results (not of models, adapters or training data, which are not in here)."""
LICENCE_URL = "https://creativecommons.org/licenses/by/4.0/"
CONTENT = "Scores, counts, losses and hashes alone: no prompt, no response, no training example and no weight."

TABLES: dict[str, tuple[dict[str, Column], str]] = {
    "results.parquet": (tidy.RESULTS, "every metric of every model on every benchmark, with its standard error"),
    "samples.parquet": (tidy.SAMPLES, "the score of every model on every test item"),
    "curves.parquet": (tidy.CURVES, "the loss curves of all experts"),
    "costs.parquet": (tidy.COSTS, "what every artifact took: seconds, tokens, energy, memory"),
}
"""The files that every package has, their columns and what they hold."""
STUDY, CITATION, CRATE, README, CHECKSUMS = (
    "study.json",
    "CITATION.cff",
    "ro-crate-metadata.json",
    "README.md",
    "checksums.sha256",
)
CONFORMS_TO = "https://w3id.org/ro/crate/1.1"

_SHARE = "share from 0 to 1"
_NATS = "nats per response token"
_STEPS = "optimizer steps"
_UNITS: dict[str, dict[str, str]] = {
    "results.parquet": {"value": _SHARE, "stderr": _SHARE, "items": "items"},
    "samples.parquet": {"score": _SHARE},
    "curves.parquet": {
        **{"step": _STEPS, "t_star": _STEPS, "last_step": _STEPS, "train_loss": _NATS, "validation_loss": _NATS},
        **{"validation_accuracy": _SHARE, "tokens": "tokens", "tokens_per_second": "tokens per second"},
        **{"gpu_memory_mb": "MiB", "energy_j": "joules"},
    },
    "costs.parquet": {
        **{"wall_s": "seconds", "algorithm_s": "seconds", "validation_s": "seconds", "tokens": "tokens"},
        **{"energy_j": "joules", "peak_memory_mb": "MiB", "gpu_peak_memory_mb": "MiB"},
    },
    "analysis/bias_variance.parquet": {
        **{"value": "squared probability", "stderr": "squared probability", "examples": "examples"},
        **dict.fromkeys(
            ("slope", "slope_stderr", "slope_past_t_star", "slope_past_t_star_stderr"),
            "squared probability a doubling",
        ),
        "experts": "experts",
    },
    "analysis/barriers.parquet": {
        **{"barrier": _NATS, "barrier_linear": _NATS, "loss_first": _NATS, "loss_second": _NATS, "stderr": _NATS},
        "pairs": "pairs",
    },
    "analysis/mode_connectivity.parquet": {"loss": _NATS},
}
_LABEL = "none (a label)"
_ALL_UNITS = {"multiple": "T*", "pool_size": "experts", "base_parameters": "parameters"} | dict.fromkeys(
    ("seed", "draw", "candidate"), _LABEL
)
_PLAIN = "dimensionless, or as the description says"


@dataclass(frozen=True)
class Package:
    """What a package says about itself."""

    study: str
    date: str
    files: Mapping[str, bytes]
    paper: Paper

    @property
    def content(self) -> str:
        """What is in it and what is not."""
        return f"{CONTENT} {self.paper.notice}".strip()

    @property
    def title(self) -> str:
        """The title of the data set."""
        return f"mergetime: results of the study {self.study}"


def build(folder: Path, date: str) -> dict[str, bytes]:
    """The files of a study's package, by their path in it.

    Args:
        folder: the study's folder, results/{study}.
        date: the date of publication, YYYY-MM-DD.

    Raises:
        UserError: naming the file that is missing, or that has other columns than this version's.
    """
    described = reading.load(_existing(folder / STUDY))
    study = described.study
    analyses = sorted(file.relative_to(folder).as_posix() for file in folder.glob("analysis/*.parquet"))
    files: dict[str, bytes] = {name: _described(folder, name, study) for name in [*TABLES, *analyses]}
    files[STUDY] = (folder / STUDY).read_bytes()
    package = Package(study, date, files, papers.get(described.paper))
    files[CITATION] = _citation(package).encode()
    files[README] = _readme(package).encode()
    files[CRATE] = _crate(package).encode()
    files[CHECKSUMS] = "".join(f"{_digest(files[name])}  {name}\n" for name in sorted(files)).encode()
    return files


def clear(folder: Path, names: Collection[str]) -> None:
    """Remove what an earlier package has left in the folder of a new one.

    What lists its own files, as ``checksums.sha256`` does, is not asked which files are a package's.

    Args:
        folder: the folder, which need not be there.
        names: the files of the new package.

    Raises:
        UserError: naming a file that is none of a package's; nothing is removed then.
    """
    named = files_called(names)
    refuse_foreign(folder, lambda path: named(path) or _is_packed(folder / path), "a data package")
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_packed(file: Path) -> bool:
    """Whether a file is a package's Parquet file, which says so in its schema."""
    try:
        return b"mergetime" in (pq.read_schema(file).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def damages(folder: Path) -> list[str]:
    """What is wrong with a package: one line for each damaged or missing file, in the order of their names."""
    problems: dict[str, str] = {}
    for name, problem in _damages(folder):
        problems.setdefault(name, problem)
    return [f"{name}: {problem}" for name, problem in sorted(problems.items())]


def _damages(folder: Path) -> Iterator[tuple[str, str]]:
    """Every problem, the telling ones of a file first."""
    try:
        listed = _checksums((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        yield CHECKSUMS, "missing" if isinstance(error, OSError) else f"damaged: {error}"
        listed = {}
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


def _described(folder: Path, name: str, study: str) -> bytes:
    """A Parquet file with the meaning and unit of every column, and title and licence, in its schema."""
    table = pq.read_table(_existing(folder / name))
    if name in TABLES and table.schema.names != list(TABLES[name][0]):
        raise UserError(f"{folder / name}: its columns are not this version's; rebuild it with collect_results")
    meanings = (
        {column_name: column.meaning for column_name, column in TABLES[name][0].items()} if name in TABLES else {}
    )
    fields = []
    for field in table.schema:
        meaning = meanings.get(field.name) or _text(field.metadata, b"meaning")
        if not meaning:
            raise UserError(f"{folder / name}: column {field.name} has no description; rebuild it with this version")
        fields.append(field.with_metadata({"meaning": meaning, "unit": unit(name, field)}))
    about = {"title": f"{name} of the mergetime study {study}", "licence": LICENCE, "licence_url": LICENCE_URL}
    described = table.cast(pa.schema(fields)).replace_schema_metadata({**about, "mergetime": __version__})
    sink = pa.BufferOutputStream()
    pq.write_table(described, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def unit(name: str, field: pa.Field) -> str:
    """The unit of a column of the file ``name``; text and flags have none."""
    if not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
        return "none"
    return _UNITS.get(name, {}).get(field.name) or _ALL_UNITS.get(field.name, _PLAIN)


def _citation(package: Package) -> str:
    cited = package.paper.citation
    also = " and the paper whose study they repeat" if cited else ""
    content: dict[str, Any] = {
        "cff-version": "1.2.0",
        "message": f"If you use these results, please cite them{also}.",
        "type": "dataset",
        "title": package.title,
        "authors": [{"name": "The mergetime contributors"}],
        "license": LICENCE,
        "date-released": package.date,
        "version": __version__,
    }
    if cited:
        authors = [{"family-names": family, "given-names": given} for given, family in cited.authors]
        content["references"] = [{"type": "article", "title": cited.title, "authors": authors}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def _readme(package: Package) -> str:
    lines = [f"# {package.title}", "", f"Licence of the results: {LICENCE} ({LICENCE_URL}). {package.content}", ""]
    lines += ["| file | what it holds |", "|---|---|"]
    lines += [f"| {code(name)} | {escape(_about(name))} |" for name in [*package.files, CRATE, CHECKSUMS]]
    analyses = "PACKAGE/analysis " if any(name.startswith("analysis/") for name in package.files) else ""
    lines += [
        "",
        "Every Parquet file describes its columns: `pyarrow.parquet.read_schema(file)` gives the meaning and the unit",
        "of each field as metadata.",
        "",
        "To rebuild its tables, or a single one or a figure by its name, put the files where a clone of mergetime",
        "expects them, and ask for it:",
        "",
        "```console",
        f"mkdir -p results/{package.study}",
        f"cp -r PACKAGE/study.json PACKAGE/*.parquet {analyses}results/{package.study}/",
        f"snakemake tables --configfile results/{package.study}/study.json",
        "```",
        "",
        "study.json comes first, because Snakemake would collect results anew that are older than it. Add `-n` to see",
        "that nothing but make_table would run.",
        "",
        "To check that it is whole: `sha256sum -c checksums.sha256` in here, or in a clone",
        "`python scripts/verify_package.py PACKAGE`.",
        "",
    ]
    return "\n".join(lines)


def _crate(package: Package) -> str:
    """RO-Crate 1.1: the metadata descriptor, the root data set, its files, their columns, and what these refer to."""
    parts, cited = sorted(package.files), package.paper.citation
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": package.title,
        "description": f"{package.paper.about} {package.content}",
        "datePublished": package.date,
        "license": {"@id": LICENCE_URL},
        "author": {"@id": "#authors"},
        **({"citation": {"@id": "#paper"}} if cited else {}),
        "hasPart": [{"@id": name} for name in parts],
    }
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": CONFORMS_TO},
        "about": {"@id": "./"},
    }
    others = [
        {"@id": LICENCE_URL, "@type": "CreativeWork", "name": LICENCE, "url": LICENCE_URL},
        {"@id": "#authors", "@type": "Organization", "name": "The mergetime contributors"},
        *([{"@id": "#paper", "@type": "ScholarlyArticle", "name": cited.title}] if cited else []),
        {"@id": "#mergetime", "@type": "SoftwareApplication", "name": "mergetime", "softwareVersion": __version__},
    ]
    entities = [entity for name in parts for entity in _file_entities(name, package.files[name])]
    context = [f"{CONFORMS_TO}/context", {"sha256": "https://schema.org/sha256"}]
    return json.dumps({"@context": context, "@graph": [descriptor, root, *entities, *others]}, indent=1) + "\n"


def _file_entities(name: str, content: bytes) -> list[dict[str, Any]]:
    """A file, and for a Parquet file its columns."""
    kinds = {".parquet": "application/vnd.apache.parquet", ".json": "application/json", ".md": "text/markdown"}
    entity: dict[str, Any] = {
        "@id": name,
        "@type": "File",
        "name": name,
        "description": _about(name),
        "encodingFormat": kinds.get(Path(name).suffix, "text/plain"),
        "contentSize": str(len(content)),
        "sha256": _digest(content),
        "license": {"@id": LICENCE_URL},
    }
    if not name.endswith(".parquet"):
        return [entity]
    columns = [
        {
            "@id": f"#{name}/{field.name}",
            "@type": "PropertyValue",
            "name": field.name,
            "description": _text(field.metadata, b"meaning"),
            "unitText": _text(field.metadata, b"unit"),
        }
        for field in pq.read_schema(pa.BufferReader(content))
    ]
    return [{**entity, "variableMeasured": [{"@id": column["@id"]} for column in columns]}, *columns]


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
    if _text(schema.metadata, b"licence") != LICENCE:
        yield f"its schema does not state the licence {LICENCE}"
    for field in schema:
        if not _text(field.metadata, b"meaning") or not _text(field.metadata, b"unit"):
            yield f"column {field.name} has no description or unit"


def _crate_problems(folder: Path, present: set[str]) -> Iterator[tuple[str, str]]:
    try:
        graph = json.loads((folder / CRATE).read_text())["@graph"]
        entities = {entity["@id"]: entity for entity in graph}
        conforms = entities[CRATE]["conformsTo"]["@id"]
        root = entities[entities[CRATE]["about"]["@id"]]
        parts = {part["@id"] for part in root["hasPart"]}
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


def _about(name: str) -> str:
    """What a file of the package holds."""
    fixed = {
        STUDY: "the study's config with every default filled in; a configfile for Snakemake",
        CITATION: "how to cite it",
        CRATE: "machine-readable description (RO-Crate 1.1)",
        README: "what is in here, and how to use it",
        CHECKSUMS: "SHA-256 of every other file",
    }
    if name in TABLES:
        return TABLES[name][1]
    return fixed.get(name) or f"the analysis {Path(name).name.removesuffix('.parquet')}, tidy"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text(metadata: Mapping[bytes, bytes] | None, key: bytes) -> str:
    # Damage may have left bytes that are no text: they differ from every text that is looked for.
    return (metadata or {}).get(key, b"").decode(errors="replace")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the study, or `snakemake collect_results`, first")
    return path
