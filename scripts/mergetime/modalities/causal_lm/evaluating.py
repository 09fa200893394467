"""Causal language models as they are evaluated: on lm-eval's tasks, by transformers or by vLLM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.evaluation.benchmarks import BenchmarkSpec, LoadedBenchmark, load_tasks
from mergetime.modalities.causal_lm import backends
from mergetime.modalities.causal_lm.probe import fingerprint as probe
from mergetime.modalities.evaluating import Rows, Settings
from mergetime.modalities.reading import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mergetime.evaluation.options import SuiteBenchmark

__all__ = ["check_backend", "evaluate", "evaluate_checkpoint", "identity", "load_benchmarks", "probe", "texts"]


def identity(row: Row) -> list[dict[str, str]]:
    """The chat."""
    messages: list[dict[str, str]] = row["messages"]
    return messages


def texts(row: Row) -> dict[str, str]:
    """The last text of the user, and the response of the example; none of the model's."""
    chat: Sequence[Mapping[str, str]] = row["messages"]
    request = next((turn["content"] for turn in reversed(chat) if turn["role"] == "user"), "")
    return {"request": request, "response": "", "target": chat[-1]["content"]}


def check_backend(backend: str) -> None:
    """Refuse vLLM where it is not installed."""
    if backend == "vllm":
        backends.check_vllm()


def load_benchmarks(benchmarks: "Sequence[SuiteBenchmark]", tasks: Sequence[Path]) -> list[LoadedBenchmark]:
    """lm-eval's tasks."""
    specs = {
        benchmark.name: BenchmarkSpec.of(benchmark.name, benchmark.domain, benchmark.benchmark, benchmark.folders)
        for benchmark in benchmarks
    }
    return load_tasks(specs, include_path=tasks) if specs else []


def evaluate(model: "PreTrainedModel", reader: Any, benchmarks: Sequence[LoadedBenchmark], settings: Settings) -> Rows:
    """The rows of a loaded model, by transformers."""
    return backends.evaluate(
        model,
        reader,
        benchmarks,
        batch_size=settings.batch_size,
        seed=settings.seed,
        chat_template=settings.chat_template,
    )


def evaluate_checkpoint(folder: Path, benchmarks: Sequence[LoadedBenchmark], settings: Settings) -> Rows:
    """The rows of a checkpoint, by vLLM."""
    return backends.evaluate_with_vllm(
        folder,
        benchmarks,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        seed=settings.seed,
        chat_template=settings.chat_template,
    )
