"""What every script which evaluates is told: the benchmarks of a split, and how to run them; and these, loaded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mergetime.config.evaluation import Benchmark, Evaluation
from mergetime.config.fields import Strict
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mergetime.evaluation.benchmarks import LoadedBenchmark
    from mergetime.evaluation.losses import ValidationSet
    from mergetime.evaluation.means import Row


class SuiteBenchmark(Strict):
    """A benchmark of a split, and the folders where its data was fetched to, by configuration of the data set."""

    name: str
    domain: str
    benchmark: Benchmark
    folders: dict[str, Path]


class SuiteOptions(Strict):
    """The benchmarks of a split and how they are run, as a JSON tells it; sections of the config are its own."""

    split: str
    benchmarks: tuple[SuiteBenchmark, ...] = ()
    validation_loss: dict[str, Path] = Field(default_factory=dict)
    """A domain's validation examples, as prepared, to compute the loss on."""
    evaluation: Evaluation
    cache: Path
    """Folder of the data sets' cache."""

    @property
    def recorded(self) -> dict[str, Any]:
        """What determines the numbers, for the record."""
        told = self.model_dump(mode="json", exclude={"cache": True, "evaluation": {"subjects_per_job", "tasks"}})
        for benchmark in told["benchmarks"]:
            for unused in ("chance", "judge"):
                del benchmark["benchmark"][unused]
        return told


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
        from mergetime.evaluation.backends import evaluate
        from mergetime.evaluation.losses import evaluate_losses

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
        from mergetime.artifacts.materialise import materialised
        from mergetime.evaluation.backends import evaluate_with_vllm
        from mergetime.evaluation.fingerprint import check_materialised

        with materialised(self.model, self.base) as checkpoint:
            check_materialised(self.model, self.tokenizer, checkpoint)
            return evaluate_with_vllm(checkpoint, benchmarks, dtype=self.dtype, **shared)


def load(options: SuiteOptions, base: Path) -> Suite:
    """The base in its dtype of evaluation, the benchmarks and validation examples; the hub is not asked.

    Raises:
        UserError: where nothing is to be evaluated, or the backend is not installed.
    """
    how = options.evaluation
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MERGETIME_SANDBOX": how.sandbox})
    os.environ["HF_DATASETS_CACHE"] = str(options.cache)
    if not options.benchmarks and not options.validation_loss:
        raise UserError("--suite: nothing to evaluate; give benchmarks or validation_loss")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mergetime.evaluation.backends import check_vllm
    from mergetime.evaluation.benchmarks import BenchmarkSpec, load_tasks
    from mergetime.evaluation.losses import load_validation

    if how.backend == "vllm":
        check_vllm()
    specs = {
        told.name: BenchmarkSpec.of(told.name, told.domain, told.benchmark, told.folders) for told in options.benchmarks
    }
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=getattr(torch, how.dtype),
        device_map={"": 0} if torch.cuda.is_available() else None,
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    return Suite(
        model,
        tokenizer,
        load_tasks(specs, include_path=[Path(how.tasks)] if how.tasks else []) if specs else [],
        [load_validation(domain, file, tokenizer) for domain, file in options.validation_loss.items()],
        base,
        how.backend,
        how.dtype,
        how.batch_size,
        how.seed,
        how.chat_template,
    )
