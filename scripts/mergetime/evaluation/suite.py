"""The options that every script which evaluates takes: the base, the benchmarks of a split, how to run them."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core.errors import UserError
from mergetime.modalities import evaluating, learning, reading
from mergetime.modalities.evaluating import Evaluating, Rows, Settings
from mergetime.modalities.parts import DEFAULT, names

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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`load` reads."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="folder of the base, as fetched")
    add("--modality", choices=names(), default=DEFAULT, help=f"what the base works on; default {DEFAULT}")
    add("--split", required=True, help="split of the suite, for the record")
    add(
        "--benchmark",
        action="append",
        default=[],
        metavar="JSON",
        help="an object: name, domain, task ({config} in it is filled in), metric (the primary one), folders (of the"
        " data, by configuration), weights (items or tasks), shots, limit; repeat",
    )
    add(
        "--validation-loss",
        action="append",
        default=[],
        metavar="DOMAIN=PATH",
        help="a domain's validation examples, as prepared, to compute the loss on; repeat",
    )
    add("--backend", choices=["hf", "vllm"], default="hf", help="what generates; likelihoods are hf's")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights evaluated")
    add("--batch-size", type=int, required=True, help="fixed batch size; scores move with it")
    add("--seed", type=int, required=True)
    add("--no-chat-template", dest="chat_template", action="store_false", help="prompts as they are")
    add("--sandbox", choices=["required", "none"], required=True, help="none runs generated code unprotected")
    add("--cache", type=Path, required=True, help="folder of the data sets' cache")
    add("--tasks", type=Path, action="append", default=[], help="folder of own lm-eval tasks")


_RECORDED = (
    "modality", "split", "benchmark", "validation_loss", "backend", "dtype", "batch_size", "seed", "chat_template",
    "sandbox",
)  # fmt: skip


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """What of the options determines the numbers, for the record."""
    return {name: getattr(options, name) for name in _RECORDED}


def load(options: argparse.Namespace) -> Suite:
    """The base in its dtype of evaluation, the benchmarks and validation examples; the hub is not asked.

    Raises:
        UserError: where nothing is to be evaluated, an option cannot be read, or the backend is not installed.
    """
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MERGETIME_SANDBOX": options.sandbox})
    os.environ["HF_DATASETS_CACHE"] = str(options.cache)
    if not options.benchmark and not options.validation_loss:
        raise UserError("nothing to evaluate; give --benchmark or --validation-loss")
    import torch

    from mergetime.evaluation.losses import load_validation

    how, examples = evaluating.get(options.modality), reading.get(options.modality)
    how.check_backend(options.backend)
    # What cannot be read is refused before the model is loaded.
    files = validation_files(options)
    model = learning.get(options.modality).load_base(options.base, dtype=getattr(torch, options.dtype), four_bit=False)
    reader = examples.reader(options.base)
    return Suite(
        model.eval(),
        reader,
        how.load_benchmarks(options.benchmark, options.tasks),
        [load_validation(domain, file, examples, reader) for domain, file in files.items()],
        options.base,
        options.modality,
        Settings(options.backend, options.dtype, options.batch_size, options.seed, options.chat_template),
    )


def validation_files(options: argparse.Namespace) -> dict[str, Path]:
    """The files of validation examples, by domain.

    Raises:
        UserError: for one that is not given as DOMAIN=PATH.
    """
    wrong = [text for text in options.validation_loss if "=" not in text]
    if wrong:
        raise UserError(f"--validation-loss {wrong[0]}: write DOMAIN=PATH")
    return {domain: Path(path) for domain, path in (text.split("=", 1) for text in options.validation_loss)}
