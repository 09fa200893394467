"""Merges of full checkpoints by `merge_experts.py --device cuda` and by `mergekit-yaml --cuda`, files to files."""

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.merge.inputs import LLAMA
from tests.gpu.checking import ROOT, Figure, Setting, Skipped, device

EXPERTS = ("one", "two", "three", "four", "five")
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 4, "vocab_size": 320}
METHODS: Mapping[str, Mapping[str, float]] = {"ties": {"density": 0.2}, "dare_ties": {"density": 0.5}}


def check(setting: Setting) -> Iterator[Figure]:
    """The whole programs, imports and digests included; inputs were just written, so they are in memory."""
    folder = setting.work / "llama"
    _make(setting, folder)
    theirs = importlib.util.find_spec("mergekit") is not None
    for method, params in METHODS.items():
        ours = _seconds(_ours(folder, method, params), setting.work / "merged")
        yield Figure(f"{method}: merge_experts.py", ours, "s", f"on the {device()}, checkpoint in float32")
        if not theirs:
            raise Skipped("mergekit is not installed")
        yield Figure(f"{method}: mergekit", _seconds(_mergekit(folder, method, params), setting.work / "merged"), "s")


def _make(setting: Setting, folder: Path) -> None:
    """A base and five variants of a Llama, of random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config: Any = LlamaConfig(**{**LLAMA, **(TINY if setting.tiny else {})})
    with torch.device(device()):
        model: Any = LlamaForCausalLM(config)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name in ("base", *EXPERTS):
            for key, parameter in model.named_parameters():
                changed = torch.randn_like(parameter) * 0.01 * start[key].std(correction=0)
                parameter.copy_(start[key] + (changed if name != "base" else 0))
            model.to(torch.bfloat16).save_pretrained(folder / name)
            model.float()


def _ours(folder: Path, method: str, params: Mapping[str, float]) -> list[str]:
    command = [sys.executable, str(ROOT / "scripts/merge_experts.py"), "--method", method, "--device", device()]
    command += ["--base", str(folder / "base"), "--output", "checkpoint", "--dtype", "float32", "--seed", "1"]
    for name in EXPERTS:
        command += ["--expert", f"{name}={folder / name}"]
    for name, value in params.items():
        command += ["--set", f"{name}={value}"]
    return [*command, "--out"]


def _mergekit(folder: Path, method: str, params: Mapping[str, float]) -> list[str]:
    models = [{"model": str(folder / name), "parameters": {"weight": 1.0, **params}} for name in EXPERTS]
    config = {"merge_method": method, "base_model": str(folder / "base"), "models": models, "dtype": "float32"}
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(file), "--no-copy-tokenizer", "--lazy-unpickle"]
    command += ["--no-write-model-card", "--random-seed", "1", *(["--cuda"] if device() == "cuda" else [])]
    return command


def _seconds(command: list[str], out: Path) -> float:
    """How long the program takes; what it writes is deleted."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    # mergekit takes the folder as its second argument, wherever it stands.
    subprocess.run([*command, str(out)], check=True)
    seconds = time.monotonic() - started
    shutil.rmtree(out)
    return seconds
