"""Convert weights that are in PyTorch's pickled files (.bin) to safetensors; code in them is never run."""

import argparse
from pathlib import Path

from mergetime.artifacts.converting import convert
from mergetime.core.errors import main


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of an adapter or a model")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    options = parser.parse_args()
    for file in convert(options.model, options.out):
        print(file)


if __name__ == "__main__":
    main(run)
