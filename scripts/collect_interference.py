"""Collect the interference of a study's pools into analysis/interference.parquet and interference.tensors.parquet."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mergetime import config, grid, provenance, results
from mergetime.errors import UserError, main
from mergetime.merging.interference import COLUMNS, TENSORS

OF = {name: results.SUBJECT[name] for name in ("study", "base", "pool", "duration", "seed")}


def files_of(study: config.Study, folder: Path) -> Iterator[tuple[dict[str, object], Path]]:
    """What each measurement is of, as columns, and its file without the ending: every pool that has pairs."""
    for base in study.bases:
        for pool in grid.pools_on(study, base):
            for seed in study.seeds if len(pool.experts) > 1 else ():
                of = {"study": study.study, "base": base, "pool": pool.id, "duration": pool.duration, "seed": seed}
                yield of, folder / "analysis" / "interference" / base / pool.id / f"seed-{seed}"


def collected(
    study: config.Study, folder: Path, suffix: str, columns: dict[str, results.Column]
) -> tuple[pd.DataFrame, dict[str, results.Column]]:
    """One of the two tables over all pools, with its columns."""
    frames = [
        results.read(stem.with_name(f"{stem.name}{suffix}"), columns).assign(**of)
        for of, stem in files_of(study, folder)
    ]
    if not frames:
        raise UserError(f"study {study.study}: no pool has two experts, so there is no interference")
    wanted = OF | columns
    return pd.concat(frames, ignore_index=True)[list(wanted)], wanted


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the study, as describe_study wrote it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, which holds its artifacts")
    options = parser.parse_args()
    started = time.time()

    study = config.load(options.study)
    tables = {
        options.out / "analysis" / f"interference{suffix}": collected(study, options.out, suffix, columns)
        for suffix, columns in ((".parquet", COLUMNS), (".tensors.parquet", TENSORS))
    }
    for path, (frame, columns) in tables.items():
        beside = path.with_name(f".{path.name}.part")
        results.write(frame, columns, beside)
        beside.replace(path)
    provenance.record(
        options.out / "analysis" / "interference.json",
        stage="collect_interference",
        inputs={"study": options.study},
        config={"study": study.study},
        facts={"rows": {path.name: len(frame) for path, (frame, _) in tables.items()}},
        started=started,
        outputs=tables,
    )


if __name__ == "__main__":
    main(run)
