"""Merge the experts of a pool several times in one process, each time as merge_experts.py does."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mergetime.config.sections import parse_json_list
from mergetime.core import hashing
from mergetime.core.errors import main
from mergetime.merging import engine, jobs, options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = made.add_argument
    options.add_options(made)
    add("--base", type=Path, required=True, metavar="PATH", help="folder of the base, as fetched, or its fetched.json")
    add("--seed", type=int, required=True, help="seed of stochastic methods")
    add(
        "--merges",
        required=True,
        metavar="JSON",
        help="a list of objects: out (folder), method, space, form, preset, parameters, statistics (file by expert),"
        " selection (file), extra_rows",
    )
    return made


def run(arguments: Sequence[str] | None = None) -> None:
    """Merge as the command line says, one after another."""
    given = parser().parse_args(arguments)
    with hashing.digests(given.threads) as digests:
        for job in parse_json_list(jobs.MergeJob, given.merges, "--merges"):
            started = time.time()
            told = jobs.arguments_of(job, options.experts_of(given), base=given.base, seed=given.seed)
            digests.begin(options.weights_of(told["experts"]))
            summary = engine.merge(**told, threads=given.threads)
            print(jobs.report(jobs.record(job, told, summary, started, digests), job.method))


if __name__ == "__main__":
    main(run)
