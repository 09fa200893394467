"""Measure an expert on chats: its Fisher information, its inputs' Gram matrices or its mask, as merge methods need."""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.artifacts.files import is_finite, read_json, recorded_base
from mergetime.artifacts.forms import CHECKPOINT, form_of, weight_files
from mergetime.core import provenance, yaml_text
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError, main
from mergetime.core.words import nearest
from mergetime.measuring.settings import SETTINGS, checked
from mergetime.modalities.parts import DEFAULT, names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from mergetime.modalities.learning import Learning

_MEANINGS = {
    "fisher": "the diagonal Fisher information of every parameter that the expert updates",
    "gram": "X^T X / positions of the inputs X of every linear layer that the expert updates",
    "mask": "the trained mask of Localize-and-Stitch",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    settings = [f"{kind}: {p.name} = {p.default}, {p.meaning}" for kind, listed in SETTINGS.items() for p in listed]
    command_line = argparse.ArgumentParser(
        description=__doc__, epilog=f"Settings: {'; '.join(settings)}.", allow_abbrev=False
    )
    add = command_line.add_argument
    add("--base", type=Path, required=True, help="folder of the base, as fetched")
    add("--modality", choices=names(), default=DEFAULT, help=f"of the base; default {DEFAULT}")
    add("--expert", type=Path, required=True, help="folder of an adapter, a task vector or a full checkpoint")
    add("--data", type=Path, required=True, help="Parquet of examples, as prepared")
    add("--kind", required=True, help="; ".join(f"{kind}: {meaning}" for kind, meaning in _MEANINGS.items()))
    add("--examples", type=int, default=128, help="chats to measure on, from the top of the file; default 128")
    add("--max-tokens", type=int, default=2048, help="longer chats are passed over; default 2048")
    add("--seed", type=int, default=1, help="seed of the labels drawn, or of the order of chats; default 1")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the kind; repeat")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for KIND.safetensors and KIND.json")
    return command_line


