"""Fetch a data set from the hub, at one commit, into a Parquet file a split with the data set's own columns."""

import argparse
import time
from pathlib import Path

from mergetime import hub, provenance
from mergetime.errors import UserError, main


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="hub id")
    parser.add_argument("--config", required=True, help="configuration of the data set; None where it has one alone")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the download cache")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill; fetched.json is written last")
    hub.add_options(parser)
    options = parser.parse_args()
    started = time.time()

    with hub.connected(options):
        from datasets import load_dataset

        config = None if options.config == "None" else options.config
        try:
            splits = load_dataset(options.dataset, config, revision=options.revision, cache_dir=str(options.cache))
        except Exception as error:
            raise hub.explain(error, "data set", options.dataset, options.revision) from error
    empty = [name for name, rows in splits.items() if len(rows) == 0]
    if empty:
        raise UserError(f"data set {options.dataset} at {options.revision}: split {', '.join(empty)} is empty")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        beside = options.out / f".{name}.part"
        rows.to_parquet(str(beside))
        beside.replace(options.out / f"{name}.parquet")
    provenance.record(
        options.out / "fetched.json",
        stage="fetch_dataset",
        inputs={},
        config={"dataset": options.dataset, "revision": options.revision, "config": options.config},
        facts={"rows": {name: len(rows) for name, rows in splits.items()}},
        started=started,
        outputs=[options.out / f"{name}.parquet" for name in splits],
    )


if __name__ == "__main__":
    main(run)
