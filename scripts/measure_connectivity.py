"""Measure the validation loss along the straight paths between the experts of a pool."""

import argparse
import time

from mergetime.core.errors import main
from mergetime.measuring import loading as measuring
from mergetime.merging import options as pools
from mergetime.merging.method import SPACES


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    measuring.add_options(parser)
    add = parser.add_argument
    add(
        "--domain",
        type=pools.pair,
        action="append",
        required=True,
        metavar="NAME=DOMAIN",
        help="the domain that an expert was trained on; repeat for every expert",
    )
    add("--alphas", type=float, nargs="+", required=True, help="points of the path, rising from 0 to 1")
    add("--spaces", choices=SPACES, nargs="+", required=True, help="what is interpolated")
    options = parser.parse_args()
    started = time.time()

    measuring.check(options)
    experts = pools.experts_of(options)
    base_sha256 = pools.base_sha256(options.base, experts)
    # These import torch, so after --help.
    from mergetime.core import tables
    from mergetime.measuring import connectivity
    from mergetime.measuring.columns import PATHS
    from mergetime.merging.opening import open_pool
    from mergetime.modalities import learning

    with open_pool(experts, base=options.base, base_sha256=base_sha256) as pool:
        loaded = measuring.load(options)
        losses = connectivity.measure(
            learning.get(loaded.modality),
            loaded.model,
            pool,
            dict(options.domain),
            loaded.examples,
            alphas=options.alphas,
            spaces=options.spaces,
            batch_size=options.batch_size,
        )
    tables.write_all({options.out: (losses, PATHS)})
    measuring.record(
        options,
        stage="measure_connectivity",
        inputs={},
        config={"domains": dict(options.domain), "alphas": options.alphas, "spaces": options.spaces},
        facts={"rows": len(losses), "examples": {domain: len(encoded) for domain, encoded in loaded.examples.items()}},
        started=started,
    )
    pairs = len(losses[["first", "second"]].drop_duplicates())
    print(f"{pairs} pairs in {len(options.spaces)} spaces at {len(options.alphas)} points each: {len(losses)} losses")


if __name__ == "__main__":
    main(run)
