"""Evaluates loaded models on benchmarks through lm-eval; tasks are loaded once and serve many subjects.

lm-eval is imported when tasks are loaded, not with this module: it takes seconds.
"""

import logging
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Row = dict[str, Any]
Sample = dict[str, Any]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark: an lm-eval task (or group of tasks, whose items are pooled) on pinned data."""

    name: str
    task: str
    domain: str
    metric: str
    """The primary metric, as ``name,filter``."""
    folder: Path
    """Its data as fetched at a commit: one Parquet file a split."""


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark with its tasks and their data in memory."""

    spec: BenchmarkSpec
    tasks: "Mapping[str, Task]"


def load_tasks(benchmarks: Mapping[str, BenchmarkSpec], *, include_path: Sequence[Path]) -> list[LoadedBenchmark]:
    """Load every benchmark's tasks, our own from ``include_path`` first.

    Raises:
        ValueError: for a task that neither ``include_path`` nor lm-eval has.
    """
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = list(include_path)
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(spec.task not in manager.task_index for spec in benchmarks.values()):
        # Indexing lm-eval's own tasks takes seconds.
        manager = TaskManager(include_path=folders, include_defaults=True)
    loaded = []
    for spec in benchmarks.values():
        entry = manager.task_index.get(spec.task)
        if entry is None:
            raise ValueError(f"benchmark {spec.name}: no task {spec.task} in {list(map(str, folders))} nor in lm-eval")
        # A group of one, because only groups let a registered task's configuration be overridden.
        member = {"task": spec.task} | _data(spec, entry.cfg or {})
        tasks = manager.load([{"group": f"mergetime_{spec.name}", "task": [member]}])["tasks"]
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
        loaded.append(LoadedBenchmark(spec, tasks))
    return loaded


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    benchmarks: Sequence[LoadedBenchmark],
    *,
    batch_size: int,
    seed: int,
) -> tuple[list[Row], list[Row]]:
    """Evaluate one model; the rows of its metrics and of its samples.

    Prompts go through the chat template with thinking off. A metric row holds ``benchmark``, ``domain``, ``metric``
    (``name,filter``), ``primary``, ``value`` (mean score over items), ``stderr`` (of that mean), ``items``,
    ``task_hash`` and ``harness_version``; a sample row ``benchmark``, ``domain``, ``metric``, ``primary``, ``item``
    (hash of the document), ``score``, ``response`` (the choice of highest likelihood, for multiple choice) and
    ``target``. Metrics that are no mean of numbers over items have no rows.

    Raises:
        ValueError: if a benchmark's primary metric has no rows.
    """
    from lm_eval.models.huggingface import HFLM

    # Warnings for every subject: a loaded model ignores the arguments of loading, and metrics that only some documents
    # have would be weighted wrongly in lm-eval's groups, which are not used here.
    for module in ("lm_eval.models.huggingface", "lm_eval.evaluator_utils"):
        logging.getLogger(module).setLevel(logging.ERROR)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, enable_thinking=False)
    metrics, samples = [], []
    for benchmark in benchmarks:
        found_metrics, found_samples = _evaluate_one(harness, benchmark, seed)
        metrics += found_metrics
        samples += found_samples
    return metrics, samples


def _data(spec: BenchmarkSpec, config: Mapping[str, Any]) -> Row:
    """The overrides that point a task, of ours or of lm-eval, at the data that was fetched."""
    files = {file.stem: str(file) for file in sorted(spec.folder.glob("*.parquet"))}
    if not files:
        raise FileNotFoundError(f"benchmark {spec.name}: no Parquet files in {spec.folder}; run fetch")
    arguments = {name: value for name, value in (config.get("dataset_kwargs") or {}).items() if name != "revision"}
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": arguments | {"data_files": files}}


def _evaluate_one(harness: Any, benchmark: LoadedBenchmark, seed: int) -> tuple[list[Row], list[Row]]:
    """One benchmark by itself: what else is evaluated changes neither its batches nor its random numbers."""
    import numpy as np
    import torch
    from lm_eval import evaluator

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for task in benchmark.tasks.values():
        task.set_fewshot_seed(seed)
    results = evaluator.evaluate(
        lm=harness,
        task_dict={"tasks": dict(benchmark.tasks)},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    if results is None:
        raise RuntimeError("evaluation runs in one process, this is a rank of several")
    return rows(benchmark.spec, results["results"], results["samples"])


def rows(
    spec: BenchmarkSpec, results: Mapping[str, Row], samples: Mapping[str, Sequence[Sample]]
) -> tuple[list[Row], list[Row]]:
    """Metric rows and sample rows from what lm-eval returns for one benchmark, by task."""
    common = {"benchmark": spec.name, "domain": spec.domain}
    sample_rows: list[Row] = []
    scores: dict[str, list[float]] = defaultdict(list)
    for task, of_task in samples.items():
        kept = _mean_metrics(results[task], of_task)
        for sample in of_task:
            for metric in (f"{name},{sample['filter']}" for name in sample["metrics"]):
                if metric in kept:
                    score = float(sample[metric.rpartition(",")[0]])
                    scores[metric].append(score)
                    answer = {"item": sample["doc_hash"], "score": score, "response": _response(sample)}
                    sample_rows.append(common | _metric(spec, metric) | answer | {"target": str(sample["target"])})
    if spec.metric not in scores:
        raise ValueError(f"benchmark {spec.name}: its metric {spec.metric} is none of {sorted(scores)}")
    origin = {"task_hash": _task_hash(samples), "harness_version": version("lm_eval")}
    return [common | _metric(spec, metric) | _mean(values) | origin for metric, values in scores.items()], sample_rows


def _metric(spec: BenchmarkSpec, metric: str) -> Row:
    return {"metric": metric, "primary": metric == spec.metric}


def _mean_metrics(results: Row, samples: Sequence[Sample]) -> set[str]:
    """The metrics of a task, as ``name,filter``, whose value is the mean of one number per item."""
    values: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        for name in sample["metrics"]:
            values[f"{name},{sample['filter']}"].append(sample[name])
    return {
        metric
        for metric, found in values.items()
        if all(_is_number(value) for value in found)
        and abs(sum(map(float, found)) / len(found) - float(results[metric])) < _ROUNDING
    }


def _is_number(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__float__") and not getattr(value, "shape", ())


def _mean(values: Sequence[float]) -> Row:
    """Mean, its standard error s / sqrt(n) with n - 1 degrees of freedom (0 for a single item), and n."""
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, count - 1)
    return {"value": mean, "stderr": math.sqrt(variance / count), "items": count}


def _response(sample: Sample) -> str:
    """What the model answered: generated text, or the likeliest of several choices."""
    if len(sample["arguments"]) == 1:
        return str(sample["resps"][0][0])
    likelihoods = [float(answer[0][0]) for answer in sample["resps"]]
    return str(sample["arguments"][likelihoods.index(max(likelihoods))][1])


def _task_hash(samples: Mapping[str, Sequence[Sample]]) -> str:
    """lm-eval's hash over documents, prompts and targets, of one task; of several, the hash over theirs."""
    from lm_eval.utils import hash_string

    hashes = [
        hash_string("".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in of_task))
        for of_task in samples.values()
    ]
    return str(hashes[0] if len(hashes) == 1 else hash_string("".join(hashes)))
