"""PEFT's ``add_weighted_adapter`` as a program: load adapters onto a Qwen3.5, merge them, save the result.

The base's weights are never read: only what PEFT itself needs is spent. ``merged.json`` in the output folder says how
long the merge proper took.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from inputs import SIZES, qwen_config
from peft import PeftModel
from transformers import Qwen3_5ForCausalLM


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = made.add_argument
    add("--size", choices=sorted(SIZES), required=True, help="size of the Qwen3.5 model")
    add("--adapter", type=Path, action="append", required=True, metavar="DIR", help="an adapter folder; repeat")
    add("--combination", required=True, metavar="TYPE", help="PEFT's combination_type")
    add("--weight", type=float, default=1.0, help="weight of every adapter; default 1")
    add("--density", type=float, help="share of entries that is kept, where the combination has it")
    add("--layers", type=int, help="merge only the first layers of the model; default all")
    add("--threads", type=int, default=1, help="threads of PyTorch; default 1")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the merged adapter")
    return made


def empty_model(size: str, layers: int | None) -> Qwen3_5ForCausalLM:
    """A bfloat16 model whose weights are not initialised: untouched pages take no memory.

    The embedding is cut to a few rows, since no adapter is on it.
    """
    with torch.device("meta"):
        model: Any = Qwen3_5ForCausalLM(qwen_config(size, layers, vocab_size=16))
        model.to(torch.bfloat16)
    return model.to_empty(device="cpu")


def load(model: Qwen3_5ForCausalLM, folders: Sequence[Path]) -> tuple[PeftModel, list[str]]:
    """The model with all adapters on it, and their names."""
    names = [folder.name for folder in folders]
    loaded = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        loaded.load_adapter(str(folder), adapter_name=name)
    return loaded, names


def run() -> None:
    """Merge as the command line says."""
    given = parser().parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(1)
    model, names = load(empty_model(given.size, given.layers), given.adapter)
    options: dict[str, Any] = {} if given.density is None else {"density": given.density}
    wall, cpu = time.perf_counter(), time.process_time()
    model.add_weighted_adapter(
        names, [given.weight] * len(names), "merged", combination_type=given.combination, **options
    )
    facts = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    model.save_pretrained(str(given.out), selected_adapters=["merged"], save_embedding_layers=False)
    (given.out / "merged.json").write_text(json.dumps({"facts": facts}) + "\n")


if __name__ == "__main__":
    run()
