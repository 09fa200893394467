"""The options that every script which evaluates takes: the base, the benchmarks of a split, how to run them."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mergetime.evaluation.benchmarks import LoadedBenchmark
    from mergetime.evaluation.losses import ValidationSet
    from mergetime.evaluation.means import Row


@dataclass(frozen=True)
class Suite:
    """The base with the benchmarks of a split, loaded."""

    model: "PreTrainedModel"
    tokenizer: "Any"
    benchmarks: "list[LoadedBenchmark]"
    validations: "list[ValidationSet]"
    base: Path
    backend: str
    dtype: str
    batch_size: int
    seed: int
    chat_template: bool

    def evaluate(self) -> "tuple[list[Row], list[Row]]":
        """Metric rows and sample rows of the model as it is now.

        Likelihoods and losses are computed by transformers; with the backend vllm, a checkpoint of the model is made
        for what generates alone.
        """
        from mergetime.evaluation.losses import evaluate_losses
        from mergetime.modalities.causal_lm.backends import evaluate

        generating = [b for b in self.benchmarks if self.backend == "vllm" and b.generates]
        others = [b for b in self.benchmarks if b not in generating]
        shared: dict[str, Any] = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "chat_template": self.chat_template,
        }
        parts = [
            evaluate(self.model, self.tokenizer, others, **shared),
            evaluate_losses(self.model, self.validations, batch_size=self.batch_size),
        ]
        if generating:
            parts.append(self._evaluate_with_vllm(generating, shared))
        return [row for metrics, _ in parts for row in metrics], [row for _, samples in parts for row in samples]

    def _evaluate_with_vllm(
        self, benchmarks: "list[LoadedBenchmark]", shared: dict[str, Any]
    ) -> "tuple[list[Row], list[Row]]":
        from mergetime.artifacts.subjects import materialised
        from mergetime.evaluation.fingerprint import check_materialised
        from mergetime.modalities.causal_lm.backends import evaluate_with_vllm

        with materialised(self.model, self.base) as checkpoint:
            check_materialised(self.model, self.tokenizer, checkpoint)
            return evaluate_with_vllm(checkpoint, benchmarks, dtype=self.dtype, **shared)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`load` reads."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="folder of the base, as fetched")
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
    "split", "benchmark", "validation_loss", "backend", "dtype", "batch_size", "seed", "chat_template", "sandbox",
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mergetime.evaluation.benchmarks import BenchmarkSpec, load_tasks
    from mergetime.evaluation.losses import load_validation
    from mergetime.modalities.causal_lm.backends import check_vllm

    if options.backend == "vllm":
        check_vllm()
    specs = {spec.name: spec for spec in map(BenchmarkSpec.parse, options.benchmark)}
    model = AutoModelForCausalLM.from_pretrained(
        options.base,
        dtype=getattr(torch, options.dtype),
        device_map={"": 0} if torch.cuda.is_available() else None,
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.base, trust_remote_code=False)
    return Suite(
        model,
        tokenizer,
        load_tasks(specs, include_path=options.tasks) if specs else [],
        [load_validation(domain, file, tokenizer) for domain, file in validation_files(options).items()],
        options.base,
        options.backend,
        options.dtype,
        options.batch_size,
        options.seed,
        options.chat_template,
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
