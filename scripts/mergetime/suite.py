"""The options that every script which evaluates takes: the base, the benchmarks of a split, how to run them."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mergetime.evaluation import LoadedBenchmark, Row


@dataclass(frozen=True)
class Suite:
    """The base with the benchmarks of a split, loaded."""

    model: "PreTrainedModel"
    tokenizer: "Any"
    benchmarks: "list[LoadedBenchmark]"
    batch_size: int
    seed: int

    def evaluate(self) -> "tuple[list[Row], list[Row]]":
        """Metric rows and sample rows of the model as it is now."""
        from mergetime.evaluation import evaluate

        return evaluate(self.model, self.tokenizer, self.benchmarks, batch_size=self.batch_size, seed=self.seed)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`load` reads."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="folder of the base, as fetched")
    add("--split", required=True, help="split of the suite, for the record")
    add(
        "--benchmark",
        action="append",
        required=True,
        metavar="DOMAIN:NAME:TASK:METRIC:FOLDER",
        help="a benchmark: the domain it measures, its id, its lm-eval task, its primary metric, its data; repeat",
    )
    add("--batch-size", type=int, required=True, help="fixed batch size; scores move with it")
    add("--seed", type=int, required=True)
    add("--sandbox", choices=["required", "none"], required=True, help="none runs generated code unprotected")
    add("--cache", type=Path, required=True, help="folder of the data sets' cache")
    add("--tasks", type=Path, action="append", default=[], help="folder of own lm-eval tasks")


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """What of the options determines the numbers, for the record."""
    return {name: getattr(options, name) for name in ("split", "benchmark", "batch_size", "seed", "sandbox")}


def load(options: argparse.Namespace) -> Suite:
    """The base in fp32 and the benchmarks; the hub is not asked."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MERGETIME_SANDBOX": options.sandbox})
    os.environ["HF_DATASETS_CACHE"] = str(options.cache)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mergetime.evaluation import BenchmarkSpec, load_tasks

    specs = {}
    for text in options.benchmark:
        domain, name, task, metric, folder = text.split(":", 4)
        specs[name] = BenchmarkSpec(name, task, domain, metric, Path(folder))
    model = AutoModelForCausalLM.from_pretrained(
        options.base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.base, trust_remote_code=False)
    benchmarks = load_tasks(specs, include_path=options.tasks)
    return Suite(model, tokenizer, benchmarks, options.batch_size, options.seed)
