"""Import somebody else's expert: fetch a LoRA adapter and check that it belongs to the base."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from mergetime.artifacts.adapter_config import check_named_base
from mergetime.artifacts.adapters import check_fits
from mergetime.artifacts.converting import convert
from mergetime.artifacts.files import check_finite, read_json
from mergetime.artifacts.forms import ADAPTER
from mergetime.artifacts.names import ADAPTER_CONFIG, PICKLED_ADAPTER, UNNAMED
from mergetime.core import provenance
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError, main
from mergetime.core.folders import files_called, refuse_foreign
from mergetime.hub import fetching

_RECORD = "expert.json"
_FILES = [*reversed(ADAPTER.files)]
"""The weights last: a folder with weights is whole."""


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id of the adapter")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base, as fetched")
    parser.add_argument("--base-model", required=True, help="hub id of the base")
    parser.add_argument(
        "--trained-on", metavar="NAME", help=f"what the adapter calls its base, if not that; {UNNAMED}: nothing"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    fetching.add_options(parser)
    options = parser.parse_args()
    started = time.time()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        refuse_foreign(options.out, files_called([*_FILES, _RECORD]), f"adapter {options.model}")
        pickled = {PICKLED_ADAPTER: ADAPTER.weights}
        fetched = fetching.fetch_snapshot(options, [*_FILES, *pickled], folder, _RECORD, stands_for=pickled)
        held = {pickled.get(file.name, file.name) for file in fetched}
        missing = [name for name in _FILES if name not in held]
        if missing:
            raise UserError(
                f"adapter {options.model} at {options.revision} has no {', '.join(missing)}; it is not a PEFT adapter"
            )
        if (folder / PICKLED_ADAPTER).is_file():
            convert(folder, folder / "converted", f"adapter {options.model}")
            folder = folder / "converted"
        named = read_json(folder / ADAPTER_CONFIG, f"adapter {options.model}").get("base_model_name_or_path")
        check_named_base(options.model, named, options.base_model, options.trained_on)
        check_fits(options.model, folder, options.base)
        check_finite(
            folder / ADAPTER.weights, f"adapter {options.model}", "its training diverged; choose another adapter"
        )
        options.out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            with completed(options.out / name) as (beside,):
                shutil.copy(folder / name, beside)
    provenance.record(
        options.out / _RECORD,
        stage="import_expert",
        inputs={"base": options.base / "fetched.json"},
        config={"model": options.model, "revision": options.revision},
        facts={"base_sha256": provenance.read(options.base / "fetched.json")["facts"]["weights_sha256"]},
        started=started,
        outputs=[options.out / name for name in _FILES],
    )


if __name__ == "__main__":
    main(run)
