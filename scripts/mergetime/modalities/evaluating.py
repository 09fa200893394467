"""How models of a modality are evaluated: their benchmarks, and what tells two of them apart.

Nothing heavy is imported here: the types of tensors and models are names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mergetime.modalities.parts import load_part
from mergetime.modalities.reading import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from mergetime.evaluation.options import SuiteBenchmark

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows of metrics and rows of samples, in the columns of :func:`mergetime.modalities.causal_lm.harness.run`."""


@dataclass(frozen=True)
class Settings:
    """How benchmarks are run.

    Attributes:
        backend: what generates: ``hf``, or a program of its own that takes a checkpoint.
        dtype: of the weights.
        batch_size: fixed, since scores move with it.
        seed: of all random numbers.
        chat_template: whether prompts go through the chat template, where there is one.
    """

    backend: str
    dtype: str
    batch_size: int
    seed: int
    chat_template: bool


class Scored(Protocol):
    """A benchmark with its data in memory."""

    @property
    def generates(self) -> bool:
        """Whether all of its answers are generated, so that a backend of its own can compute them."""


class Evaluating(Protocol):
    """The part ``evaluating`` of a modality; ``reader`` is what its ``reading`` made of the base's folder."""

    def probe(self, model: PreTrainedModel, reader: Any) -> torch.Tensor:
        """Logits on a fixed input, by which a model is told from others: float32, on the CPU."""

    def identity(self, row: Row) -> Any:
        """What an example is, as JSON: equal for equal examples."""

    def texts(self, row: Row) -> dict[str, str]:
        """``request``, ``response`` and ``target`` of an example whose loss is computed, for its row of samples."""

    def check_backend(self, backend: str) -> None:
        """Raise a UserError with what to do where a backend is not installed, or is none of this modality's."""

    def load_benchmarks(self, benchmarks: Sequence[SuiteBenchmark], tasks: Sequence[Path]) -> list[Any]:
        """Benchmarks of a suite, in their order, with tasks of our own from the folders ``tasks``.

        Raises:
            ValueError: for one whose task is not known.
        """

    def evaluate(self, model: PreTrainedModel, reader: Any, benchmarks: Sequence[Any], settings: Settings) -> Rows:
        """The rows of a loaded model on :class:`Scored` benchmark after another; none where there are none."""

    def evaluate_checkpoint(self, folder: Path, benchmarks: Sequence[Any], settings: Settings) -> Rows:
        """The rows of a checkpoint on benchmarks that generate, by the backend; the GPU is free again afterwards."""


def get(name: str) -> Evaluating:
    """The part of the modality ``name``; errors as of :func:`mergetime.modalities.load_part`."""
    return cast(Evaluating, load_part(name, "evaluating"))
