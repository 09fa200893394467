"""What the files of experts, merges and bases are called, and the digest that stands for a model.

Whoever fetches models imports this module and no other of the folder: a change of what is done with the files fetches
nothing again.
"""

import hashlib
from pathlib import Path

from mergetime.core.provenance import sha256

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TASK_VECTOR = "task_vector.safetensors"
MODEL_WEIGHTS = "model.safetensors"
MODEL_CONFIG = "config.json"
MODEL_INDEX = "model.safetensors.index.json"
"""Tensor to shard, where a checkpoint has several."""
MODEL_SHARDS = "model-*.safetensors"


def shard_name(number: int, count: int) -> str:
    """The file name of a checkpoint's shard, counted from 0, among ``count``; a single one has no number."""
    return MODEL_WEIGHTS if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def digest(folder: Path) -> str:
    """The digest that stands for a model: of its safetensors file, or of the digests of its shards in order."""
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) == 1:
        return sha256(weights[0])
    return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()
