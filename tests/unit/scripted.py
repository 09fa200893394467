"""What tests of evaluation share: a model that answers as told, data as it is fetched, a multimodal base."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lm_eval.api.model import LM
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration


class Scripted(LM):
    """A model that answers from the document: text to generate, or which continuations are certain."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.prompts: list[Any] = []

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self.prompts.append(chat_history)
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in chat_history)

    @property
    def tokenizer_name(self) -> str:
        return "scripted"

    def generate_until(self, requests: Any) -> list[str]:
        return [str(self.answer(request.doc)) for request in requests]

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        right = [request.args[1].strip() == str(self.answer(request.doc)).strip() for request in requests]
        return [(0.0 if one else -9.0, one) for one in right]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        raise NotImplementedError


def parquet(folder: Path, split: str, documents: list[dict[str, Any]]) -> Path:
    """The folder, with the documents as a split in it."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(documents), folder / f"{split}.parquet")
    return folder


def save_multimodal(base: Path, folder: Path) -> Path:
    """The text model of a base inside a multimodal checkpoint, with a vision tower and MTP tensors beside it."""
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 128, "num_position_embeddings": 16,
    }  # fmt: skip
    text = AutoConfig.from_pretrained(base).to_dict()
    torch.manual_seed(3)
    config = Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in load_file(base / "model.safetensors").items():
        tensors[name if "language_model" in name else name.replace("model.", "model.language_model.", 1)] = tensor
    save_file(tensors | {"mtp.norm.weight": torch.ones(128)}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copy(base / name, folder)
    return folder
