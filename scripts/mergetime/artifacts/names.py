"""What the files of experts, merges and bases are called, and the digest that stands for a model.

Whoever fetches models imports this module and no other of the folder: a change of what is done with the files fetches
nothing again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mergetime.core.provenance import sha256

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PICKLED_ADAPTER = "adapter_model.bin"
"""What PEFT wrote before it wrote safetensors."""
TASK_VECTOR = "task_vector.safetensors"
MODEL_WEIGHTS = "model.safetensors"
MODEL_CONFIG = "config.json"
MODEL_INDEX = "model.safetensors.index.json"
"""Tensor to shard, where a checkpoint has several."""
MODEL_SHARDS = "model-*.safetensors"
UNNAMED = "unnamed"
"""Stands for the base of an adapter whose config does not say what it was trained on."""


def shard_name(number: int, count: int) -> str:
    """The file name of a checkpoint's shard, counted from 0, among ``count``; a single one has no number."""
    return MODEL_WEIGHTS if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def model_weights(folder: Path) -> list[Path]:
    """The files that transformers reads a model's weights from: one file, else what the index names, else all.

    Other files stay out of it: what a run of training left beside, or the same weights under other names.
    """
    if (folder / MODEL_WEIGHTS).is_file():
        return [folder / MODEL_WEIGHTS]
    if not (folder / MODEL_INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads((folder / MODEL_INDEX).read_text())["weight_map"].values())
        # A name that leads elsewhere is refused by whoever opens the weights.
        return [folder / name for name in sorted(shards) if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted(folder.glob("*.safetensors"))


def left_aside(folder: Path, read: Sequence[Path]) -> tuple[str, ...]:
    """The names of the files of weights in a folder, an index included, beside those that are read."""
    weights = {*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.gguf")}
    names = {path.name for path in weights.difference(read)}
    if (folder / MODEL_INDEX).is_file() and folder / MODEL_WEIGHTS in read:
        names.add(MODEL_INDEX)
    return tuple(sorted(names))


def digest(folder: Path) -> str:
    """The digest that stands for a model: of its safetensors file, or of the digests of its shards in order."""
    weights = model_weights(folder)
    if len(weights) == 1:
        return sha256(weights[0])
    return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()
