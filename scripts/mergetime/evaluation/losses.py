"""The loss on validation examples, defined as for T*: nats per response token, over all tokens of all examples."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergetime import __version__
from mergetime.core.errors import UserError
from mergetime.data.messages import Messages
from mergetime.evaluation.means import Row, mean
from mergetime.modalities.causal_lm.encoding import IGNORED, Encoded, encode
from mergetime.modalities.causal_lm.loss import Batch, head_is_plain, predicted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BENCHMARK = "validation_loss"
"""The benchmark's id, as the config calls it; not taken from there, since a new config key would rerun evaluations."""
METRIC = "negative_loss,none"
"""The metric's name: minus the loss, so that higher is better as everywhere."""


@dataclass(frozen=True)
class ValidationSet:
    """The validation examples of a domain: chats and their encodings, in the same order."""

    domain: str
    messages: Sequence[Messages]
    encoded: Sequence[Encoded]


def load_validation(domain: str, file: Path, tokenizer: Any) -> ValidationSet:
    """The examples in a domain's validation.parquet.

    Raises:
        UserError: where the file has no examples.
    """
    import pyarrow.parquet as pq

    messages = [row["messages"] for row in pq.read_table(file, columns=["messages"]).to_pylist()]
    if not messages:
        raise UserError(f"{file}: holds no validation examples; prepare domain {domain} again")
    return ValidationSet(domain, messages, [encode(tokenizer, chat) for chat in messages])


@torch.no_grad()
def validation_losses(
    model: "PreTrainedModel", examples: Sequence[Encoded], batch_size: int
) -> list[tuple[float, int]]:
    """For each example the sum of its losses in nats and its number of response tokens."""
    plain = head_is_plain(model)
    # Examples of like lengths together, the longest first: less padding, and memory runs out at once if at all.
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    found: dict[int, tuple[float, int]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens = predicted(model, _padded([examples[i] for i in batch], model.device), plain=plain)
        # Summed on the CPU, where the order of the sum is always the same.
        losses, example = tokens.losses.cpu().double(), tokens.example.cpu()
        for row, index in enumerate(batch):
            own = losses[example == row]
            found[index] = (float(own.sum()), len(own))
    return [found[i] for i in range(len(examples))]


def _padded(batch: Sequence[Encoded], device: torch.device) -> Batch:
    longest = max(len(example.ids) for example in batch)

    def pad(rows: Sequence[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)

    return {
        "input_ids": pad([example.ids for example in batch], 0),
        "attention_mask": pad([[1] * len(example.ids) for example in batch], 0),
        "labels": pad([example.labels for example in batch], IGNORED),
    }


def evaluate_losses(
    model: "PreTrainedModel", validations: Sequence[ValidationSet], *, batch_size: int
) -> tuple[list[Row], list[Row]]:
    """Metric rows and sample rows of the loss on each domain's examples.

    Their columns are those of :func:`mergetime.modalities.causal_lm.harness.run`. The metric is minus the loss in nats
    per response token. The score of an example is minus the sum of its losses, times examples / tokens, so that the
    mean score is the value.
    """
    metrics: list[Row] = []
    samples: list[Row] = []
    for validation in validations:
        losses = validation_losses(model, validation.encoded, batch_size)
        scale = len(losses) / sum(count for _, count in losses)
        scores = [-total * scale for total, _ in losses]
        items = [_digest([chat]) for chat in validation.messages]
        common = {"benchmark": BENCHMARK, "domain": validation.domain, "metric": METRIC, "primary": True}
        origin = {"task_hash": _digest(validation.messages), "harness_version": f"mergetime {__version__}"}
        metrics.append(common | mean([scores]) | origin)
        for item, score, chat in zip(items, scores, validation.messages, strict=True):
            request = next((turn["content"] for turn in reversed(chat) if turn["role"] == "user"), "")
            texts = {"request": request, "response": "", "target": chat[-1]["content"]}
            samples.append(common | {"task": BENCHMARK, "item": item, "score": score} | texts)
    return metrics, samples


def _digest(chats: Sequence[Messages]) -> str:
    return hashlib.sha256(json.dumps(list(chats), ensure_ascii=False).encode()).hexdigest()
