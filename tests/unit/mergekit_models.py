"""Tiny Llamas, and mergekit as a program of its own that merges them: it is never imported beside ours."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mergetime.merging.methods.dare import uniforms

EXPERTS = ("code", "math", "safety")
HIDDEN, INNER, VOCABULARY, LAYERS = 24, 40, 50, 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
# Where draws.npz lies beside the files, what is drawn at random is drawn with those numbers.
DRIVER = """
import sys
from pathlib import Path

import numpy
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions

folder = Path(sys.argv[1])
if (folder / "draws.npz").is_file():
    draws = numpy.load(folder / "draws.npz")
    merge_group, left = GeneralizedTaskArithmeticMerge.merge_group, []

    def noted(self, group, /, **parameters):
        dropped = [entry for entry in group.non_base if parameters["density"][entry.id] < 1]
        left[:] = [f"{Path(entry.id.model.path).name}|{group.metadata.name}" for entry in dropped]
        return merge_group(self, group, **parameters)

    def drawn(chances):
        numbers = torch.from_numpy(draws[left.pop(0)].astype(numpy.float64)).view(chances.shape)
        return (numbers < (chances.double() * 65536).round()).to(chances)

    GeneralizedTaskArithmeticMerge.merge_group = noted
    torch.bernoulli = drawn
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
for path in sorted(folder.glob("*.yaml")):
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(path.read_text())), str(path.with_suffix("")), options)
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a model."""
    named: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        sizes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        named |= {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    return named


def write_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor], dtype: str = "float32") -> Path:
    """A model's folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": dtype}))
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_models(folder: Path) -> dict[str, Path]:
    """A base of the Llama architecture and three experts with task vectors of full rank, by name."""
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    made = {"base": write_checkpoint(folder / "base", base)}
    # What experts share makes their cosines differ from 0, as Model Stock needs them.
    shared = {name: 0.04 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    for place, name in enumerate(EXPERTS):
        weights = {
            key: base[key] + shared[key] + 0.02 * (2 + place) * torch.randn(base[key].shape, generator=generator)
            for key in base
        }
        made[name] = write_checkpoint(folder / name, weights)
    return made


def write_draws(folder: Path, seed: int, experts: Sequence[str] = EXPERTS) -> None:
    """The random numbers with which this program drops entries, for mergekit."""
    draws = {
        f"{expert}|{name}": uniforms(seed, expert, name, 0, int(np.prod(shape)))
        for expert in experts
        for name, shape in shapes().items()
    }
    np.savez(folder / "draws.npz", **draws)


def run_mergekit(folder: Path) -> None:
    """Merge what every YAML file of the folder says, each into a folder of its name."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder)], capture_output=True, text=True, env=environment, timeout=1200
    )
    assert done.returncode == 0, done.stderr


def distance(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """The distance relative to the length of what is wanted."""
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm())
