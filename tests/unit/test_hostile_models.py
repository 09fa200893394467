"""Configs that describe what no machine holds, or another model than the weights are, end in one line."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mergetime.core.errors import UserError
from mergetime.modalities.causal_lm import loading
from mergetime.modalities.causal_lm.loading import load_base

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/demo_base"


def with_config(folder: Path, **changes: Any) -> Path:
    """The demo's base, by links, with other settings in its config.json."""
    folder.mkdir()
    for file in BASE.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((BASE / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused_config(folder: Path) -> str:
    """What is said of a config, in one line, without taking memory or long."""
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_base(folder, dtype=torch.float32, four_bit=False)
    assert time.process_time() - started < 20
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"model {folder}: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "config.json: num_hidden_layers is 1000000000, but the weights are "),
        ({"hidden_size": -5}, "config.json: hidden_size is -5; no size is negative"),
        ({"vocab_size": 10**12}, "config.json makes model.embed_tokens.weight 1000000000000x128 (vocab_size 1000000000000), in"),
        ({"intermediate_size": 10**12}, "config.json makes model.layers.0.mlp.gate_proj.weight 1000000000000x128 (interm"),
        ({"hidden_size": 10**30}, "no model can be made of config.json ("),
        ({"head_dim": 10**10}, "config.json makes model.layers."),
        ({"hidden_size": "wide"}, "no model can be made of config.json ("),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_by_key(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert refused_config(with_config(tmp_path / "m", **changes)).startswith(said)


LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 16,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 32,
}  # fmt: skip


def with_weights(folder: Path, config: dict[str, Any], names: list[str]) -> Path:
    """A model of tiny tensors, whatever its config says."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(2) for name in names}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_is_far_larger_than_its_weights_is_refused_by_its_sizes(tmp_path: Path) -> None:
    folder = with_weights(tmp_path / "m", LLAMA | {"vocab_size": 10**9}, ["other"])
    assert refused_config(folder).startswith(
        "config.json describes a model of 32000001848 numbers (num_hidden_layers 1, vocab_size 1000000000, hidden_size 16"
    )


def test_so_are_buffers(tmp_path: Path) -> None:
    config = {"model_type": "gptj", "n_positions": 10**9, "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 32}
    folder = with_weights(tmp_path / "m", config | {"rotary_dim": 2}, ["other"])
    assert "n_positions 1000000000" in refused_config(folder)


def test_laying_out_a_model_takes_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_BUILD_S", 1)
    folder = with_weights(tmp_path / "m", LLAMA | {"num_hidden_layers": 20_000}, [f"t{n}" for n in range(20_000)])
    before = signal.getsignal(signal.SIGPROF)
    assert refused_config(folder).startswith(
        "laying out what config.json describes takes over 1 s (num_hidden_layers 20000, vocab_size 32"
    )
    assert signal.getsignal(signal.SIGPROF) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_weights_that_lack_a_tensor_are_not_made_up(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path / "m")
    load_base(tmp_path / "m", dtype=torch.float32, four_bit=False)
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert refused_config(tmp_path / "m").startswith("the weights lack model.layers.1.input_layernorm.weight, which")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "config.json is no JSON ("),
        (b" " * 100_000_001, "config.json has 100000001 bytes; such files have at most 100000000"),
    ],
)
def test_a_config_that_is_nested_too_deeply_or_too_large_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    assert refused_config(folder).startswith(said)
