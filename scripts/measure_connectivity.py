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
    given = parser.parse_args()
    started = time.time()

    measuring.check(given)
    experts = pools.experts_of(given)
    base_sha256 = pools.base_sha256(given.base, experts)
    # These import torch, so after --help.
    from mergetime.core import tables
    from mergetime.measuring import connectivity
    from mergetime.measuring.columns import PATHS
    from mergetime.merging.pool import open_pool
    from mergetime.modalities import learning

    with open_pool(experts, base=given.base, base_sha256=base_sha256) as pool:
        loaded = measuring.load(given)
        found = connectivity.measure(
            learning.get(loaded.modality),
            loaded.model,
            pool,
            dict(given.domain),
            loaded.examples,
            alphas=given.alphas,
            spaces=given.spaces,
            batch_size=given.batch_size,
        )
    tables.write_all({given.out: (found, PATHS)})
    measuring.record(
        given,
        stage="measure_connectivity",
        inputs={},
        config={"domains": dict(given.domain), "alphas": given.alphas, "spaces": given.spaces},
        facts={"rows": len(found), "examples": {domain: len(own) for domain, own in loaded.examples.items()}},
        started=started,
    )
    pairs = len(found[["first", "second"]].drop_duplicates())
    print(f"{pairs} pairs in {len(given.spaces)} spaces at {len(given.alphas)} points each: {len(found)} losses")


if __name__ == "__main__":
    main(run)
