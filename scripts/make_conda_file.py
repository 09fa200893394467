"""Make the conda file of the rules from the lock: the same versions, for `snakemake --sdm conda`."""

import argparse
import re
from pathlib import Path

from mergetime.core.atomic import write_atomically
from mergetime.core.errors import main


def conda_file(pins: list[str]) -> str:
    """A conda environment with Python from conda-forge and the pins from pip, inline: `-r file` breaks when copied."""
    lines = ["# Made from the lock by `make lock`.", "channels: [conda-forge, nodefaults]", "dependencies:"]
    lines += ["  - python=3.11", "  - pip", "  - pip:", *(f"      - {pin}" for pin in pins)]
    return "\n".join(lines) + "\n"


def pins_of(*files: Path) -> list[str]:
    """Every ``name==version`` line of requirement files, sorted, without hashes."""
    pattern = re.compile(r"^([A-Za-z0-9_.\-\[\]]+==[^\s\\;]+)", re.MULTILINE)
    return sorted({pin for file in files for pin in pattern.findall(file.read_text())})


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pins", type=Path, nargs="+", required=True, help="requirement files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_atomically(options.out, conda_file(pins_of(*options.pins)))


if __name__ == "__main__":
    main(run)
