"""Adapters of others: by what they call their base, and by what they hold of it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.artifacts.adapter_config import check_named_base
from mergetime.core.errors import UserError
from mergetime.core.provenance import record
from mergetime.hub.server import revision_of
from tests.unit.test_finite import ADAPTER, BASE
from tests.unit.test_hub import error_line, fetch

OURS = "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize(
    ("named", "declared"),
    [
        (OURS, None),
        ("qwen/qwen2.5-0.5b", None),
        ("unsloth/qwen2.5-0.5b-bnb-4bit", "unsloth/qwen2.5-0.5b-bnb-4bit"),
        ("/workspace/models/Qwen2.5-0.5B", "/workspace/models/Qwen2.5-0.5B"),
        (None, "unnamed"),
        # A declaration is needed no more where the adapter says it itself.
        (OURS, "unnamed"),
    ],
)
def test_a_base_has_its_name_in_any_case_or_the_one_that_is_declared(named: str | None, declared: str | None) -> None:
    check_named_base("o/a", named, OURS, declared)


@pytest.mark.parametrize(
    ("named", "declared", "message"),
    [
        (
            "o/other",
            None,
            f"trained on base o/other, this study's is {OURS}; choose an adapter of this base, or, where the",
        ),
        (None, None, "where the two are the same, say trained_on: unnamed"),
        ("o/other", "o/another", "trained on base o/other, and not on o/another; correct trained_on"),
    ],
)
def test_another_base_is_refused_with_what_to_declare(named: str | None, declared: str | None, message: str) -> None:
    with pytest.raises(UserError, match="adapter o/a: ") as caught:
        check_named_base("o/a", named, OURS, declared)
    assert message in str(caught.value)


def imported(
    tmp_path: Path, weights: dict[str, torch.Tensor], *options: str, pickled: Any = None
) -> "subprocess.CompletedProcess[str]":
    """The demo's adapter with these tensors besides, imported for the demo's base, which it calls /models/mine.

    Where something is ``pickled``, it is all that the repository has for weights.
    """
    repository, base = tmp_path / "hub/models/o/adapter", tmp_path / "base"
    repository.mkdir(parents=True, exist_ok=True)
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        (base / name).symlink_to(BASE / name)
    facts = {"weights_sha256": "0" * 64}
    record(base / "fetched.json", stage="fetch_model", inputs={}, config={}, facts=facts, started=0.0)
    config = json.loads((ADAPTER / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/models/mine"}
    (repository / "adapter_config.json").write_text(json.dumps(config))
    if pickled is None:
        save_file(load_file(ADAPTER / "adapter_model.safetensors") | weights, repository / "adapter_model.safetensors")
    else:
        torch.save(pickled, repository / "adapter_model.bin")
    return fetch(
        "import_expert", tmp_path / "hub", "--model", "o/adapter", "--revision", revision_of(repository),
        "--base", str(base), "--base-model", "mergetime/qwen3.5-demo", "--out", str(tmp_path / "out"), *options,
    )  # fmt: skip


def test_copies_of_the_bases_weights_are_compared(tmp_path: Path) -> None:
    name, tensor = next(item for item in load_file(BASE / "model.safetensors").items() if "up_proj" in item[0])
    key = f"base_model.model.{name.removesuffix('.weight')}.base_layer.weight"
    done = imported(tmp_path / "same", {key: tensor}, "--trained-on", "/models/mine")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "same/out/adapter_model.safetensors").is_file()
    done = imported(tmp_path / "other", {key: tensor + 1}, "--trained-on", "/models/mine")
    assert f"{key} is not the base's {name}; it was trained on another base" in error_line(done)
    assert not (tmp_path / "other/out").exists()


def test_weights_that_are_there_pickled_alone_are_converted(tmp_path: Path) -> None:
    weights = load_file(ADAPTER / "adapter_model.safetensors")
    done = imported(tmp_path, {}, "--trained-on", "/models/mine", pickled=weights)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "expert.json",
    ]
    assert all(tensor.equal(weights[name]) for name, tensor in load_file(out / "adapter_model.safetensors").items())


def test_code_among_pickled_weights_is_not_run(tmp_path: Path) -> None:
    done = imported(tmp_path, {}, "--trained-on", "/models/mine", pickled={"key": Path(tmp_path / "run")})
    line = error_line(done)
    assert line.startswith("error: adapter o/adapter: adapter_model.bin is no file of tensors alone, or damaged, and ")
    assert not (tmp_path / "out").exists()


def test_pickled_weights_beside_safetensors_stay_where_they_are(tmp_path: Path) -> None:
    repository = tmp_path / "hub/models/o/adapter"
    repository.mkdir(parents=True)
    (repository / "adapter_model.bin").write_bytes(b"no weights")
    done = imported(tmp_path, {}, "--trained-on", "/models/mine")
    assert done.returncode == 0, done.stderr
