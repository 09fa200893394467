"""Choose the members of a greedy soup by the mean primary metric on validation."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mergetime import provenance, suite
from mergetime.errors import main
from mergetime.selection import greedy_soup, held_out_score


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    suite.add_options(parser)
    parser.add_argument(
        "--expert",
        action="append",
        required=True,
        metavar="NAME=PATH:SCORES",
        help="an expert's folder and its validation results",
    )
    parser.add_argument("--space", choices=["adapter", "delta"], required=True)
    parser.add_argument("--tried", type=Path, required=True, help="Parquet: validation results of every soup tried")
    parser.add_argument("--out", type=Path, required=True, help="JSON: the members")
    options = parser.parse_args()
    started = time.time()

    experts, files = {}, {}
    for text in options.expert:
        name, rest = text.split("=", 1)
        folder, scores = rest.rsplit(":", 1)
        experts[name], files[name] = Path(folder), Path(scores)
    loaded = suite.load(options)
    # These import torch, so after --help.
    import pandas as pd

    from mergetime.merging.engine import merge
    from mergetime.subjects import applied, is_checkpoint

    # The update of an adapter is its own; that of a whole model is its difference from the base.
    base = options.base if any(map(is_checkpoint, experts.values())) else None
    tried: list[dict[str, Any]] = []

    def evaluate(members: tuple[str, ...]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            merge(
                [(name, experts[name]) for name in members],
                method="greedy_soup",
                params={},
                space=options.space,
                seed=0,
                out=Path(scratch),
                base=base,
            )
            with applied(loaded.model, Path(scratch)):
                rows, _ = loaded.evaluate()
        tried.extend(row | {"members": list(members)} for row in rows)
        return held_out_score(rows)

    trials = greedy_soup(
        {name: held_out_score(pq.read_table(file).to_pylist()) for name, file in files.items()}, evaluate
    )
    beside = options.tried.with_name(f".{options.tried.name}.part")
    pd.DataFrame(tried).to_parquet(beside, index=False)
    beside.replace(options.tried)
    soup = [trial for trial in trials if trial.kept][-1]
    provenance.record(
        options.out,
        stage="select_soup",
        inputs={f"{name} scores": file for name, file in files.items()}
        | {f"{name} {file.name}": file for name, folder in experts.items() for file in folder.glob("*.safetensors")},
        config=suite.config_of(options) | {"space": options.space},
        facts={
            "dtype": options.dtype,
            "members": list(soup.members),
            "score": soup.score,
            "trials": [{"members": list(t.members), "score": t.score, "kept": t.kept} for t in trials],
        },
        started=started,
        outputs=[options.tried],
    )


if __name__ == "__main__":
    main(run)
