"""The base with the benchmarks of a split, loaded as every script that evaluates takes them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core.errors import UserError
from mergetime.evaluation.options import SuiteOptions
from mergetime.modalities import evaluating, learning, reading
from mergetime.modalities.evaluating import Evaluating, Rows, Settings
from mergetime.sandbox.permission import VARIABLE, check_unprotected

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from mergetime.evaluation.losses import ValidationSet


@dataclass(frozen=True)
class Suite:
    """The base with the benchmarks of a split, loaded; ``reader`` is what encodes examples for it."""

    model: "PreTrainedModel"
    reader: Any
    benchmarks: list[Any]
    validations: "list[ValidationSet]"
    base: Path
    modality: str
    settings: Settings

    @property
    def evaluating(self) -> Evaluating:
        """How models of this modality are evaluated."""
        return evaluating.get(self.modality)

    def probe(self) -> "torch.Tensor":
        """Logits of the model as it is now on a fixed input."""
        return self.evaluating.probe(self.model, self.reader)

    def evaluate(self) -> Rows:
        """Metric rows and sample rows of the model as it is now.

        Likelihoods and losses are computed by transformers; with another backend, a checkpoint of the model is made
        for what generates alone.
        """
        from mergetime.evaluation.losses import evaluate_losses

        apart = self.settings.backend != "hf"
        generating = [benchmark for benchmark in self.benchmarks if apart and benchmark.generates]
        others = [benchmark for benchmark in self.benchmarks if benchmark not in generating]
        parts = [
            self.evaluating.evaluate(self.model, self.reader, others, self.settings),
            evaluate_losses(
                self.model,
                self.validations,
                learning=learning.get(self.modality),
                evaluating=self.evaluating,
                batch_size=self.settings.batch_size,
            ),
        ]
        if generating:
            parts.append(self._evaluate_checkpoint(generating))
        return [row for metrics, _ in parts for row in metrics], [row for _, samples in parts for row in samples]

    def _evaluate_checkpoint(self, benchmarks: list[Any]) -> Rows:
        from mergetime.artifacts.materialise import materialised
        from mergetime.evaluation.fingerprint import check_materialised

        with materialised(self.model, self.base) as checkpoint:
            check_materialised(
                self.model,
                self.reader,
                checkpoint,
                learning=learning.get(self.modality),
                evaluating=self.evaluating,
            )
            return self.evaluating.evaluate_checkpoint(checkpoint, benchmarks, self.settings)


def load(options: SuiteOptions, base: Path) -> Suite:
    """The base in its dtype of evaluation, the benchmarks and validation examples; the hub is not asked.

    Raises:
        UserError: where nothing is to be evaluated, the backend is not installed, a kernel is wrong, or generated code
            would run unprotected without whoever gives the command saying so.
    """
    evaluation = options.evaluation
    check_unprotected(evaluation.sandbox, "--suite", os.environ)
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", VARIABLE: evaluation.sandbox})
    os.environ["HF_DATASETS_CACHE"] = str(options.cache)
    if not options.benchmarks and not options.validation_loss:
        raise UserError("--suite: nothing to evaluate; give benchmarks or validation_loss")
    import torch

    from mergetime.evaluation.losses import load_validation
    from mergetime.modalities import kernels

    how, examples = evaluating.get(options.modality), reading.get(options.modality)
    how.check_backend(evaluation.backend)
    dtype = getattr(torch, evaluation.dtype)
    model = learning.get(options.modality).load_base(base, dtype=dtype, four_bit=False)
    kernels.check(model, dtype=dtype, backward=False)
    reader = examples.reader(base)
    return Suite(
        model.eval(),
        reader,
        how.load_benchmarks(options.benchmarks, [Path(evaluation.tasks)] if evaluation.tasks else []),
        [load_validation(domain, file, examples, reader) for domain, file in options.validation_loss.items()],
        base,
        options.modality,
        Settings(
            evaluation.backend, evaluation.dtype, evaluation.batch_size, evaluation.seed, evaluation.chat_template
        ),
    )
