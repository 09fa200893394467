"""The loss on validation examples: its definition, its rows, and that it needs few logits."""

import math
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mergetime.config.evaluation import VALIDATION_LOSS
from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.evaluation import losses
from mergetime.evaluation.selection import held_out_score
from mergetime.modalities import evaluating, learning, reading
from mergetime.modalities.causal_lm import loss
from mergetime.modalities.causal_lm.encoding import IGNORED, encode_chat

BASE = Path(__file__).parents[2] / "config/demo_base"
READING, LEARNING, EVALUATING = (part.get("causal_lm") for part in (reading, learning, evaluating))
CHATS = [
    chat("What is 2 and 3?", "It is 5."),
    chat("Describe the sea.", "The sea is wide, blue and cold, and it never ends."),
    chat("Say yes.", "Yes"),
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE)


def reference(model: PreTrainedModel, tokenizer: Any) -> list[tuple[float, int]]:
    """Each chat by itself, from all of its logits."""
    found = []
    for messages in CHATS:
        example = encode_chat(tokenizer, messages)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0, :-1].double()
        targets = torch.tensor(example.labels[1:])
        kept = targets != IGNORED
        likelihoods = logits.log_softmax(-1)[kept, targets[kept]]
        found.append((-float(likelihoods.sum()), int(kept.sum())))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_losses_are_those_of_all_logits(
    model: PreTrainedModel, tokenizer: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "LOGITS", 3 * model.config.vocab_size)
    found = losses.validation_losses(
        LEARNING, model, [encode_chat(tokenizer, messages) for messages in CHATS], batch_size
    )
    wanted = reference(model, tokenizer)
    assert [count for _, count in found] == [count for _, count in wanted]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-4)


def test_rows(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "validation.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "tokens": 1} for messages in CHATS]), file)
    sets = [losses.load_validation(domain, file, READING, tokenizer) for domain in ("math", "code")]
    metrics, samples = losses.evaluate_losses(model, sets, learning=LEARNING, evaluating=EVALUATING, batch_size=2)
    totals = reference(model, tokenizer)
    mean_loss = sum(total for total, _ in totals) / sum(count for _, count in totals)
    assert [(row["benchmark"], row["domain"], row["metric"], row["primary"]) for row in metrics] == [
        ("validation_loss", domain, "negative_loss,none", True) for domain in ("math", "code")
    ]
    assert metrics[0]["value"] == pytest.approx(-mean_loss, rel=1e-4)
    scores = [row["score"] for row in samples if row["domain"] == "math"]
    assert statistics.mean(scores) == pytest.approx(metrics[0]["value"])
    assert metrics[0]["stderr"] == pytest.approx(statistics.stdev(scores) / math.sqrt(len(CHATS)))
    assert held_out_score(metrics) == pytest.approx(-mean_loss, rel=1e-4)
    assert (samples[0]["request"], samples[0]["response"], samples[0]["target"]) == (
        "What is 2 and 3?",
        "",
        "It is 5.",
    )
    assert len({row["item"] for row in samples}) == len(CHATS)
    assert losses.BENCHMARK == VALIDATION_LOSS


def test_no_examples_is_one_line(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "validation.parquet"
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), file)
    with pytest.raises(UserError, match=r"holds no validation examples; prepare domain math again"):
        losses.load_validation("math", file, READING, tokenizer)
