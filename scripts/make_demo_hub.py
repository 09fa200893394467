"""Make the demo's hub: a folder with the base, five training sets and five benchmarks, each at its commit."""

import argparse
import json
from pathlib import Path

from mergetime.core.atomic import write_atomically
from mergetime.core.errors import main
from mergetime.demo.hub import make


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the pre-trained base")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter trained on it")
    parser.add_argument("--folder", type=Path, required=True, help="the hub; what is there is replaced")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training sets; default 0")
    parser.add_argument("--out", type=Path, required=True, help="JSON: the commit of each repository")
    options = parser.parse_args()
    revisions = make(options.base, options.adapter, options.folder, seed=options.seed)
    write_atomically(options.out, json.dumps(revisions, indent=1) + "\n")


if __name__ == "__main__":
    main(run)
