"""How models of a modality are loaded, and what their loss is.

Nothing heavy is imported here: the types of tensors and models are names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mergetime.modalities.parts import load_part

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOGITS = 2**28
"""Float32 logits that a loss holds at a time, whatever the modality: 1 GiB."""

Batch = dict[str, "torch.Tensor"]
"""Tensors with the examples along the first dimension.

``labels`` is among them, -100 where an entry is no part of the loss: Trainer divides by the number of the others, which
it counts from the second on where it knows the model for a causal language model.
"""


@dataclass(frozen=True)
class Predicted:
    """What a model says of the items of a batch: [items] each, examples in order.

    ``losses`` are float32, in nats; ``right`` says whether the likeliest label is the right one; ``example`` is the row
    of the batch.
    """

    losses: torch.Tensor
    right: torch.Tensor
    example: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """The loss of one model, with what there is to know of the model beforehand.

    Attributes:
        summed_loss: the sum of the loss over a batch's items, with its gradient: float32 [], in nats.
        predicted: loss and rightness of every item, without gradients.
    """

    summed_loss: Callable[[torch.nn.Module, Batch], torch.Tensor]
    predicted: Callable[[torch.nn.Module, Batch], Predicted]


@dataclass(frozen=True)
class Activations:
    """What a forward pass of the longest example leaves in memory, in numbers.

    Attributes:
        layers: layers of the model.
        hidden: width of what one hands to the next.
        features: inputs and outputs of all linear layers but the head, summed; those of adapters left out.
        linear_attention: whether there are layers with linear attention.
        classes: logits of one item.
        positions: positions of the longest example.
        items: most items of an example.
    """

    layers: int
    hidden: int
    features: int
    linear_attention: bool
    classes: int
    positions: int
    items: int


class Learning(Protocol):
    """The part ``learning`` of a modality. Models may carry adapters; examples are what its ``reading`` encodes."""

    TASK_TYPE: str | None
    """PEFT's name for what the models do; None where it has none."""
    LENGTH: str
    """The unit of an example's length, in words: ``tokens``."""

    def load_base(self, folder: Path, *, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
        """The model in ``folder``, on the GPU if there is one; NF4 with double quantisation if asked."""

    def projections(self, model: PreTrainedModel) -> list[str]:
        """The last parts of the names of the layers that LoRA adapts, sorted."""

    def activations(self, model: torch.nn.Module, examples: Sequence[Any]) -> Activations:
        """What the examples take in memory."""

    def collate(self, batch: Sequence[Any], padding: int, multiple: int = 1) -> Batch:
        """A batch, its length rounded up to a ``multiple``; what is padded gets ``padding`` as its input."""

    def padding(self, model: torch.nn.Module) -> int:
        """The padding that a model was made for; 0 where there is none."""

    def size(self, batch: Batch) -> tuple[torch.Tensor, int]:
        """The batch's positions without padding, int64 [], on its device; and its positions with padding."""

    def objective(self, model: torch.nn.Module) -> Objective:
        """The loss of ``model``."""

    def logits(self, model: PreTrainedModel, example: Any) -> torch.Tensor:
        """The logits of one example's items, with gradients: float32 [items, classes]."""

    def losses_with(
        self, model: PreTrainedModel, weights: Mapping[str, torch.Tensor], examples: Sequence[Any]
    ) -> torch.Tensor:
        """Of each example the summed loss in nats and the number of its items, with some parameters replaced.

        Returns:
            float32 [examples, 2], with gradients with respect to ``weights``.
        """


def get(name: str) -> Learning:
    """The part of the modality ``name``; errors as of :func:`mergetime.modalities.load_part`."""
    return cast(Learning, load_part(name, "learning"))
