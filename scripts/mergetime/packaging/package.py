"""A study's results as a package for others: described, licensed, citable, and checkable.

The package is a folder with the tidy files of the study, a description of every column in the Parquet files themselves,
CITATION.cff, an RO-Crate (https://www.researchobject.org/ro-crate/specification/1.1, metadata in
ro-crate-metadata.json), and digests in the format of sha256sum. Tables and figures are rebuilt from it alone.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mergetime import __version__, papers
from mergetime.config import reading
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
        meaning = meanings.get(field.name) or metadata_text(field.metadata, b"meaning")
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
            "description": metadata_text(field.metadata, b"meaning"),
            "unitText": metadata_text(field.metadata, b"unit"),
        }
        for field in pq.read_schema(pa.BufferReader(content))
    ]
    return [{**entity, "variableMeasured": [{"@id": column["@id"]} for column in columns]}, *columns]


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


def metadata_text(metadata: Mapping[bytes, bytes] | None, key: bytes) -> str:
    """A text in a Parquet schema's metadata; empty where there is none."""
    # Damage may have left bytes that are no text: they differ from every text that is looked for.
    return (metadata or {}).get(key, b"").decode(errors="replace")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the study, or `snakemake collect_results`, first")
    return path
