"""mergekit's YAML as a merge of this program: the same models, method and numbers, or one line on what is lacking.

Meanings and defaults are those of mergekit 0.1.5. What differs by tensor, a ``filter`` or a list that runs over the
layers, becomes a function from a tensor's name and its place among the layers to the parameters of the method here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergetime.artifacts.checkpoints import shards
from mergetime.artifacts.companions import tokenizer_differs
from mergetime.artifacts.files import DTYPES, FLOATS, safetensors_file
from mergetime.core import yaml_text
from mergetime.core.errors import UserError
from mergetime.core.sections import validated
from mergetime.core.words import nearest
from mergetime.merging import registry
from mergetime.merging.layers import stacks
from mergetime.merging.mergekit_settings import (
    METHODS,
    AdaptedModel,
    File,
    Input,
    Parameters,
    all_parameters,
    checked_parameters,
    may_vary,
    values_of,
)
from mergetime.merging.work import ByTensor

PRESET = "mergekit"
"""The preset of every method here that gives mergekit's numbers."""


@dataclass(frozen=True)
class FileMerge:
    """What a file asks for, in the words of this program.

    Attributes:
        method: id of the method here, to be used with :data:`PRESET`.
        experts: names and folders, of adapters or of full checkpoints.
        base: the base's folder.
        params: the method's parameters, where they are the same for all tensors, else none.
        by_tensor: the parameters by tensor, where they differ.
        of_weights: whether whole models are merged, so that it does not matter what the experts were trained on.
        dtype: what is written; None: what the base's weights are in.
        tokenizer_from: the expert whose tokenizer is written; None: the base's.
        same_vocabulary: whether the models' tokenizers must be alike.
        layers: the layers that the file says there are; None: it says nothing.
        notes: what of the file changes no number.
        content: the file.
    """

    method: str
    experts: list[tuple[str, Path]]
    base: Path
    params: Mapping[str, Any]
    by_tensor: ByTensor | None
    of_weights: bool
    dtype: str | None
    tokenizer_from: str | None
    same_vocabulary: bool
    layers: int | None
    notes: tuple[str, ...]
    content: Any


def read(path: Path) -> FileMerge:
    """The merge that a file of mergekit's asks for, checked against the models' headers.

    Raises:
        UserError: in one line that names the file, the key and the mend.
    """
    merge = translated(yaml_text.read(path), str(path))
    if merge.layers is not None:
        _check_layers(merge, str(path))
    for name, folder in merge.experts if merge.same_vocabulary else ():
        if tokenizer_differs(folder, merge.base) == "tokenizer":
            raise UserError(
                f"{path}: tokenizer_source: the tokenizer of {name} is not that of {merge.base}; embeddings are not "
                "brought from one vocabulary into another here, so merge models with one tokenizer"
            )
    return merge


def stored_dtype(merge: FileMerge, source: str) -> str:
    """The dtype that the base's weights are in, for a file that names none.

    Raises:
        UserError: where they are in several, or in one that is not written here.
    """
    owner = f"base {merge.base}"
    kept = set()
    for path in shards(owner, merge.base):
        with safetensors_file(path, owner) as file:
            kept |= {dtype for key in file.keys() if (dtype := file.get_slice(key).get_dtype()) in FLOATS}  # noqa: SIM118
    names = [name for name, dtype in DTYPES.items() if {dtype} == kept]
    if not names:
        raise UserError(
            f"{source}: dtype: is absent, and the weights of {merge.base} are in {', '.join(sorted(kept))}; "
            f"give one of {', '.join(DTYPES)}"
        )
    return names[0]


