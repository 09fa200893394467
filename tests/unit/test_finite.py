"""No tensor is written, imported or kept that holds NaN or infinite values."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.artifacts.files import NotFiniteTensorError, TensorFile, check_finite, is_finite
from mergetime.core.errors import UserError
from mergetime.core.provenance import record
from mergetime.hub.server import revision_of
from tests.unit.test_hub import ROOT, fetch

BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WRONG = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_among_many_is_seen(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(tensor)
    for value in WRONG:
        for place in (0, 1500, 2999):
            damaged = tensor.clone()
            damaged.view(-1)[place] = value
            assert not is_finite(damaged)
            assert not is_finite(damaged.T)


def test_the_largest_numbers_nothing_and_integers_are_finite() -> None:
    assert all(
        is_finite(torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype)) for dtype in FLOATS
    )
    assert is_finite(torch.empty(0, 3))
    assert is_finite(torch.tensor([2**62, -1]))
    assert is_finite(torch.tensor([True]))


@pytest.mark.parametrize("value", WRONG)
def test_a_tensor_file_takes_no_such_block_unless_it_is_a_buffer(tmp_path: Path, value: float) -> None:
    file = TensorFile(tmp_path / "a.safetensors", {"weight": ("F32", (4,)), "mask": ("F32", (2,))})
    file.write("weight", torch.ones(2))
    file.write("mask", torch.tensor([0.0, value]), as_it_is=True)
    with pytest.raises(NotFiniteTensorError, match=r"^weight holds NaN or infinite values$"):
        file.write("weight", torch.tensor([1.0, value]), 2)
    file.close()
    written = load_file(tmp_path / "a.safetensors")
    assert written["weight"].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(written["mask"], torch.tensor([0.0, value]), equal_nan=True)


def test_a_file_is_refused_by_owner_and_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.tensor([1, 2])}, tmp_path / "good.safetensors")
    check_finite(tmp_path / "good.safetensors", "expert x", "lower it")
    save_file({"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"^expert x: b holds NaN or infinite values; lower it$"):
        check_finite(tmp_path / "bad.safetensors", "expert x", "lower it")


def test_an_adapter_that_is_not_finite_is_not_imported(tmp_path: Path) -> None:
    repository, base, out = tmp_path / "hub/models/o/adapter", tmp_path / "base", tmp_path / "out"
    repository.mkdir(parents=True)
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        (base / name).symlink_to(BASE / name)
    facts = {"weights_sha256": "0" * 64}
    record(base / "fetched.json", stage="fetch_model", inputs={}, config={}, facts=facts, started=0.0)
    config = (ADAPTER / "adapter_config.json").read_text()
    (repository / "adapter_config.json").write_text(config)
    weights = load_file(ADAPTER / "adapter_model.safetensors")
    last = max(weights)
    weights[last].view(-1)[-1] = math.nan
    save_file(weights, repository / "adapter_model.safetensors")
    done = fetch(
        "import_expert", tmp_path / "hub", "--model", "o/adapter", "--revision", revision_of(repository),
        "--base", str(base), "--base-model", "mergetime/qwen3.5-demo", "--out", str(out),
    )  # fmt: skip
    assert done.stderr.endswith(
        f"error: adapter o/adapter: {last} holds NaN or infinite values; its training diverged; "
        "choose another adapter\n"
    )
    assert not out.exists()
