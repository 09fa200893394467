"""The loss on validation examples, defined as for T*: nats per item, over all items of all examples.

Items are what the loss of a modality is a mean over: the tokens of responses, or whole examples.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergetime import __version__
from mergetime.core.errors import UserError
from mergetime.evaluation.means import Row, mean
from mergetime.modalities.evaluating import Evaluating
from mergetime.modalities.learning import Learning
from mergetime.modalities.reading import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BENCHMARK = "validation_loss"
"""The benchmark's id, as the config calls it; not taken from there, since a new config key would rerun evaluations."""
METRIC = "negative_loss,none"
"""The metric's name: minus the loss, so that higher is better as everywhere."""


@dataclass(frozen=True)
class ValidationSet:
    """The validation examples of a domain: rows of its file and their encodings, in the same order."""

    domain: str
    rows: Sequence[Row]
    encoded: Sequence[Any]


def load_validation(domain: str, file: Path, reading: Reading, reader: Any) -> ValidationSet:
    """The examples in a domain's validation.parquet, encoded by ``reader``.

    Raises:
        UserError: where the file has no examples.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(file, columns=list(reading.COLUMNS)).to_pylist()
    if not rows:
        raise UserError(f"{file}: holds no validation examples; prepare domain {domain} again")
    return ValidationSet(domain, rows, [reading.encode(reader, row) for row in rows])


@torch.no_grad()
def validation_losses(
    learning: Learning, model: "PreTrainedModel", examples: Sequence[Any], batch_size: int
) -> list[tuple[float, int]]:
    """For each example the sum of its losses in nats and its number of items."""
    objective = learning.objective(model)
    # Examples of like lengths together, the longest first: less padding, and memory runs out at once if at all.
    order = sorted(range(len(examples)), key=lambda i: -examples[i].length)
    sums: dict[int, tuple[float, int]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = learning.collate([examples[i] for i in chosen], 0)
        items = objective.predicted(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
        # Summed on the CPU, where the order of the sum is always the same.
        losses, example = items.losses.cpu().double(), items.example.cpu()
        for row, index in enumerate(chosen):
            of_example = losses[example == row]
            sums[index] = (float(of_example.sum()), len(of_example))
    return [sums[i] for i in range(len(examples))]


def evaluate_losses(
    model: "PreTrainedModel",
    validations: Sequence[ValidationSet],
    *,
    learning: Learning,
    evaluating: Evaluating,
    batch_size: int,
) -> tuple[list[Row], list[Row]]:
    """Metric rows and sample rows of the loss on each domain's examples.

    Their columns are those of :func:`mergetime.modalities.causal_lm.harness.run`. The metric is minus the loss in nats
    per item. The score of an example is minus the sum of its losses, times examples / items, so that the mean score is
    the value.
    """
    metrics: list[Row] = []
    samples: list[Row] = []
    for validation in validations:
        losses = validation_losses(learning, model, validation.encoded, batch_size)
        scale = len(losses) / sum(count for _, count in losses)
        scores = [-total * scale for total, _ in losses]
        identities = [evaluating.identity(row) for row in validation.rows]
        common = {"benchmark": BENCHMARK, "domain": validation.domain, "metric": METRIC, "primary": True}
        origin = {"task_hash": _digest(identities), "harness_version": f"mergetime {__version__}"}
        metrics.append(common | mean([scores]) | origin)
        for row, identity, score in zip(validation.rows, identities, scores, strict=True):
            item = {"task": BENCHMARK, "item": _digest([identity]), "score": score}
            samples.append(common | item | evaluating.texts(row))
    return metrics, samples


def _digest(identities: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(identities), ensure_ascii=False).encode()).hexdigest()
