"""Random experts at true shapes: fully fine-tuned variants of a small Llama, and LoRA adapters for Qwen3.5.

The values are random, the shapes, types and relative sizes are those of real experts: the time of a merge depends on
little else. Everything is made once and kept; a folder under its own name is complete.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The module is read for its shapes alone as well, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch

EXPERTS = ("one", "two", "three", "four", "five")
RANK = 16
PROJECTIONS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
# 349.4 million parameters, the embedding being the output layer too.
LLAMA: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2928,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
INITIAL_STD = 0.02
DELTA_SHARE = 0.01  # norm of an expert's update, as a share of the base's


@dataclass(frozen=True)
class Size:
    """What distinguishes a Qwen3.5 model's text layers, and how many million parameters a rank-16 adapter has."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    value_heads: int
    adapter_millions: float


# Hidden sizes, layer counts, head counts at 0.8B and 4B and the intermediate size at 0.8B are published. The other
# values are inferred: with them the adapters get the published number of parameters, which is checked below.
SIZES = {
    "0.8B": Size(1024, 3584, 24, 8, 2, 16, 10.8),
    "2B": Size(2048, 6144, 24, 8, 2, 16, 16.8),
    "4B": Size(2560, 9216, 32, 16, 4, 32, 32.5),
}


def make_llama(work: Path, dtype: str) -> tuple[Path, dict[str, Path]]:
    """The base's folder and the experts' folders by name, in this dtype, made where they are missing."""
    place, config = work / "llama" / dtype, {**LLAMA, "dtype": dtype}
    base = place / "base"
    _make(base, config, partial(_write_base, dtype=dtype))
    experts = {name: place / name for name in EXPERTS}
    for seed, (_, folder) in enumerate(experts.items(), start=1):
        recipe = {**config, "seed": seed, "delta_share": DELTA_SHARE}
        _make(folder, recipe, partial(_write_variant, base, seed=seed, dtype=dtype))
    return base, experts


def make_adapters(work: Path, size: str) -> dict[str, Path]:
    """The folders of five rank-16 adapters of a Qwen3.5 size by name, made where they are missing."""
    folders = {name: work / "qwen" / size / name for name in EXPERTS}
    shapes: dict[str, tuple[int, int]] = {}
    for seed, (_, folder) in enumerate(folders.items(), start=1):

        def write(unfinished: Path, seed: int = seed) -> None:
            if not shapes:
                shapes.update(adapted_shapes(size))
            _write_adapter(unfinished, shapes, size, seed)

        _make(folder, {**vars(SIZES[size]), "rank": RANK, "seed": seed}, write)
    return folders


def qwen_config(size: str, layers: int | None = None, **changes: Any) -> Any:
    """The config of a Qwen3.5 text model, or of its first ``layers`` layers, every fourth with full attention."""
    from transformers import Qwen3_5TextConfig

    own = SIZES[size]
    return Qwen3_5TextConfig(
        hidden_size=own.hidden,
        intermediate_size=own.intermediate,
        num_hidden_layers=layers or own.layers,
        num_attention_heads=own.heads,
        num_key_value_heads=own.key_value_heads,
        linear_num_value_heads=own.value_heads,
        linear_num_key_heads=16,
        head_dim=256,
        tie_word_embeddings=True,
        **{"vocab_size": 248320, **changes},
    )


def adapted_shapes(size: str) -> dict[str, tuple[int, int]]:
    """Every linear module inside the layers of a Qwen3.5 size with its (outputs, inputs).

    Raises:
        RuntimeError: where rank-16 adapters on them do not have the published number of parameters.
    """
    import torch
    from transformers import Qwen3_5ForCausalLM

    with torch.device("meta"):
        model = Qwen3_5ForCausalLM(qwen_config(size))
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in PROJECTIONS
    }
    millions = RANK * sum(outputs + inputs for outputs, inputs in shapes.values()) / 1e6
    if round(millions, 1) != SIZES[size].adapter_millions:
        raise RuntimeError(
            f"Qwen3.5 {size}: a rank-{RANK} adapter has {millions:.2f} million parameters here, "
            f"{SIZES[size].adapter_millions} million with the published shapes"
        )
    return shapes


def _make(folder: Path, recipe: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Write a folder beside its place and rename it, unless it is there and was made by the same recipe."""
    note = folder / "recipe.json"
    if note.is_file() and json.loads(note.read_text()) == recipe:
        return
    print(f"making {folder}", flush=True)
    unfinished = folder.with_name(f".{folder.name}.partial")
    for stale in (unfinished, folder):
        shutil.rmtree(stale, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    (unfinished / note.name).write_text(json.dumps(recipe, indent=2) + "\n")
    unfinished.replace(folder)


def _llama_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint of the Llama holds: tied weights once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _write_base(folder: Path, dtype: str) -> None:
    import torch

    shapes = _llama_shapes()
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.randn(shape, generator=generator) * INITIAL_STD

    _write_llama(folder, dtype, shapes, ((name, draw(shape)) for name, shape in shapes.items()))


def _write_variant(base: Path, folder: Path, seed: int, dtype: str) -> None:
    """The base plus a random update: each tensor's is a hundredth of its norm before rounding to the dtype."""
    import torch
    from safetensors import safe_open

    shapes = _llama_shapes()
    generator = torch.Generator().manual_seed(seed)
    with safe_open(base / "model.safetensors", framework="pt") as file:

        def changed(name: str) -> torch.Tensor:
            weight = file.get_tensor(name).float()
            size = DELTA_SHARE * float(weight.norm()) / math.sqrt(weight.numel())
            return weight + torch.randn(weight.shape, generator=generator) * size

        _write_llama(folder, dtype, shapes, ((name, changed(name)) for name in shapes))


def _write_llama(
    folder: Path, dtype: str, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"], dtype=dtype)
    config.save_pretrained(folder)
    _write_safetensors(folder / "model.safetensors", dtype, shapes, tensors)


def _write_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]], size: str, seed: int) -> None:
    """Random factors as after training: A near its initial scale, B small."""
    import torch
    from peft import LoraConfig

    LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules=sorted(PROJECTIONS),
        task_type="CAUSAL_LM",
        base_model_name_or_path=f"Qwen3.5-{size}",
        inference_mode=True,
    ).save_pretrained(str(folder))
    factors: dict[str, tuple[int, ...]] = {}
    for module, (outputs, inputs) in shapes.items():
        factors[f"base_model.model.{module}.lora_A.weight"] = (RANK, inputs)
        factors[f"base_model.model.{module}.lora_B.weight"] = (outputs, RANK)
    generator = torch.Generator().manual_seed(seed)

    def draw(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        scale = 1 / math.sqrt(3 * shape[1]) if "lora_A" in key else 0.01
        return torch.randn(shape, generator=generator) * scale

    tensors = ((key, draw(key, shape)) for key, shape in factors.items())
    _write_safetensors(folder / "adapter_model.safetensors", "float32", factors, tensors)


def _write_safetensors(
    path: Path, dtype: str, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write tensors as they come, in the order of ``shapes``, as float32 or bfloat16.

    The safetensors library needs all of them in memory. The format is a little-endian length, a JSON header with
    every tensor's place, and the bytes.
    """
    import torch

    kind, width = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in tensors:
            # NumPy has no bfloat16: the bytes go through an integer view.
            stream.write(tensor.to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().data)
