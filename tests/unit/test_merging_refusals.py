"""What people give by mistake is refused in one line that is true, with the mend."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.artifacts.converting import convert
from mergetime.core.errors import UserError
from mergetime.merging import registry
from mergetime.merging.engine import merge
from tests.unit.test_merging_embeddings import HEAD, TABLE, adapter, base_at, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("refusals") / "base", tied=False)


def run(expert: Path, base: Path, out: Path, **given: Any) -> None:
    settings: dict[str, Any] = {"method": "simple_average", "params": {}, "space": "delta", "seed": None, **given}
    merge([("a", expert)], base=base, out=out, **settings)


def refusal(expert: Path, base: Path, out: Path, **given: Any) -> str:
    with pytest.raises(UserError) as refused:
        run(expert, base, out, **given)
    assert not out.exists()
    return str(refused.value)


def changed(folder: Path, file: str, names: dict[str, str], **tensors: torch.Tensor) -> Path:
    """The folder with tensors under other names, and others in their place."""
    weights = load_file(folder / file)
    weights = {names.get(name, name): tensor for name, tensor in weights.items()} | tensors
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("path", ["/nowhere/at/all", "owner/model"])
def test_an_expert_that_is_not_there(path: str, base: Path, tmp_path: Path) -> None:
    said = f"expert a ({path}): {path} is not there; give a folder, and download what is on a hub first"
    assert refusal(Path(path), base, tmp_path / "out") == said


def test_an_expert_that_is_a_file_or_a_loop_of_links(base: Path, tmp_path: Path) -> None:
    assert f"{__file__} is no folder; give a folder" in refusal(Path(__file__), base, tmp_path / "out")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert f"{loop} is not there" in refusal(loop, base, tmp_path / "out")


def test_weights_that_were_not_gathered(base: Path, tmp_path: Path) -> None:
    empty, words = torch.zeros(0, 16), "is empty (0x16), as DeepSpeed's ZeRO-3 and FSDP save weights that"
    model = load(base)
    model.save_pretrained(tmp_path / "full")
    changed(tmp_path / "full", "model.safetensors", {}, **{HEAD: empty})
    assert f"{HEAD} {words}" in refusal(tmp_path / "full", base, tmp_path / "out")
    for key, tensor, size in (
        (f"base_model.model.{TABLE}", empty, "0x16"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(0), "0"),
    ):
        expert = changed(
            adapter(base, tmp_path / size, 1, target_modules=["q_proj"]),
            "adapter_model.safetensors",
            {},
            **{key: tensor},
        )
        assert f"{key} is empty ({size}), as DeepSpeed's" in refusal(expert, base, tmp_path / "out")


def test_names_that_a_wrapper_or_a_training_gave(base: Path, tmp_path: Path) -> None:
    load(base).save_pretrained(tmp_path / "full")
    names = {name: f"_orig_mod.{name}" for name in load_file(base / "model.safetensors")}
    changed(tmp_path / "full", "model.safetensors", names)
    assert refusal(tmp_path / "full", base, tmp_path / "out").endswith(
        "torch puts _orig_mod. before the names of a wrapped model; save the model that is inside"
    )
    expert = adapter(base, tmp_path / "a", 1, target_modules=["q_proj"])
    keys = load_file(expert / "adapter_model.safetensors")
    changed(expert, "adapter_model.safetensors", {key: key.replace(".weight", ".default.weight") for key in keys})
    assert "lora_A.default.weight is not named as PEFT's save_pretrained names factors" in refusal(
        expert, base, tmp_path / "out"
    )


@pytest.mark.parametrize("value", [7, "lm_head", [1]])
def test_modules_to_save_are_names(value: Any, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, target_modules=["q_proj"])
    file = expert / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": value}))
    said = f"expert a ({expert}): modules_to_save of adapter_config.json is not a list of names"
    assert refusal(expert, base, tmp_path / "out") == said


def test_a_number_that_no_float_holds() -> None:
    with pytest.raises(ValueError, match=r"lambda: 9{400} is outside"):
        registry.get("task_arithmetic").validate({"lambda": int("9" * 400)})


def test_quantisation_of_a_section_goes(base: Path, tmp_path: Path) -> None:
    copy = base_at(tmp_path / "base", tied=False)
    config = json.loads((copy / "config.json").read_text())
    section = {"hidden_size": 1, "quantization_config": {"quant_method": "fp8"}}
    (copy / "config.json").write_text(json.dumps(config | {"vision_config": section}))
    run(adapter(base, tmp_path / "a", 1, target_modules=["q_proj"]), copy, tmp_path / "out", output="checkpoint")
    assert json.loads((tmp_path / "out/config.json").read_text())["vision_config"] == {"hidden_size": 1}


def test_a_pointer_of_git_lfs_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter_config.json").write_text("{}")
    (tmp_path / "a/adapter_model.bin").write_text("version https://git-lfs\noid sha256:0\n")
    with pytest.raises(UserError, match=r"adapter_model.bin is a pointer of Git LFS, not the file; fetch it with git"):
        convert(tmp_path / "a", tmp_path / "out")


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    code = "import mergetime.core.errors, os, signal, time; signal.raise_signal(signal.SIGINT); time.sleep(30)"
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {code}"
    environment = {"PYTHONPATH": str(ROOT / "scripts"), "PATH": ""}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == "stopped by SIGINT; give the same command again\n"
    assert done.returncode != 0
    assert time.monotonic() - started < 25
