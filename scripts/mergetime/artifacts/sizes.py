"""Whether a model's config describes what its weights are: told from their headers, before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergetime.artifacts.checkpoints import shards
from mergetime.artifacts.files import FLOATS, safetensors_file
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.core.errors import UserError

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "encoder_layers",
           "decoder_layers")  # fmt: skip
_SIZES = (
    *_LAYERS, "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "d_ff",
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "num_experts", "num_local_experts",
    "moe_intermediate_size", "max_position_embeddings", "n_positions",
)  # fmt: skip
"""Keys of config.json that a model's tensors are made by, as transformers' models call them."""
_SPARE = 1 << 24
"""Numbers, in parameters or buffers, that a model may have beyond those that follow from its weights."""


@dataclass(frozen=True)
class Stored:
    """What the headers of a model's weights say.

    Attributes:
        shapes: of the tensors that are floating-point numbers of 16 bits or more, by name.
        tensors: how many there are of any dtype.
        numbers: how many parameters they can hold: packed ones have two bits at least.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tensors: int
    numbers: int


def stored(folder: Path) -> Stored:
    """What the weights in a folder hold.

    Raises:
        UserError: where there are none, or they are damaged.
    """
    owner = _owner(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    tensors = numbers = 0
    for path in shards(owner, folder):
        with safetensors_file(path, owner) as file:
            for key in file.keys():  # noqa: SIM118
                view = file.get_slice(key)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                tensors += 1
                if dtype in FLOATS:
                    shapes[key] = shape
                    numbers += math.prod(shape)
                else:
                    numbers += math.prod(shape) * int(re.sub(r"^\D*(\d*).*$", r"\1", dtype) or 8) // 2
    return Stored(shapes, tensors, numbers)


def check_config(folder: Path, config: Mapping[str, Any], held: Stored) -> None:
    """Refuse a config by its numbers alone: negative sizes, and more layers than there are tensors.

    Args:
        folder: of the model.
        config: its config.json.
        held: what its weights hold.

    Raises:
        UserError: naming the key.
    """
    for key, value in _sizes(config):
        if value < 0:
            raise UserError(f"{_owner(folder)}: {MODEL_CONFIG}: {key} is {value}; no size is negative")
        if key in _LAYERS and value > held.tensors:
            raise UserError(
                f"{_owner(folder)}: {MODEL_CONFIG}: {key} is {value}, but the weights are {held.tensors} tensors; "
                "fetch the model again or choose another"
            )


def check_described(
    folder: Path, config: Mapping[str, Any], held: Stored, shapes: Mapping[str, tuple[int, ...]], beside: int
) -> None:
    """Refuse a config that describes another or a far larger model than that of the weights.

    A model may leave out what is stored, such as a vision tower, and what is tied is stored once.

    Args:
        folder: of the model.
        config: its config.json.
        held: what its weights hold.
        shapes: of the parameters of the model that is described, by name.
        beside: how many numbers its buffers hold.

    Raises:
        UserError: naming the tensor, or the keys that make so much of it.
    """
    for name, shape in shapes.items():
        known = held.shapes.get(name, shape)
        if known != shape:
            wrong = {size for axis, size in enumerate(shape) if known[axis : axis + 1] != (size,)}
            keys = [f"{key} {value}" for key, value in _sizes(config) if value in wrong]
            raise UserError(
                f"{_owner(folder)}: {MODEL_CONFIG} makes {name} {_times(shape)}{_listed(keys)}, in the weights it is "
                f"{_times(known)}; fetch the model again or choose another"
            )
    described = sum(map(math.prod, shapes.values()))
    if max(described, beside) > 2 * held.numbers + _SPARE:
        raise UserError(
            f"{_owner(folder)}: {MODEL_CONFIG} describes a model of {described + beside} numbers{sizes_of(config)}, "
            f"the weights hold {held.numbers}; fetch the model again or choose another"
        )


def sizes_of(config: Mapping[str, Any]) -> str:
    """The sizes that a config gives, in brackets, for a message."""
    return _listed([f"{key} {value}" for key, value in _sizes(config)])


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The keys of sizes, and what the config has for them; of a multimodal model, for its text."""
    text = config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        for key in _SIZES:
            value = section.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                yield key, value


def _listed(keys: list[str]) -> str:
    return f" ({', '.join(keys)})" if keys else ""


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _owner(folder: Path) -> str:
    return f"model {folder}"
