"""Safetensors files, written tensor by tensor: a dense task vector need not fit in memory."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch


_LARGEST = 100_000_000
"""Bytes of a file that is read as a whole; the largest vocabularies that are in use take a third."""


@contextmanager
def safetensors_file(path: Path, owner: str) -> Iterator[Any]:
    """Open a safetensors file for reading; ``owner`` begins the error message where it is absent or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(
            f"{owner}: there is no {path.name}; weights are read from safetensors alone, scripts/convert_weights.py "
            "converts .bin files"
        )
    # What the system refuses is said by its own error; the library's says that the file is not there.
    path.open("rb").close()
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{owner}: {path.name} is damaged or incomplete ({error}); make or fetch it again") from error


def refuse_empty(owner: str, key: str, shape: Sequence[int]) -> None:
    """Refuse a tensor without entries, as sharded training saves one that it has not gathered.

    Raises:
        UserError: naming it.
    """
    if 0 in shape:
        raise UserError(
            f"{owner}: {key} is empty ({'x'.join(map(str, shape))}), as DeepSpeed's ZeRO-3 and FSDP save weights that "
            "were not gathered; gather them (zero_to_fp32.py, FULL_STATE_DICT), and save it again"
        )


class NotFiniteTensorError(ValueError):
    """A tensor that is to be written holds NaN or infinite values; ``tensor`` is its name."""

    def __init__(self, tensor: str) -> None:
        super().__init__(f"{tensor} holds NaN or infinite values")
        self.tensor = tensor


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinite values: one pass, 0.3 s for 1 GB on one core, and no copy."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Unlike torch.isfinite, which makes a tensor of answers; NaN is passed on to both.
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor.detach()))


def check_finite(path: Path, owner: str, hint: str) -> None:
    """Refuse a safetensors file with a tensor that holds NaN or infinite values.

    Args:
        path: the file.
        owner: begins the message.
        hint: ends it, saying why, or what to do.

    Raises:
        UserError: naming the tensor.
    """
    with safetensors_file(path, owner) as file:
        for key in sorted(file.keys()):
            if not is_finite(file.get_tensor(key)):
                raise UserError(f"{owner}: {key} holds NaN or infinite values; {hint}")


def is_plain_name(name: Any) -> bool:
    """Whether what an index or a list says is the name of a file in its own folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def check_size(path: Path, owner: str) -> None:
    """Refuse a file beside the weights (settings, vocabulary, template) that is larger than any such file.

    Raises:
        UserError: naming the file.
    """
    size = path.stat().st_size
    if size > _LARGEST:
        raise UserError(
            f"{owner}: {path.name} has {size} bytes; such files have at most {_LARGEST}; fetch or make it again"
        )


def read_json(path: Path, owner: str) -> dict[str, Any]:
    """A JSON object; ``owner`` begins the error message where it is absent, damaged or too large."""
    if not path.is_file():
        raise UserError(f"{owner}: there is no {path.name}")
    check_size(path, owner)
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{owner}: {path.name} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{owner}: {path.name} holds no JSON object")
    return content


def recorded_base(owner: str, folder: Path) -> str | None:
    """The base that training noted beside the weights or beside the run's folder; None for experts of others."""
    for path in (folder / "expert.json", folder.parent / "expert.json"):
        if path.is_file():
            record = read_json(path, owner)
            base = (record.get("facts") or record).get("base_sha256")
            return None if base is None else str(base)
    return None


FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights, as safetensors says them."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}


class TensorFile:
    """A safetensors file of known shapes, filled in any order and by several threads.

    The safetensors library writes only what is all in memory at once. The format is a little-endian length, a JSON
    header with every tensor's place, and the bytes.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Create the file; ``tensors`` are the name, the dtype as safetensors says it, and the shape of each."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + BYTES.get(dtype, 1) * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        first = 8 + len(encoded)
        self._places = {
            name: (first + spot["data_offsets"][0], spot) for name, spot in header.items() if name[:2] != "__"
        }
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(encoded)) + encoded)
        self._file.flush()
        self._file.truncate(first + end)

    def write(self, name: str, tensor: torch.Tensor, start: int = 0, *, as_it_is: bool = False) -> None:
        """Write a block of a tensor, in the file's dtype, from its flattened entry ``start`` on.

        Raises:
            NotFiniteTensorError: for a weight that is none; a buffer, which may be a mask, is written ``as_it_is``.
        """
        import torch

        place, spot = self._places[name]
        size = BYTES.get(spot["dtype"], 1)
        if tensor.element_size() != size or start + tensor.numel() > math.prod(spot["shape"]):
            raise RuntimeError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} at {start} does not fit {spot}")
        if not as_it_is and not is_finite(tensor):
            raise NotFiniteTensorError(name)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        written = 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], place + start * size + written)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
