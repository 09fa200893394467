"""What the scripts that open a pool of experts share: their options, and what determined their result."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergetime.artifacts import names
from mergetime.artifacts.files import read_json, recorded_base
from mergetime.artifacts.forms import ADAPTER, CHECKPOINT, form_of, weight_files
from mergetime.core.errors import UserError

Experts = Sequence[tuple[str, Path]]


def pair(text: str) -> tuple[str, str]:
    """``name=value`` in two."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name, value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def add_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --expert, repeated, and --threads; ``required`` is whether an expert must be given."""
    parser.add_argument(
        "--expert",
        type=pair,
        action="append",
        required=required,
        default=[],
        metavar="NAME=PATH",
        help="folder of an adapter or of a full checkpoint; repeat",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        help="tensors taken at a time, default all processors; the result is the same",
    )


def experts_of(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The experts' names and folders."""
    return [(name, Path(path)) for name, path in options.expert]


def base_sha256(base: Path, experts: Experts) -> str | None:
    """The digest of the base's weights, by the base's folder or its ``fetched.json``.

    A folder that was not fetched is read whole for it, and only if an expert noted what it was trained on.
    """
    if not base.exists():
        raise UserError(f"base {base}: is not there; give the folder of the base")
    record = base / "fetched.json" if base.is_dir() else base
    if base.is_dir() and not record.is_file():
        noted = any(recorded_base(name, folder) for name, folder in experts)
        return names.digest(base) if noted else None
    digest = read_json(record, f"base {base}").get("facts", {}).get("weights_sha256")
    if not digest:
        raise UserError(f"base {base}: has no facts.weights_sha256; fetch the base again")
    return str(digest)


def files_of(experts: Experts) -> dict[str, Path]:
    """The files and folders that the experts are, by name."""
    files = {}
    for name, folder in experts:
        form = form_of(folder)
        files[f"expert {name}"] = folder if form == CHECKPOINT else folder / form.weights
        if form == ADAPTER:
            files[f"config of {name}"] = folder / names.ADAPTER_CONFIG
    return files


def weights_of(experts: Experts) -> Iterator[Path]:
    """The experts' files of weights; of a folder that holds none, or is not there, none."""
    for _, folder in experts:
        yield from weight_files(folder)
