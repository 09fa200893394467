"""Weights in PyTorch's pickled files (``.bin``), as safetensors: tensors alone are read, and never code."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mergetime.artifacts.companions import companions, refuse_links_out
from mergetime.artifacts.files import is_plain_name, read_json
from mergetime.artifacts.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MODEL_CONFIG,
    MODEL_INDEX,
    MODEL_WEIGHTS,
    PICKLED_ADAPTER,
)
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError, one_line
from mergetime.core.folders import files_called, refuse_foreign

_POINTER = b"version https://git-lfs"
_MODEL, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def convert(folder: Path, out: Path, owner: str | None = None) -> list[Path]:
    """Write an adapter's or a model's pickled weights to ``out`` as safetensors, with what lies beside them.

    One file at a time is in memory, mapped where it is of a kind that can be. Shards stay shards. Tensors that share
    memory, as tied weights do, are written each by itself.

    Args:
        folder: holds adapter_model.bin, or pytorch_model.bin, or its shards and their index.
        out: another folder, empty or with files of an earlier conversion.
        owner: begins the error message; the folder where none is given.

    Returns:
        The files of weights.

    Raises:
        UserError: where the folder holds no such files, or they hold anything but tensors.
    """
    owner = owner or f"model {folder}"
    targets, index = _files(owner, folder)
    config = ADAPTER_CONFIG if targets.get(PICKLED_ADAPTER) else MODEL_CONFIG
    if not (folder / config).is_file():
        raise UserError(f"{owner}: there is no {config} beside {next(iter(targets))}; fetch the folder as a whole")
    beside = [folder / config, *companions(folder)]
    refuse_links_out(folder, beside)
    if os.path.realpath(out) == os.path.realpath(folder):
        raise UserError(f"{out}: is the folder of the model; give --out another folder")
    copies = {out / path.relative_to(folder): path for path in beside}
    weights = [out / name for name in targets.values()]
    indexes = [out / MODEL_INDEX] if index else []
    written = [*weights, *copies, *indexes]
    refuse_foreign(out, files_called([path.relative_to(out).as_posix() for path in written]), owner)
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
    total = 0
    with completed(*written) as partial:
        for name, target in zip(targets, partial, strict=False):
            tensors = _tensors(owner, folder / name)
            total += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, target, metadata={"format": "pt"})
        for source, target in zip(copies.values(), partial[len(weights) :], strict=False):
            shutil.copyfile(source, target)
        if index:
            weight_map = {key: targets[name] for key, name in index.items()}
            partial[-1].write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    return weights


def _files(owner: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Pickled file to safetensors file, and the tensors' pickled files where an index names several."""
    for name, target in ((PICKLED_ADAPTER, ADAPTER_WEIGHTS), (_MODEL, MODEL_WEIGHTS)):
        if (folder / name).is_file():
            return {name: target}, {}
    if not (folder / _INDEX).is_file():
        raise UserError(f"{owner}: holds no {PICKLED_ADAPTER}, {_MODEL} or {_INDEX}, so there is nothing to convert")
    index = read_json(folder / _INDEX, owner).get("weight_map")
    if not isinstance(index, dict) or not index or not all(map(is_plain_name, index.values())):
        raise UserError(f"{owner}: the weight_map of {_INDEX} does not name files beside it; fetch it again")
    shards = sorted(set(index.values()))
    for name in shards:
        if not (folder / name).is_file():
            raise UserError(f"{owner}: there is no {name}, which {_INDEX} names; fetch it again")
    count = len(shards)
    return {name: f"model-{place:05d}-of-{count:05d}.safetensors" for place, name in enumerate(shards, start=1)}, index


def _tensors(owner: str, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled file by name, each in memory of its own.

    Raises:
        UserError: naming the key that is no tensor, or saying what the file is instead.
    """
    with path.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{owner}: {path.name} is a pointer of Git LFS, not the file; fetch it with git lfs pull")
    try:
        # Files of before PyTorch 1.6 are no archives, and cannot be mapped.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{owner}: {path.name} is no file of tensors alone, or damaged, and code in it is not run: "
            f"{one_line(error)[:200]}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{owner}: {path.name} holds a {type(content).__name__}, and no tensors by name")
    seen: set[int] = set()
    tensors = {}
    for key, tensor in content.items():
        if not isinstance(key, str):
            raise UserError(f"{owner}: {path.name}: its key {key!r} is no name of a tensor; save it without")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise UserError(f"{owner}: {path.name}: {key} is a {type(tensor).__name__}, and no tensor; save it without")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(f"{owner}: {path.name}: {key} is sparse or quantised; save it as a plain tensor")
        plain = tensor.detach().contiguous()
        place = plain.untyped_storage().data_ptr()
        tensors[key] = plain.clone() if place in seen else plain
        seen.add(place)
    return tensors
