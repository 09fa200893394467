"""Merge the experts of a pool several times in one process, each time as merge_experts.py does."""

import argparse
import shlex
from collections.abc import Sequence

import merge_experts

from mergetime.core.errors import main


def parser() -> argparse.ArgumentParser:
    """The command line: what is not known here goes to every merge."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog="All other options are those of merge_experts.py.", allow_abbrev=False
    )
    made.add_argument(
        "--merge", action="append", required=True, metavar="OPTIONS", help="what one merge is told besides; repeat"
    )
    return made


def run(arguments: Sequence[str] | None = None) -> None:
    """Merge as the command line says, one after another."""
    given, shared = parser().parse_known_args(arguments)
    for merge in given.merge:
        merge_experts.run([*shared, *shlex.split(merge)])


if __name__ == "__main__":
    main(run)
