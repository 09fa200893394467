"""Proof that a subject is on the base: its logits on a fixed input differ from those of the base and the members."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergetime.core.errors import UserError
from mergetime.modalities.evaluating import Evaluating
from mergetime.modalities.learning import Learning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_materialised(
    model: "PreTrainedModel", reader: Any, folder: Path, *, learning: Learning, evaluating: Evaluating
) -> None:
    """Refuse a checkpoint that does not compute, to the bit, what the model does.

    Raises:
        UserError: saying how far their logits are apart.
    """
    loaded = learning.load_base(folder, dtype=model.dtype, four_bit=False).eval()
    difference = float((evaluating.probe(loaded, reader) - evaluating.probe(model, reader)).abs().max())
    if difference != 0.0:
        raise UserError(
            f"{folder}: the checkpoint for vLLM differs from the model by {difference:g} in its logits; set backend: hf"
        )


def check_applied(name: str, probed: torch.Tensor, others: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of a subject's logits from each of the others'.

    Raises:
        UserError: if there is none: the subject was not applied, or is the other one.
    """
    differences = {other: float((probed - logits).abs().max()) for other, logits in others.items()}
    same = [other for other, difference in differences.items() if difference == 0.0]
    if same:
        raise UserError(
            f"{name}: its logits are those of {', '.join(same)}; the weights were not applied, or are equal"
        )
    return differences