def run(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    options = parser().parse_args(arguments)
    started = time.time()
    if options.examples < 1:
        raise UserError(f"--examples {options.examples}: measure on one chat at least")
    settings = read_settings(options.kind, options.set)
    base = base_of(options.base, options.expert)
    statistic, facts = _measure(options, settings)
    target = _write(options.out / f"{options.kind}.safetensors", statistic, facts)
    provenance.record(
        options.out / f"{options.kind}.json",
        stage="measure_expert",
        inputs={
            "base": base,
            "data": provenance.sha256(options.data),
            **{f"expert {file.name}": provenance.sha256(file) for file in weight_files(options.expert)},
        },
        config={
            "kind": options.kind,
            "modality": options.modality,
            "examples": options.examples,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            "settings": settings,
        },
        facts=facts | {"base_sha256": base},
        started=started,
        outputs=[target],
    )


def read_settings(kind: str, pairs: Sequence[str]) -> dict[str, Any]:
    """All settings of the kind: those given as name=value, and the defaults.

    Raises:
        UserError: for an unknown kind or setting, or one given twice.
        ValueError: naming the setting whose value is outside its domain.
    """
    if kind not in SETTINGS:
        raise UserError(f"--kind {kind}: there is no such statistic{nearest(kind, SETTINGS)}")
    known = {parameter.name: parameter for parameter in SETTINGS[kind]}
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in given:
            raise UserError(f"--set {pair}: {'is given twice' if equals else 'is not of the form name=value'}")
        if name not in known:
            raise UserError(f"--set {pair}: {kind} has no setting {name!r}{nearest(name, known)}")
        given[name] = yaml_text.parse(value, f"--set {name}")
    return {name: checked(setting, given.get(name, setting.default)) for name, setting in known.items()}


def base_of(base: Path, expert: Path) -> str:
    """The digest of the base's weights.

    Raises:
        UserError: if there is none, or the expert's record names another base.
    """
    digest = read_json(base / "fetched.json", f"base {base}").get("facts", {}).get("weights_sha256")
    if not digest:
        raise UserError(f"base {base}: fetched.json has no facts.weights_sha256; fetch the base again")
    trained_on = recorded_base(f"expert {expert}", expert)
    if trained_on not in (None, digest):
        raise UserError(f"expert {expert}: trained on base {trained_on[:8]}..., base {base} is {digest[:8]}...")
    return str(digest)


def _measure(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """The statistic and what there is to say of it."""
    import torch

    from mergetime.artifacts.apply import applied, updates
    from mergetime.measuring import data_statistics
    from mergetime.modalities import learning

    examples, facts = _examples(options)
    part = learning.get(options.modality)
    model = part.load_base(options.base, dtype=torch.float32, four_bit=False)
    # Applying an expert gives the parameters new data: these stay the base's.
    base_weights = {name: parameter.data for name, parameter in model.named_parameters()}
    if form_of(options.expert, f"expert {options.expert}") == CHECKPOINT:
        weights = _checkpoint_weights(options.base, options.expert, base_weights)
        deltas = {name: weight - base_weights[name] for name, weight in weights.items()}
        on_base = _replaced(model, weights)
    else:
        deltas = dict(updates(model, options.expert))
        on_base = applied(model, options.expert)
    if not any(bool(delta.any()) for delta in deltas.values()):
        raise UserError(f"expert {options.expert}: its weights are the base's; there is nothing to measure")
    with on_base:
        if options.kind == "fisher":
            statistic = data_statistics.fisher(
                part, model, examples, deltas, seed=options.seed, draws=settings["draws"]
            )
        elif options.kind == "gram":
            statistic = data_statistics.gram(part, model, examples, deltas)
        else:
            statistic = data_statistics.mask(part, model, base_weights, deltas, examples, seed=options.seed, **settings)
            facts["loss"] = _losses(part, model, base_weights, deltas, statistic, examples, settings["batch_size"])
    if not statistic:
        raise UserError(
            f"expert {options.expert}: it updates no linear layer, so there is no {options.kind} to measure"
        )
    facts |= {
        "norm": data_statistics.norm(statistic),
        "tensors": len(statistic),
        "entries": sum(tensor.numel() for tensor in statistic.values()),
    }
    if options.kind == "mask":
        facts["kept"] = sum(int(tensor.count_nonzero()) for tensor in statistic.values())
    written = data_statistics.normalised(statistic) if settings.get("normalise") == "model" else statistic
    for name, tensor in written.items():
        if not is_finite(tensor):
            raise UserError(f"expert {options.expert}: its {options.kind} of {name} is NaN or infinite")
    return written, facts


def _examples(options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """The examples to measure on, encoded as in training, and their numbers."""
    import pyarrow.parquet as pq

    from mergetime.modalities import reading

    part = reading.get(options.modality)
    table = pq.read_table(options.data)
    for column in part.COLUMNS:
        if column not in table.column_names:
            raise UserError(f"{options.data}: has no column {column}; prepare the data with prepare_domain.py")
    reader = part.reader(options.base)
    examples: list[Any] = []
    passed_over = 0
    for row in table.to_pylist():
        if len(examples) == options.examples:
            break
        encoded = part.encode(reader, row)
        if encoded.length > options.max_tokens:
            passed_over += 1
        else:
            examples.append(encoded)
    if not examples:
        raise UserError(f"{options.data}: none of its {len(table)} chats is within --max-tokens {options.max_tokens}")
    answers = sum(example.items for example in examples)
    positions = sum(example.length for example in examples)
    facts = {"examples": len(examples), "passed_over": passed_over, "positions": positions, "answer_tokens": answers}
    return examples, facts


def _checkpoint_weights(
    base: Path, folder: Path, parameters: "Mapping[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """The weights of a full checkpoint, as the base's parameters: of what text reaches all, changed or not.

    What one expert leaves alone another may change, and then a merge needs to know both.
    """
    from mergetime.artifacts.checkpoints import check_expert, open_checkpoint

    with open_checkpoint("base", base) as opened, open_checkpoint(folder.name, folder) as expert:
        check_expert(expert, opened)
        held = [name for name in expert.shapes if name in parameters]
        return {name: expert.tensor(name).to(parameters[name], copy=True) for name in held}


@contextmanager
def _replaced(model: "PreTrainedModel", weights: "Mapping[str, torch.Tensor]") -> Iterator[None]:
    """The model with these weights; afterwards as before."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].data for name in weights}
    try:
        for name, weight in weights.items():
            parameters[name].data = weight
        yield
    finally:
        for name, data in kept.items():
            parameters[name].data = data


def _losses(
    part: "Learning",
    model: "PreTrainedModel",
    base: "Mapping[str, torch.Tensor]",
    deltas: "Mapping[str, torch.Tensor]",
    mask: "Mapping[str, torch.Tensor]",
    examples: list[Any],
    batch_size: int,
) -> dict[str, float]:
    """The loss on the chats of the base, of the expert and of the base with what the mask keeps of the expert."""
    from mergetime.measuring.data_statistics import mean_loss

    def loss(share: "Mapping[str, torch.Tensor] | float") -> float:
        weights = {
            name: base[name]
            + (share if isinstance(share, float) else share[name].to(base[name])) * delta.to(base[name])
            for name, delta in deltas.items()
        }
        return mean_loss(part, model, weights, examples, batch_size)

    return {"base": loss(0.0), "expert": loss(1.0), "masked": loss(mask)}


def _write(target: Path, statistic: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> Path:
    from safetensors.torch import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    # Metadata of one key: safetensors writes several in an order that changes from run to run.
    metadata = {"norm": repr(facts["norm"])}
    with completed(target) as (beside,):
        save_file({name: statistic[name].contiguous() for name in sorted(statistic)}, beside, metadata=metadata)
    return target


if __name__ == "__main__":
    main(run)
