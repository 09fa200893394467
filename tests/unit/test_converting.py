"""Pickled weights become safetensors of the same tensors; what is more than tensors, or elsewhere, is refused."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mergetime.artifacts.converting import convert
from mergetime.core.errors import UserError


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        )
    )


def pickled(model: Qwen3ForCausalLM, folder: Path, parts: int = 1, **kind: Any) -> Path:
    """The model as torch.save writes it, in so many files, with its config and a tokenizer's file beside it."""
    model.config.save_pretrained(folder)
    (folder / "vocab.json").write_text("{}")
    tensors = list(model.state_dict().items())
    files = [f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin" for part in range(parts)]
    if parts == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin", **kind)
        return folder
    weight_map: dict[str, str] = {}
    for part, file in enumerate(files):
        torch.save(dict(tensors[part::parts]), folder / file, **kind)
        weight_map |= {name: file for name, _ in tensors[part::parts]}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("parts", "kind", "files"),
    [
        (1, {}, ["model.safetensors"]),
        # As before PyTorch 1.6.
        (1, {"_use_new_zipfile_serialization": False}, ["model.safetensors"]),
        (2, {}, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    ],
)
def test_a_converted_model_is_the_same(
    model: Qwen3ForCausalLM, tmp_path: Path, parts: int, kind: dict[str, Any], files: list[str]
) -> None:
    folder = pickled(model, tmp_path / "model", parts, **kind)
    assert [file.name for file in convert(folder, tmp_path / "out")] == files
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    index = ["model.safetensors.index.json"] if parts > 1 else []
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [*files, *index, "config.json", "vocab.json"]
    )
    # Again: the same folder is filled again.
    convert(folder, tmp_path / "out")


def test_an_adapter_keeps_its_config_and_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    tensors = {
        "base_model.model.q_proj.lora_A.weight": torch.randn(4, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    torch.save(tensors, folder / "adapter_model.bin")
    (file,) = convert(folder, tmp_path / "out")
    assert file == tmp_path / "out" / "adapter_model.safetensors"
    converted = load_file(file)
    assert all(
        torch.equal(tensor, converted[name]) and tensor.dtype == converted[name].dtype
        for name, tensor in tensors.items()
    )
    assert (tmp_path / "out" / "adapter_config.json").read_text() == "{}"


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def written(folder: Path, content: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    if isinstance(content, bytes):
        (folder / "adapter_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "adapter_model.bin")
    return folder


@pytest.mark.parametrize("archive", [True, False])
def test_code_is_not_run(tmp_path: Path, archive: bool) -> None:
    code = {"a": Code(f"touch {tmp_path}/ran")}
    folder = written(tmp_path / "adapter", code if archive else pickle.dumps(code))
    message = refusal(folder, tmp_path / "out")
    assert message.startswith(f"model {folder}: adapter_model.bin is no file of tensors alone, or damaged, and code in")
    assert "\n" not in message
    assert not (tmp_path / "ran").exists()
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], "adapter_model.bin holds a list, and no tensors by name"),
        (
            {"state_dict": {"a": torch.ones(1)}},
            "adapter_model.bin: state_dict is a dict, and no tensor; save it without",
        ),
        ({1: torch.ones(1)}, "adapter_model.bin: its key 1 is no name of a tensor; save it without"),
        ({"a": torch.eye(2).to_sparse()}, "adapter_model.bin: a is sparse or quantised; save it as a plain tensor"),
        (b"", "adapter_model.bin is no file of tensors alone, or damaged"),
        (b"PK\x03\x04 no archive", "adapter_model.bin is no file of tensors alone, or damaged"),
    ],
)
def test_what_is_no_tensor_is_named(tmp_path: Path, content: Any, reason: str) -> None:
    assert reason in refusal(written(tmp_path / "adapter", content), tmp_path / "out")


def test_folders_are_refused_that_hold_none_or_something_else(model: Qwen3ForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "so there is nothing to convert" in refusal(tmp_path / "empty", tmp_path / "out")
    folder = pickled(model, tmp_path / "model", 2)
    assert refusal(folder, folder) == f"{folder}: is the folder of the model; give --out another folder"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "notes.txt: is a file, and none of the files of model" in refusal(folder, tmp_path / "full")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "there is no pytorch_model-00002-of-00002.bin, which" in refusal(folder, tmp_path / "out")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    assert "does not name files beside it" in refusal(folder, tmp_path / "out")
    (folder / "config.json").unlink()
    pickled_alone = folder / "pytorch_model.bin"
    torch.save({"a": torch.ones(1)}, pickled_alone)
    assert "there is no config.json beside pytorch_model.bin" in refusal(folder, tmp_path / "out")


def refusal(folder: Path, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        convert(folder, out)
    return str(caught.value)
