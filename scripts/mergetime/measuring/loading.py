"""What the scripts that measure a pool on validation examples share: options, the loaded base, losses by example."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core import provenance
from mergetime.core.errors import UserError
from mergetime.merging import options as pools
from mergetime.modalities import learning, reading
from mergetime.modalities.parts import DEFAULT, names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what :func:`load` and :func:`inputs_of` read: the base, the experts, validation examples by domain."""
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="DIR", help="folder of the base, as fetched")
    add("--modality", choices=names(), default=DEFAULT, help=f"what the base works on; default {DEFAULT}")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights that are measured")
    add(
        "--batch-size",
        type=pools.positive,
        required=True,
        help="examples of a forward pass; fixed: losses move with it",
    )
    add(
        "--expert",
        type=pools.pair,
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="folder of an adapter or of a full checkpoint; repeat",
    )
    add(
        "--data",
        type=pools.pair,
        action="append",
        required=True,
        metavar="DOMAIN=FILE.parquet",
        help="validation examples of a domain, as prepared; repeat",
    )
    add("--examples", type=pools.positive, default=200, help="of each domain, from the top of the file; default 200")
    add("--out", type=Path, required=True, metavar="FILE.parquet", help="the measurement; FILE.json comes beside it")


@dataclass(frozen=True)
class Loaded:
    """The base on its device, what encodes examples for it, and the encoded examples by domain."""

    model: "PreTrainedModel"
    reader: Any
    examples: Mapping[str, Sequence[Any]]
    modality: str


def check(options: argparse.Namespace) -> None:
    """Refuse experts or domains that are given twice, and an output that is no Parquet file.

    Raises:
        UserError: naming the option.
    """
    if options.out.suffix != ".parquet":
        raise UserError(f"--out {options.out}: name a file that ends in .parquet")
    for option, pairs in (("--expert", options.expert), ("--data", options.data)):
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{option} {name}: is given twice")


def load(options: argparse.Namespace) -> Loaded:
    """Load the base once, in the dtype of evaluation, with the first ``--examples`` of every domain."""
    import torch

    from mergetime.evaluation.losses import load_validation

    part = reading.get(options.modality)
    reader = part.reader(options.base)
    examples = {
        domain: load_validation(domain, Path(file), part, reader).encoded[: options.examples]
        for domain, file in options.data
    }
    model = learning.get(options.modality).load_base(options.base, dtype=getattr(torch, options.dtype), four_bit=False)
    return Loaded(model.eval(), reader, examples, options.modality)


def domain_loss(losses: Sequence[tuple[float, int]]) -> float:
    """The loss of a domain in nats per item, over all items of all examples, as for T*.

    Args:
        losses: of each example, the sum over its items and their number.
    """
    return math.fsum(total for total, _ in losses) / sum(count for _, count in losses)


def inputs_of(options: argparse.Namespace) -> dict[str, Path]:
    """The files and folders that determine a measurement, by name; the base by the record of its fetching."""
    fetched = options.base / "fetched.json"
    experts = pools.files_of(pools.experts_of(options))
    data = {f"data of {domain}": Path(file) for domain, file in options.data}
    return {"base": fetched if fetched.is_file() else options.base} | experts | data


def record(
    options: argparse.Namespace,
    *,
    stage: str,
    inputs: Mapping[str, Path],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    started: float,
) -> None:
    """Write the JSON beside ``--out``: the shared options with ``config`` and ``inputs`` of the stage's own."""
    provenance.record(
        options.out.with_suffix(".json"),
        stage=stage,
        inputs=inputs_of(options) | dict(inputs),
        config={
            "experts": sorted(name for name, _ in options.expert),
            "modality": options.modality,
            "examples": options.examples,
            "dtype": options.dtype,
            "batch_size": options.batch_size,
            **config,
        },
        facts=facts,
        started=started,
        outputs=[options.out],
    )
