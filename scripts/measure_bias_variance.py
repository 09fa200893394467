"""Measure the probability that experts, and merges of them, give the reference response of validation examples."""

import argparse
import time
from pathlib import Path

from mergetime.artifacts.forms import weight_files
from mergetime.core.errors import main
from mergetime.measuring import loading as measuring
from mergetime.merging import options as pools


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    measuring.add_options(parser)
    parser.add_argument(
        "--merged",
        type=pools.pair,
        action="append",
        default=[],
        metavar="METHOD=DIR",
        help="folder of a merged model: an adapter or a task vector; repeat",
    )
    options = parser.parse_args()
    started = time.time()

    measuring.check(options)
    loaded = measuring.load(options)
    # Imports pandas, so after --help.
    from mergetime.core import tables
    from mergetime.measuring import probabilities
    from mergetime.measuring.columns import EXPERT, MERGED, PROBABILITIES

    merged = [(name, Path(folder)) for name, folder in options.merged]
    subjects = [(EXPERT, name, folder) for name, folder in sorted(pools.experts_of(options))]
    subjects += [(MERGED, name, folder) for name, folder in merged]
    measured = probabilities.measure(loaded, subjects, options.batch_size)
    tables.write_all({options.out: (measured, PROBABILITIES)})
    measuring.record(
        options,
        stage="measure_bias_variance",
        inputs={f"merged {name} {file.name}": file for name, folder in merged for file in weight_files(folder)},
        config={"merged": sorted(name for name, _ in merged)},
        facts={
            "rows": len(measured),
            "examples": {domain: len(encoded) for domain, encoded in loaded.examples.items()},
        },
        started=started,
    )
    means = measured.groupby("kind")["probability"].mean()
    print("mean probability of the reference response: " + ", ".join(f"{kind} {p:.3f}" for kind, p in means.items()))


if __name__ == "__main__":
    main(run)
