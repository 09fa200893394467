"""Run one check, and append what it says to a file as it says it."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from tests.gpu.checking import Setting, Skipped, machine, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--given", type=json.loads, default={}, metavar="JSON", help="what its check is given")
    parser.add_argument("--shape", choices=["true", "tiny"], required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--said", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    told = False
    module = importlib.import_module(options.module)
    try:
        for figure in module.check(Setting(options.shape, options.work), **options.given):
            write(options.said, figure)
            # Asked for once torch is there: it takes seconds to import, and not every check does.
            if not told and "torch" in sys.modules:
                write(options.said, {"machine": machine()})
                told = True
    except Skipped as skipped:
        write(options.said, {"skipped": str(skipped)})


if __name__ == "__main__":
    main()
