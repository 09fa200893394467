"""How large a model is: from the headers of its safetensors files, or from the config before it is fetched."""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergetime.config.sources import Base
from mergetime.core.errors import UserError

_NOT_LANGUAGE = {"visual", "vision_tower", "vision_model", "multi_modal_projector", "audio_tower", "mtp"}
"""Parts of multimodal checkpoints, and of multi-token prediction, that text does not pass through."""
_IN_LAYER = re.compile(r"(?:^|\.)layers\.\d+\..*weight$")
_HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of entries of a model.

    ``parameters`` of its language model, embeddings included; ``matrix_parameters`` of the matrices in its layers,
    which LoRA adapts and merges update; ``adapter_parameters`` of an adapter of rank 1 on all of them;
    ``gram_entries`` of the Gram matrices of their inputs. ``stored_bytes`` of its files, and where all this comes from.
    """

    parameters: int
    matrix_parameters: int
    adapter_parameters: int
    gram_entries: int
    stored_bytes: int
    source: str


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of the tensors in a safetensors file; reads its header alone.

    The format: 8 bytes with the header's length, little-endian, then the header, a JSON object.

    Raises:
        UserError: if the file is none.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: no safetensors file ({error}); fetch the model again") from error


def from_shapes(shapes: Mapping[str, tuple[int, ...]], stored_bytes: int, source: str) -> Sizes:
    """Sizes of the language model among tensors of these names and shapes."""
    text = {name: shape for name, shape in shapes.items() if _NOT_LANGUAGE.isdisjoint(name.split("."))}
    matrices = [shape for name, shape in text.items() if len(shape) == 2 and _IN_LAYER.search(name)]
    return Sizes(
        parameters=sum(math.prod(shape) for shape in text.values()),
        matrix_parameters=sum(math.prod(shape) for shape in matrices),
        adapter_parameters=sum(outputs + inputs for outputs, inputs in matrices),
        gram_entries=sum(inputs**2 for _, inputs in matrices),
        stored_bytes=stored_bytes,
        source=source,
    )


def from_config(name: str, base: Base, *, lora: bool) -> Sizes:
    """Sizes that the config gives: 16-bit files, every parameter taken for one of a square matrix.

    Raises:
        UserError: naming the key that is missing.
    """
    if base.parameters is None:
        raise UserError(f"bases.{name}.parameters: {base.model} is not fetched yet, so say how many parameters it has")
    if base.adapter_parameters is None and lora:
        raise UserError(
            f"bases.{name}.adapter_parameters: {base.model} is not fetched yet, so say how many parameters an adapter "
            f"of rank 1 has"
        )
    count = base.parameters
    return Sizes(count, count, base.adapter_parameters or 0, count, 2 * count, "config")


def sizes_of(name: str, base: Base, folders: list[Path], *, lora: bool) -> Sizes:
    """Sizes of a base: of the first folder with its weights, else from the config.

    Raises:
        UserError: naming the key that is missing, or the file that is broken.
    """
    for folder in folders:
        files = sorted(folder.glob("*.safetensors"))
        if files:
            shapes = {tensor: shape for file in files for tensor, shape in read_header(file).items()}
            return from_shapes(shapes, folder_bytes(folder), f"headers in {folder}")
    return from_config(name, base, lora=lora)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
