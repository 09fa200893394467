"""Run one check, and append what it says to a file as it says it."""

import argparse
import importlib
import json
from pathlib import Path

from mergetime.modalities.kernels import leave_out_without_gpu
from tests.gpu.checking import Setting, Skipped, machine, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--given", type=json.loads, default={}, metavar="JSON", help="what its check is given")
    parser.add_argument("--shape", choices=["true", "tiny"], required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--said", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    # Packages whose kernels take a GPU may be there where there is none.
    leave_out_without_gpu()
    told = False
    module = importlib.import_module(options.module)
    try:
        for figure in module.check(Setting(options.shape, options.work), **options.given):
            write(options.said, figure)
            if not told:
                write(options.said, {"machine": machine()})
                told = True
    except Skipped as skipped:
        write(options.said, {"skipped": str(skipped)})


if __name__ == "__main__":
    main()
