"""Verify a data package: checksums, schemas and crate. Exits 1 with a line for each damaged or missing file.

What is proved is that the package is whole, not who made it: whoever changes its files can change its checksums, too.
"""

import argparse
import sys
from pathlib import Path

from mergetime.core.errors import UserError, main
from mergetime.packaging import integrity


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the package")
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder")
    damages = integrity.damages(options.folder)
    for line in damages:
        print(f"error: {options.folder}/{line}", file=sys.stderr)
    if damages:
        raise SystemExit(1)
    print(f"{options.folder}: whole; where it comes from, its checksums cannot say")


if __name__ == "__main__":
    main(run)