def translated(content: Any, source: str) -> FileMerge:
    """The merge that the content of a file asks for; folders are looked for, and nothing in them is read.

    Args:
        content: what the YAML says.
        source: what errors begin with: the file.

    Raises:
        UserError: in one line that names the file, the key and the mend.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: is no mapping with merge_method and models; give a file of mergekit's")
    file = validated(File, content, source)
    if file.merge_method not in METHODS:
        raise UserError(f"{source}: merge_method: {file.merge_method!r} is not merged here{_known(file.merge_method)}")
    method = METHODS[file.merge_method]
    _refuse_lacking(file, source)
    inputs, base, layers, shared = _inputs(file, source)
    notes = [
        note
        for key, parameters in all_parameters(file)
        for note in checked_parameters(file.merge_method, key, parameters, source)
    ]
    experts, base_folder, shares = _pool(file, inputs, base, source)
    names = [name for name, _ in experts]
    chosen = registry.get(method.ours)

    def parameters(tensor: str, place: float | None) -> Mapping[str, Any]:
        where = f"{source}: of {tensor}" if varies else source
        # Tensors outside layers take the first value of a list.
        values = values_of(method, names, shares, shared, tensor, place or 0.0, where)
        if method.ours == "slerp" and names[0] != min(names):
            values["t"] = 1 - values["t"]
        try:
            return chosen.validate(values, PRESET)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error

    varies = any(may_vary(setting) for _, given in all_parameters(file) for setting in given.values())
    tokenizer, same_vocabulary = _tokenizer(file, experts, base_folder, source)
    return FileMerge(
        method=method.ours,
        experts=experts,
        base=base_folder,
        params={} if varies else parameters("", None),
        by_tensor=parameters if varies else None,
        of_weights=method.base_is_input,
        dtype=_dtype(file, source),
        tokenizer_from=tokenizer,
        same_vocabulary=same_vocabulary,
        layers=layers,
        notes=tuple(notes),
        content=content,
    )


def _known(name: str) -> str:
    return nearest(name, METHODS).replace("; known:", "; merged here are:")


def _refuse_lacking(file: File, source: str) -> None:
    """Refuse what mergekit has and this program has not."""
    lacking = {
        "modules": "merge the whole model, by models",
        "chat_template": "leave it out; the template that is written is that of the tokenizer",
    }
    for key, mend in lacking.items():
        if getattr(file, key) is not None:
            raise UserError(f"{source}: {key}: is not done here; {mend}")
    if (file.models is None) == (file.slices is None):
        raise UserError(f"{source}: models: give either models or one slice with all layers")
    if file.slices is not None and len(file.slices) != 1:
        raise UserError(
            f"{source}: slices: there are {len(file.slices)}; layers are not taken apart and stacked here, so give "
            "models, or one slice with all layers"
        )
    for place, piece in enumerate(file.slices or ()):
        if piece.residual_weight is not None:
            raise UserError(f"{source}: slices.{place}.residual_weight: is not done here; leave it out")


def _inputs(file: File, source: str) -> tuple[list[Input], AdaptedModel | None, int | None, tuple[Parameters, ...]]:
    """The models that are merged, the base, the number of layers, and the parameters of the merge."""
    piece = file.slices[0] if file.slices else None
    at = "slices.0.sources" if piece else "models"
    sources = piece.sources if piece else file.models or []
    widest: tuple[Parameters, ...] = (piece.parameters, file.parameters) if piece else (file.parameters,)
    layers = None
    for place, item in enumerate(sources):
        key = f"{at}.{place}.layer_range"
        if not piece:
            if item.layer_range is not None:
                raise UserError(f"{source}: {key}: is of slices; leave it out, or write slices")
            continue
        span = item.layer_range
        if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
            raise UserError(f"{source}: {key}: {span!r} is no first and last layer, such as [0, 32]")
        if span[0] != 0 or layers not in (None, span[1]):
            raise UserError(
                f"{source}: {key}: {span} is not the range of all layers for every model; parts of models are not "
                "stacked here"
            )
        layers = span[1]
    named, key = (piece.base_model, "slices.0.base_model") if piece and piece.base_model else (None, "base_model")
    named = named or file.base_model
    base = _model(named, key, source) if named is not None else None
    inputs = [
        Input(f"{at}.{place}", _model(item.model, f"{at}.{place}.model", source), (item.parameters, *widest))
        for place, item in enumerate(sources)
    ]
    seen: dict[AdaptedModel, str] = {}
    for given in inputs:
        if given.model in seen:
            raise UserError(f"{source}: {given.key}.model: is also {seen[given.model]}; every model counts once")
        seen[given.model] = given.key
    if base is not None and base not in seen and METHODS[file.merge_method].base_is_input:
        if file.merge_method == "linear":
            raise UserError(
                f"{source}: {key}: mergekit's linear averages it, too; name it under models with a weight, or leave "
                f"{key} out"
            )
        inputs.append(Input(key, base, widest))
    return inputs, base, layers, widest


def _model(text: Any, key: str, source: str) -> AdaptedModel:
    """The model that a text of the file names, with or without an adapter."""
    if not isinstance(text, str) or not text:
        raise UserError(f"{source}: {key}: {text!r} is no text; write the folder of a model, or MODEL+ADAPTER")
    if Path(text).is_dir():
        return AdaptedModel(Path(os.path.realpath(text)))
    parts = text.split("+")
    if len(parts) > 2:
        raise UserError(f"{source}: {key}: {text} has more than one +; write MODEL+ADAPTER")
    for part in parts:
        if not Path(part).is_dir():
            raise UserError(f"{source}: {key}: {part} is no folder; download the model, and give the folder it is in")
    return AdaptedModel(*(Path(os.path.realpath(part)) for part in parts))


def _pool(
    file: File, inputs: Sequence[Input], base: AdaptedModel | None, source: str
) -> tuple[list[tuple[str, Path]], Path, list[Input]]:
    """The experts by name, the base's folder, and the inputs in the experts' order, with a base that counts last."""
    method = METHODS[file.merge_method]
    if base is None and file.merge_method != "linear":
        raise UserError(f"{source}: base_model: is missing, and {file.merge_method} needs it; add it")
    if file.merge_method == "slerp" and len(inputs) != 2:
        raise UserError(f"{source}: models: slerp merges two models, here are {len(inputs)}")
    if not inputs:
        raise UserError(f"{source}: models: names no model; add those to merge")
    adapted = [item for item in inputs if item.model.adapter]
    if base is not None and base.adapter and not method.base_is_input:
        raise UserError(f"{source}: base_model: has an adapter, and a base is a whole model here; merge the two first")
    folder = adapted[0].model.folder if adapted else (base or inputs[0].model).folder
    for item in adapted:
        if item.model.folder != folder:
            raise UserError(
                f"{source}: {item.key}.model: its adapter is on another model than that of {adapted[0].key}; merge "
                "adapters on one model"
            )
    if adapted and not method.base_is_input and base != AdaptedModel(folder):
        raise UserError(f"{source}: {adapted[0].key}.model: its adapter is on another model than base_model")
    plain = AdaptedModel(folder)
    whole = [item for item in inputs if not item.model.adapter and item.model != plain]
    if adapted and whole:
        raise UserError(
            f"{source}: {whole[0].key}.model: is a whole model, and {adapted[0].key} is an adapter; merge one kind "
            "at a time"
        )
    if file.merge_method == "slerp":
        if len(adapted) == 1:
            raise UserError(
                f"{source}: {adapted[0].key}.model: is an adapter on the other model; slerp takes two adapters or two "
                "whole models, so merge this one first"
            )
        # t counts from base_model.
        ordered = sorted(inputs, key=lambda item: item.model != base)
        return _named(ordered), folder, ordered
    experts = [item for item in inputs if item.model != plain]
    if not experts:
        raise UserError(f"{source}: models: names no model beside the base; add those to merge")
    beside = [item for item in inputs if item.model == plain] if method.base_is_input else []
    return _named(experts), folder, [*experts, *beside]


def _named(inputs: Sequence[Input]) -> list[tuple[str, Path]]:
    """Names for models: those of their folders, numbered where they are alike."""
    named: dict[str, Path] = {}
    for item in inputs:
        folder = item.model.adapter or item.model.folder
        name, number = folder.name, 1
        while name in named:
            number += 1
            name = f"{folder.name}-{number}"
        named[name] = folder
    return list(named.items())


def _dtype(file: File, source: str) -> str | None:
    """What is written: out_dtype, or dtype, which is also what mergekit computes in."""
    given = {"dtype": file.dtype, "out_dtype": file.out_dtype}
    for key, name in given.items():
        if name is not None and name.removeprefix("torch.") not in DTYPES:
            raise UserError(f"{source}: {key}: {name!r} is not one of {', '.join(DTYPES)}")
    name = file.out_dtype or file.dtype
    return name.removeprefix("torch.") if name else None


def _tokenizer(file: File, experts: Sequence[tuple[str, Path]], base: Path, source: str) -> tuple[str | None, bool]:
    """The expert whose tokenizer is written (None: the base's), and whether all must be alike."""
    wanted, key = file.tokenizer_source, "tokenizer_source"
    if file.tokenizer is not None:
        if not isinstance(file.tokenizer, dict) or not file.tokenizer.keys() <= {"source"}:
            raise UserError(
                f"{source}: tokenizer: only its source is read here; leave the rest out, which adds tokens or padding"
            )
        wanted, key = file.tokenizer.get("source"), "tokenizer.source"
    if wanted in (None, "base", "union"):
        return None, wanted is not None
    folder = _model(wanted, key, source).folder
    for name, own in experts:
        if own == folder:
            return name, True
    if folder != base:
        raise UserError(f"{source}: {key}: {wanted} is none of the models that are merged; name one of them, or base")
    return None, True


def _check_layers(merge: FileMerge, source: str) -> None:
    """Refuse a range that does not cover the layers of the base."""
    owner = f"base {merge.base}"
    keys: list[str] = []
    for path in shards(owner, merge.base):
        with safetensors_file(path, owner) as file:
            keys += file.keys()
    counts = stacks(keys)
    if len(counts) != 1:
        raise UserError(
            f"{source}: slices: {merge.base} has {len(counts)} stacks of layers ({', '.join(counts) or 'none'}); give "
            "models instead"
        )
    (count,) = counts.values()
    if count != merge.layers:
        raise UserError(
            f"{source}: slices.0.sources.0.layer_range: ends at {merge.layers}, and {merge.base} has {count} layers; "
            "parts of models are not stacked here"
        )
