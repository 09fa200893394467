"""Evaluate subjects one after another on the benchmarks of a split; the base is loaded once."""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergetime.artifacts.forms import weight_files
from mergetime.config.fields import Strict
from mergetime.config.sections import parse_json, parse_json_list
from mergetime.core import provenance
from mergetime.core.errors import main
from mergetime.evaluation import suite, writing
from mergetime.evaluation.options import SuiteOptions


class EvaluatedSubject(Strict):
    """What is evaluated; ``folder`` holds its weights, None being the base; its files begin with ``out``."""

    subject: str
    folder: Path | None = None
    out: Path


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--base", type=Path, required=True, help="folder of the base, as fetched")
    add(
        "--suite",
        required=True,
        metavar="JSON",
        help="an object: split, modality, benchmarks (name, domain, benchmark as in a config, folders of its data by"
        " configuration), validation_loss (Parquet by domain), evaluation as in a config, cache (folder)",
    )
    add(
        "--subjects",
        required=True,
        metavar="JSON",
        help="a list of objects: subject (for the record), folder (null: the base), out (path that its files begin"
        " with, such as .../test)",
    )
    add("--member", action="append", default=[], metavar="NAME=PATH", help="an expert behind the subjects; repeat")
    options = parser.parse_args()

    suite_options = parse_json(SuiteOptions, options.suite, "--suite")
    subjects = parse_json_list(EvaluatedSubject, options.subjects, "--subjects")
    loaded = suite.load(suite_options, options.base)
    # Imports torch, so after --help.
    from mergetime.artifacts.apply import applied
    from mergetime.evaluation.fingerprint import check_applied
    from mergetime.evaluation.passes import counted

    references = {"the base": loaded.probe()}
    for name, folder in (text.split("=", 1) for text in options.member):
        with applied(loaded.model, Path(folder)):
            references[name] = loaded.probe()
    for subject in subjects:
        started = time.time()
        others = _others(references, subject.folder) if subject.folder else {}
        with applied(loaded.model, subject.folder):
            differences = check_applied(subject.subject, loaded.probe(), others)
            with counted(loaded.model) as passes:
                metrics, samples = loaded.evaluate()
        outputs = writing.write(subject.out, metrics, samples)
        weights = weight_files(subject.folder) if subject.folder else []
        provenance.record(
            writing.beside(subject.out, "json"),
            stage="evaluate",
            inputs={file.name: file for file in weights}
            | {f"validation of {domain}": file for domain, file in suite_options.validation_loss.items()}
            | {"base": options.base / "fetched.json"},
            config=suite_options.recorded | {"subject": subject.subject},
            facts={
                "logit_differences": differences,
                "dtype": suite_options.evaluation.dtype,
                "passes": asdict(passes),
            },
            started=started,
            outputs=outputs,
        )


def _others(references: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the subject must differ from: the base and the members, but for a merge of one member alone."""
    record = folder / "merged.json"
    members = provenance.read(record)["config"]["members"] if record.exists() else []
    return {name: logits for name, logits in references.items() if members != [name]}


if __name__ == "__main__":
    main(run)
