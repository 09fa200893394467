"""Choose a method's hyper-parameters by the mean primary metric of its candidates on validation."""

import argparse
import json
import time
from pathlib import Path

import pyarrow.parquet as pq

from mergetime import provenance
from mergetime.errors import main
from mergetime.selection import best_candidate, held_out_score


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", nargs="+", required=True, metavar="JSON", help="hyper-parameters, one each")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="their validation results, in that order")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    started = time.time()

    candidates = [json.loads(text) for text in options.candidates]
    scores = [held_out_score(pq.read_table(file).to_pylist()) for file in options.scores]
    if len(candidates) != len(scores):
        raise ValueError(f"{len(candidates)} candidates, but {len(scores)} files of scores")
    provenance.record(
        options.out,
        stage="select_hyperparameters",
        inputs={str(number): file for number, file in enumerate(options.scores)},
        config={"candidates": candidates},
        facts={"chosen": candidates[best_candidate(scores)], "scores": scores},
        started=started,
    )


if __name__ == "__main__":
    main(run)
