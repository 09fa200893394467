"""Safetensors files, written tensor by tensor: a dense task vector need not fit in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.errors import UserError

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TASK_VECTOR = "task_vector.safetensors"


@contextmanager
def safetensors_file(path: Path, owner: str) -> Iterator[Any]:
    """Open a safetensors file for reading; ``owner`` begins the error message where it is absent or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{owner}: there is no {path.name}; weights are read from safetensors only")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{owner}: {path.name} is damaged or incomplete ({error}); make or fetch it again") from error


def read_json(path: Path, owner: str) -> dict[str, Any]:
    """A JSON object; ``owner`` begins the error message where it is absent or damaged."""
    if not path.is_file():
        raise UserError(f"{owner}: there is no {path.name}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{owner}: {path.name} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{owner}: {path.name} holds no JSON object")
    return content


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write fp32 tensors as they come; ``shapes`` names them beforehand, in the same order.

    The safetensors library writes only what is all in memory at once. The format is a little-endian length, a JSON
    header with every tensor's place, and the bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for (expected, shape), (name, tensor) in zip(shapes.items(), tensors, strict=True):
            if (name, tuple(tensor.shape)) != (expected, tuple(shape)):
                raise RuntimeError(f"{path}: {name} {tuple(tensor.shape)} where {expected} {tuple(shape)} is due")
            stream.write(tensor.float().contiguous().numpy().data)
