"""Fetch a model or an adapter from the hub, at one commit, into a folder."""

import argparse
import time
from pathlib import Path

from mergetime.artifacts import names
from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.hub import fetching

_RECORD = "fetched.json"
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "vocab*"]
"""Weights are safetensors only; code in the repository is not fetched."""


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill; fetched.json is written last")
    fetching.add_options(parser)
    options = parser.parse_args()
    started = time.time()

    files = fetching.fetch_snapshot(options, _FILES, options.out, _RECORD)
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(
            f"model {options.model} at {options.revision} has no .safetensors; weights of other kinds are not loaded"
        )
    provenance.record(
        options.out / _RECORD,
        stage="fetch_model",
        inputs={},
        config={"model": options.model, "revision": options.revision},
        facts={"weights_sha256": names.digest(options.out)},
        started=started,
        outputs=files,
    )


if __name__ == "__main__":
    main(run)
