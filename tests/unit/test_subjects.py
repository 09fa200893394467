"""Subjects on the base: applied exactly, taken off without a trace, and proven to differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mergetime.artifacts.adapters import check_fits, load_delta
from mergetime.artifacts.apply import applied
from mergetime.artifacts.materialise import materialised
from mergetime.core.errors import UserError
from mergetime.evaluation.fingerprint import check_applied, check_materialised
from mergetime.modalities import evaluating, learning
from mergetime.modalities.causal_lm.loading import load_base
from mergetime.modalities.causal_lm.probe import fingerprint
from tests.unit.scripted import save_multimodal

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"
PARTS: dict[str, Any] = {"learning": learning.get("causal_lm"), "evaluating": evaluating.get("causal_lm")}


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
    adapted: Any = PeftModel.from_pretrained(model, str(ADAPTER))
    torch.testing.assert_close(found, fingerprint(adapted, tokenizer), atol=1e-4, rtol=1e-4)


def test_a_subject_that_changes_nothing_is_refused() -> None:
    logits = torch.ones(2, 3)
    with pytest.raises(UserError, match="x: its logits are those of math"):
        check_applied("x", logits, {"math": logits.clone(), "code": logits + 1})


def test_an_adapter_of_another_base_is_refused_by_name(tmp_path: Path) -> None:
    check_fits("polite", ADAPTER, BASE)
    name, update = next(iter(load_delta(ADAPTER)))
    other = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(3, 3)}, other)
    (tmp_path / "config.json").write_bytes((BASE / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"expert polite .*: .* in the base it is 3x3; it belongs to another base"):
        check_fits("polite", ADAPTER, tmp_path)
    delta = tmp_path / "delta"
    delta.mkdir()
    save_file({name: torch.zeros(3, 3)}, delta / "task_vector.safetensors")
    model = load_base(BASE, dtype=torch.float32, four_bit=False)
    with pytest.raises(UserError, match=r"has shape .3, 3."), applied(model, delta):
        pass
    assert update.shape != (3, 3)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_multimodal(BASE, tmp_path_factory.mktemp("multimodal"))


def full_expert(base: Path, folder: Path) -> Path:
    """The base with every weight moved, saved as training does, in fp32."""
    model = load(base)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def test_updates_are_added_in_fp32_and_rounded_once() -> None:
    model = load(BASE, torch.bfloat16)
    before = state(model)
    updates = dict(load_delta(ADAPTER))
    with applied(model, ADAPTER):
        for name, parameter in model.named_parameters():
            wanted = (before[name].float() + updates[name]).bfloat16() if name in updates else before[name]
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, wanted), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["text", "multimodal"])
def test_a_full_expert_replaces_the_weights(kind: str, dtype: torch.dtype, multimodal: Path, tmp_path: Path) -> None:
    base = BASE if kind == "text" else multimodal
    expert = full_expert(base, tmp_path / "expert")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load(base, dtype)
    before = state(model)
    with applied(model, expert):
        assert torch.equal(fingerprint(model, tokenizer), fingerprint(load(expert, dtype), tokenizer))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_a_full_expert_of_another_base_is_refused(tmp_path: Path) -> None:
    expert = full_expert(BASE, tmp_path / "expert")
    whole = load_file(expert / "model.safetensors")
    norm = next(name for name in whole if name.endswith("norm.weight"))
    model = load(BASE)
    before = state(model)

    def refused(tensors: dict[str, Any], message: str) -> None:
        save_file(tensors, expert / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message), applied(model, expert):
            pass
        assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())

    refused({name: tensor for name, tensor in whole.items() if name != norm}, f"lacks {norm}, which the base has")
    refused(whole | {norm: torch.ones(3)}, r"has shape \(3,\), the base's is \(\d+,\); it belongs to another base")
    refused(whole | {"model.extra.weight": torch.ones(3)}, "has model.extra.weight, which the base does not have")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["text", "multimodal"])
def test_a_materialised_checkpoint_computes_what_the_model_does(
    kind: str, dtype: torch.dtype, multimodal: Path
) -> None:
    base = BASE if kind == "text" else multimodal
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load(base, dtype)
    with applied(model, ADAPTER), materialised(model, base) as folder:
        check_materialised(model, tokenizer, folder, **PARTS)
        assert torch.equal(fingerprint(load(folder, dtype), tokenizer), fingerprint(model, tokenizer))
        found, original = (set(load_file(path / "model.safetensors")) for path in (folder, base))
        assert found == original
        assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    assert not folder.exists()


def test_a_checkpoint_that_is_not_the_model_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = load(BASE)
    differs = pytest.raises(UserError, match="the checkpoint for vLLM differs from the model by")
    with materialised(model, BASE) as folder, applied(model, ADAPTER), differs:
        check_materialised(model, tokenizer, folder, **PARTS)
