"""Models of true shapes with random weights, made where the checks run, and examples to train on."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.merge.inputs import qwen_config
from tests.benchmarks.train.run import chats
from tests.gpu.checking import ROOT, Setting, device

if TYPE_CHECKING:
    from mergetime.training.expert import Learner

DEMO_BASE = ROOT / "config/demo_base"
WEIGHTS = "model.safetensors"
LONGEST = {"true": 900, "tiny": 24}
"""Words that a chat is limited to."""


def base(setting: Setting, size: str, layers: int | None = None) -> Path:
    """The folder of a base in bfloat16 with the demo's tokenizer, made where it is missing.

    Args:
        setting: at tiny shapes the base is the demo's, whatever the size, with random weights too.
        size: of the models that ``tests/benchmarks/merge/inputs.py`` knows.
        layers: the first of them alone.
    """
    name = setting.shape if setting.tiny else f"{size}-{layers or 'all'}"
    folder = setting.work / "bases" / name
    if not folder.exists():
        unfinished = folder.with_name(f"{name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_base(setting, size, layers, unfinished)
        unfinished.rename(folder)
    return folder


def _write_base(setting: Setting, size: str, layers: int | None, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(DEMO_BASE) if setting.tiny else qwen_config(size, layers, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="50GB")
    for file in DEMO_BASE.iterdir():
        if file.name not in (WEIGHTS, "config.json"):
            shutil.copy(file, folder)


def examples(setting: Setting, folder: Path, count: int) -> list[Any]:
    """Chats of varying lengths, as the pipeline encodes them."""
    from mergetime.data.format import chat
    from mergetime.modalities.causal_lm.encoding import encode_chat
    from mergetime.modalities.causal_lm.reading import reader

    tokenizer = reader(folder)
    pairs = chats(count, LONGEST[setting.shape], seed=1)
    return [encode_chat(tokenizer, chat(prompt, response)) for prompt, response in pairs]


def learner(folder: Path, training: Any) -> "Learner":
    """What trains a base of :func:`base`."""
    import torch

    from mergetime.training.expert import Learner

    return Learner(folder, "random", training, torch.bfloat16, seed=1)
