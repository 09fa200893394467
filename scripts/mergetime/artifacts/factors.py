"""The LoRA factors in the file of an adapter: found, paired and checked, without reading them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergetime.architectures.architecture import Architecture
from mergetime.artifacts.base_weights import BaseWeights
from mergetime.artifacts.files import FLOATS, refuse_empty
from mergetime.artifacts.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mergetime.artifacts.tokens import is_of_tokens
from mergetime.core.errors import UserError

# DoRA's magnitudes, and the bias of lora_bias.
_BESIDE = re.compile(r"base_model\.model\.(.+)\.lora_(?:(magnitude_vector)(?:\.weight)?|B\.(bias))")
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(?(2)|\.weight)")
# PEFT keeps the base's weight of a module that it wraps under these names, and writes it where it saves embeddings.
COPY = re.compile(r"\.(token_adapter\.base_layer|base_layer|original_module)\.")

Keys = dict[str, str]
"""The keys of the factors A and B, or of one of them, in the file of an adapter."""


@dataclass(frozen=True)
class Factors:
    """The LoRA factors of a module as they lie in an adapter's file.

    Attributes:
        module: what the file, and the patterns of its config, call the module.
        keys: of A and B in the file.
        shape: rows, rank and columns of the update of the module's weight.
        turned: whether that is the transpose of B A, as where the weight is [inputs, outputs]: embeddings, Conv1D.
        embedding: whether they are of an embedding, and called so.
        magnitudes: the key of DoRA's magnitudes; None without DoRA.
        bias: the key of what is added to the module's bias, times the scaling; None without lora_bias.
    """

    module: str
    keys: tuple[str, str]
    shape: tuple[int, int, int]
    turned: bool
    embedding: bool
    magnitudes: str | None = None
    bias: str | None = None


def factors_in(owner: str, file: Any) -> dict[tuple[str, bool], Keys]:
    """The keys of A and B by module, as the file calls it, and whether they are called an embedding's."""
    by_module: dict[tuple[str, bool], Keys] = {}
    for key in sorted(file.keys()):
        match = _KEY.fullmatch(key)
        if match is None and whole_tensor(key) is not None:
            refuse_empty(owner, key, file.get_slice(key).get_shape())
        if match is None and (whole_tensor(key) is not None or _BESIDE.fullmatch(key) or is_of_tokens(key)):
            continue
        view = file.get_slice(key)
        refuse_empty(owner, key, view.get_shape())
        if match is None and (".lora_" in key or key.startswith("lora_")):
            raise UserError(
                f"{owner}: {key} is not named as PEFT's save_pretrained names factors "
                "(base_model.model.MODULE.lora_A.weight); save the adapter by it"
            )
        if match is None or len(view.get_shape()) != 2:
            raise UserError(
                f"{owner}: {key} is no LoRA factor of a linear layer or an embedding; only those are merged"
            )
        if view.get_dtype() not in FLOATS:
            raise UserError(
                f"{owner}: {key} is {view.get_dtype()}; LoRA factors are floating-point numbers of 16 bits or more"
            )
        by_module.setdefault((match[1], bool(match[2])), {})[match[3]] = key
    if not by_module:
        raise UserError(f"{owner}: {ADAPTER_WEIGHTS} holds no LoRA factors")
    return by_module


def pairs_in(
    owner: str,
    file: Any,
    layers: Mapping[tuple[str, bool], Keys],
    config: Mapping[str, Any],
    architecture: Architecture,
    base: BaseWeights | None,
) -> dict[str, Factors]:
    """The factors of every layer, by its canonical name; ``layers`` are some of what :func:`factors_in` has."""
    pairs: dict[str, Factors] = {}
    beside = _beside(file)
    for (module, embedding), keys in layers.items():
        a, b = (file.get_slice(keys[factor]).get_shape() if factor in keys else (0, 0) for factor in "AB")
        if len(keys) < 2 or a[0] != b[1]:
            raise UserError(f"{owner}: {module} lacks one of its two LoRA factors, or their ranks differ")
        # Renames speak of tensors: the dot after a module's name belongs to the text that they look for.
        name = architecture.canonical(f"{module}.weight")
        if (canonical := name.removesuffix(".weight")) in pairs:
            raise UserError(f"{owner}: has LoRA factors of {module} twice; remove those that are stale")
        is_linear = architecture.known_role(name) == "linear"
        if embedding and is_linear:
            raise UserError(
                f"{owner}: {module} is an embedding, and {architecture.name} takes it for a linear layer; "
                "give --base the base's folder"
            )
        # Without a base the config says it; PEFT corrects it by the kind of each layer, and writes what it was last.
        turned = embedding or (is_linear and bool(architecture.transposed if base else config.get("fan_in_fan_out")))
        rows, columns = (a[1], b[0]) if turned else (b[0], a[1])
        more = beside.pop(module, {})
        for kind, setting in (("magnitude_vector", "use_dora"), ("bias", "lora_bias")):
            if bool(config.get(setting)) != (kind in more):
                raise UserError(
                    f"{owner}: {setting} is {bool(config.get(setting))} in {ADAPTER_CONFIG}, and the file has "
                    f"{'a' if kind in more else 'no'} {kind} of {module}; save it again"
                )
            wanted = columns if turned else rows
            if kind in more and file.get_slice(more[kind]).get_shape() != [wanted]:
                raise UserError(f"{owner}: {more[kind]} has not one number for each of {wanted} outputs")
        shape, two = (rows, a[0], columns), (keys["A"], keys["B"])
        pairs[canonical] = Factors(
            module, two, shape, turned, embedding, more.get("magnitude_vector"), more.get("bias")
        )
    for module, more in beside.items():
        raise UserError(f"{owner}: {next(iter(more.values()))} is of {module}, which has no LoRA factors")
    return pairs


def _beside(file: Any) -> dict[str, dict[str, str]]:
    """What lies beside a module's factors: by module, the kind and the key."""
    beside: dict[str, dict[str, str]] = {}
    for key in sorted(file.keys()):
        if match := _BESIDE.fullmatch(key):
            beside.setdefault(match[1], {})[match[2] or match[3]] = key
    return beside


def whole_tensor(key: str) -> str | None:
    """What the model calls a whole tensor of an adapter's file; None for what is no whole tensor."""
    name = key.removeprefix("base_model.model.")
    if name == key or ".lora_" in key or not name.endswith((".weight", ".bias")):
        return None
    return COPY.sub(".", name).replace(".modules_to_save.", ".")
