"""Subjects on the base: applied exactly, taken off without a trace, and proven to differ."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mergetime.errors import UserError
from mergetime.merging.adapters import check_fits, load_delta
from mergetime.subjects import applied, check_applied, fingerprint
from mergetime.training.model import load_base

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"


def test_an_adapter_is_applied_as_peft_does_and_leaves_no_trace() -> None:
    from peft import PeftModel

    model = load_base(BASE, dtype=torch.float32, four_bit=False)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = fingerprint(model, tokenizer)
    with applied(model, ADAPTER):
        found = fingerprint(model, tokenizer)
        assert check_applied("adapter", found, {"the base": base})["the base"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    adapted = PeftModel.from_pretrained(model, str(ADAPTER))
    torch.testing.assert_close(found, fingerprint(adapted, tokenizer), atol=1e-4, rtol=1e-4)


def test_a_subject_that_changes_nothing_is_refused() -> None:
    logits = torch.ones(2, 3)
    with pytest.raises(UserError, match="x: its logits are those of math"):
        check_applied("x", logits, {"math": logits.clone(), "code": logits + 1})


def test_an_adapter_of_another_base_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    check_fits("polite", ADAPTER, BASE)
    name, update = next(iter(load_delta(ADAPTER)))
    other = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(3, 3)}, other)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"expert polite .*: .* in the base it is 3x3; it belongs to another base"):
        check_fits("polite", ADAPTER, tmp_path)
    save_file({name: torch.zeros(3, 3)}, tmp_path / "task_vector.safetensors")
    model = load_base(BASE, dtype=torch.float32, four_bit=False)
    with pytest.raises(UserError, match=r"has shape .3, 3."), applied(model, tmp_path):
        pass
    assert update.shape != (3, 3)
