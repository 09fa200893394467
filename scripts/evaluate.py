"""Evaluate subjects one after another on the benchmarks of a split; the base is loaded once."""

import argparse
import time
from pathlib import Path
from typing import Any

from mergetime.artifacts.forms import weight_files
from mergetime.core import provenance
from mergetime.core.errors import main
from mergetime.evaluation import suite


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    suite.add_options(parser)
    parser.add_argument("--study", type=Path, required=True, help="folder of the study, results/NAME")
    parser.add_argument(
        "--subject", action="append", required=True, metavar="PATH", help="folder below the study; bases/NAME: the base"
    )
    parser.add_argument(
        "--member", action="append", default=[], metavar="NAME=PATH", help="an expert behind the subjects"
    )
    options = parser.parse_args()

    loaded = suite.load(options)
    # Imports torch, so after --help.
    from mergetime.artifacts.apply import applied
    from mergetime.evaluation.fingerprint import check_applied

    references = {"the base": loaded.probe()}
    for name, folder in (text.split("=", 1) for text in options.member):
        with applied(loaded.model, Path(folder)):
            references[name] = loaded.probe()
    for subject in options.subject:
        started = time.time()
        folder = None if subject.startswith("bases/") else options.study / subject
        with applied(loaded.model, folder):
            differences = check_applied(subject, loaded.probe(), _others(references, folder) if folder else {})
            metrics, samples = loaded.evaluate()
        _write(options, subject, metrics, samples, differences, started)


def _others(references: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the subject must differ from: the base and the members, but for a merge of one member alone."""
    record = folder / "merged.json"
    members = provenance.read(record)["config"]["members"] if record.exists() else []
    return {name: logits for name, logits in references.items() if members != [name]}


def _write(
    options: argparse.Namespace,
    subject: str,
    metrics: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    differences: dict[str, float],
    started: float,
) -> None:
    import pandas as pd

    out = options.study / "evaluations" / subject
    out.mkdir(parents=True, exist_ok=True)
    outputs = []
    for name, rows in ((f"{options.split}.samples.parquet", samples), (f"{options.split}.parquet", metrics)):
        beside = out / f".{name}.part"
        pd.DataFrame(rows).to_parquet(beside, index=False)
        beside.replace(out / name)
        outputs.append(out / name)
    provenance.record(
        out / f"{options.split}.json",
        stage="evaluate",
        inputs={file.name: file for file in weight_files(options.study / subject)}
        | {f"validation of {domain}": file for domain, file in suite.validation_files(options).items()}
        | {"base": options.base / "fetched.json"},
        config=suite.config_of(options) | {"subject": subject},
        facts={"logit_differences": differences, "dtype": options.dtype},
        started=started,
        outputs=outputs,
    )


if __name__ == "__main__":
    main(run)
