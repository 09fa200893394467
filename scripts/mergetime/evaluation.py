"""Evaluates loaded models on benchmarks through lm-eval; tasks are loaded once and serve many subjects.

lm-eval is imported when tasks are loaded, not with this module: it takes seconds.
"""

import json
import logging
import math
import os
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from mergetime.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Row = dict[str, Any]
Sample = dict[str, Any]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark: an lm-eval task on pinned data, or the same task on several configurations of a data set.

    ``task`` may also name a group of tasks. Where shots and max_new_tokens are None, the task's own hold; where limit
    is, every item counts.
    """

    name: str
    domain: str
    task: str
    """``{config}`` in it stands for each configuration."""
    metric: str
    """The primary metric, as ``name,filter``."""
    folders: Mapping[str, Path]
    """Configuration to its data as fetched at a commit: one Parquet file a split."""
    weights: Literal["items", "tasks"] = "items"
    shots: int | None = None
    limit: int | None = None
    max_new_tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """A benchmark from a JSON object of these fields.

        Raises:
            UserError: where the text is none.
        """
        try:
            fields = json.loads(text)
            folders = {config: Path(folder) for config, folder in fields.pop("folders").items()}
            return cls(**fields, folders=folders)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(
                f"--benchmark {text}: it must be a JSON object of a benchmark's fields ({error})"
            ) from error

    @property
    def tasks(self) -> dict[str, Path]:
        """The name of each task, to the folder of its data."""
        return {self.task.replace("{config}", config): folder for config, folder in self.folders.items()}


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark with its tasks and their data in memory."""

    spec: BenchmarkSpec
    tasks: "Mapping[str, Task]"

    @property
    def generates(self) -> bool:
        """Whether all of its answers are generated, so that no likelihood is needed."""
        return all(task.OUTPUT_TYPE == "generate_until" for task in self.tasks.values())


def load_tasks(benchmarks: Mapping[str, BenchmarkSpec], *, include_path: Sequence[Path]) -> list[LoadedBenchmark]:
    """Load every benchmark's tasks, our own from ``include_path`` first.

    Folders ``nltk_data`` beside our tasks are where NLTK looks first, unless NLTK_DATA names others: IFEval's checkers
    would otherwise download what they need, or take what the machine happens to have.

    Raises:
        ValueError: for a task that neither ``include_path`` nor lm-eval has.
    """
    _offer_nltk_data([found for folder in include_path for found in sorted(folder.glob("**/nltk_data"))])
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = list(include_path)
    manager = TaskManager(include_path=folders, include_defaults=False)
    missing = {task for spec in benchmarks.values() for task in spec.tasks} - set(manager.task_index)
    if missing:
        manager = TaskManager(include_path=[*folders, *_stock_folders(missing)], include_defaults=False)
    if missing - set(manager.task_index):
        # A group of lm-eval's, or a task that its Python makes up: all of its tasks have to be indexed.
        manager = TaskManager(include_path=folders, include_defaults=True)
    loaded = []
    for spec in benchmarks.values():
        members = []
        for name, folder in spec.tasks.items():
            entry = manager.task_index.get(name)
            if entry is None:
                raise ValueError(f"benchmark {spec.name}: no task {name} in {list(map(str, folders))} nor in lm-eval")
            members.append({"task": name} | _data(spec.name, folder, entry.cfg or {}))
        # A group, because only groups let a registered task's configuration be overridden.
        tasks = manager.load([{"group": f"mergetime_{spec.name}", "task": members}])["tasks"]
        for task in tasks.values():
            if spec.shots is not None:
                task.set_config("num_fewshot", spec.shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            if spec.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", {"max_gen_toks": spec.max_new_tokens}, update=True)
        loaded.append(LoadedBenchmark(spec, tasks))
    return loaded


def _stock_folders(tasks: Set[str]) -> list[Path]:
    """The folders of lm-eval that hold the files of these tasks.

    Found by their text in 0.3 s: lm-eval's own index reads 14,000 files as YAML, which takes ten.
    """
    import lm_eval

    names = "|".join(sorted(map(re.escape, tasks)))
    named = re.compile(rf"""^["']?task["']?:\s*["']?({names})["']?\s*$""", re.MULTILINE)
    files = (Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")
    return sorted({file.parent for file in files if named.search(file.read_text(encoding="utf-8"))})


def _offer_nltk_data(folders: Sequence[Path]) -> None:
    if not folders or "NLTK_DATA" in os.environ:
        return
    # NLTK reads the variable when it is imported, which takes seconds: it is not imported for this.
    paths = [str(folder.resolve()) for folder in folders]
    os.environ["NLTK_DATA"] = os.pathsep.join(paths)
    if "nltk" in sys.modules:
        sys.modules["nltk"].data.path[:0] = paths


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    benchmarks: Sequence[LoadedBenchmark],
    *,
    batch_size: int,
    seed: int,
    chat_template: bool = True,
) -> tuple[list[Row], list[Row]]:
    """Evaluate one model with transformers; the rows of its metrics and of its samples, as :func:`run` has them."""
    if not benchmarks:
        return [], []
    from lm_eval.models.huggingface import HFLM

    # A warning for every subject: a loaded model ignores the arguments of loading.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    # A softmax in the model's dtype would make bfloat16 likelihoods too coarse to compare choices.
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",
        enable_thinking=False,
    )
    return run(harness, benchmarks, seed=seed, chat_template=chat_template)


def vllm_arguments(checkpoint: Path, *, dtype: str, batch_size: int, seed: int) -> dict[str, Any]:
    """What lm-eval's VLLM is made with: a whole checkpoint, since a LoRA beside it may silently do nothing.

    At most ``batch_size`` sequences run at a time. The base stays on the GPU, hence not all of its memory is taken.
    """
    return {
        "pretrained": str(checkpoint),
        "dtype": dtype,
        "batch_size": "auto",
        "max_batch_size": batch_size,
        "seed": seed,
        "enable_thinking": False,
        "gpu_memory_utilization": 0.7,
    }


def check_vllm() -> None:
    """Refuse the backend where it is not installed.

    Raises:
        UserError: saying what to do.
    """
    if find_spec("vllm") is None:
        raise UserError("evaluation.backend: vllm is not installed; say `pip install vllm`, or set backend: hf")


def evaluate_with_vllm(
    checkpoint: Path,
    benchmarks: Sequence[LoadedBenchmark],
    *,
    dtype: str,
    batch_size: int,
    seed: int,
    chat_template: bool = True,
) -> tuple[list[Row], list[Row]]:
    """The same with vLLM, for a checkpoint in a folder and benchmarks that generate; the GPU is free again afterwards.

    Raises:
        UserError: if vLLM is not installed.
    """
    check_vllm()
    import gc

    import torch
    from lm_eval.models.vllm_causallms import VLLM

    torch.cuda.empty_cache()
    harness = VLLM(**vllm_arguments(checkpoint, dtype=dtype, batch_size=batch_size, seed=seed))
    try:
        return run(harness, benchmarks, seed=seed, chat_template=chat_template)
    finally:
        del harness
        gc.collect()
        torch.cuda.empty_cache()


def run(
    harness: "LM", benchmarks: Sequence[LoadedBenchmark], *, seed: int, chat_template: bool = True
) -> tuple[list[Row], list[Row]]:
    """Evaluate a model of lm-eval's; the rows of its metrics and of its samples.

    Prompts go through the chat template with thinking off, or as they are. A metric row holds ``benchmark``,
    ``domain``, ``metric`` (``name,filter``), ``primary``, ``value`` (mean score over items, or over tasks), ``stderr``
    (of that mean), ``items``, ``task_hash`` and ``harness_version``; a sample row ``benchmark``, ``domain``, ``task``
    (lm-eval's name), ``metric``, ``primary``, ``item`` (hash of the document), ``stem`` (the same for translations of
    one document), ``score``, ``request`` (the last text of the user, where the answer is generated), ``response`` (the
    choice of highest likelihood, for multiple choice) and ``target``. Metrics that are no mean of numbers over items
    have no rows.

    Raises:
        ValueError: if a benchmark's primary metric has no rows.
    """
    # A warning for every subject: metrics that only some documents have would be weighted wrongly in lm-eval's groups,
    # which are not used here.
    logging.getLogger("lm_eval.evaluator_utils").setLevel(logging.ERROR)
    metrics, samples = [], []
    for benchmark in benchmarks:
        found_metrics, found_samples = _evaluate_one(harness, benchmark, seed, chat_template=chat_template)
        metrics += found_metrics
        samples += found_samples
    return metrics, samples


def _data(name: str, folder: Path, config: Mapping[str, Any]) -> Row:
    """The overrides that point a task, of ours or of lm-eval, at the data that was fetched."""
    files = {file.stem: str(file) for file in sorted(folder.glob("*.parquet"))}
    if not files:
        raise FileNotFoundError(f"benchmark {name}: no Parquet files in {folder}; run fetch")
    arguments = {name: value for name, value in (config.get("dataset_kwargs") or {}).items() if name != "revision"}
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": arguments | {"data_files": files}}


def _evaluate_one(
    harness: "LM", benchmark: LoadedBenchmark, seed: int, *, chat_template: bool
) -> tuple[list[Row], list[Row]]:
    """One benchmark by itself: what else is evaluated changes neither its batches nor its random numbers."""
    import numpy as np
    import torch
    from lm_eval import evaluator

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if "langdetect" in sys.modules:
        # IFEval's checkers guess languages with random numbers of their own.
        sys.modules["langdetect"].DetectorFactory.seed = seed
    for task in benchmark.tasks.values():
        task.set_fewshot_seed(seed)
    results = evaluator.evaluate(
        lm=harness,
        task_dict={"tasks": dict(benchmark.tasks)},
        limit=benchmark.spec.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    if results is None:
        raise RuntimeError("evaluation runs in one process, this is a rank of several")
    for name, task in benchmark.tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            for sample in results["samples"][name]:
                sample["request"] = str(task.doc_to_text(sample["doc"]))
    return rows(benchmark.spec, results["results"], results["samples"])


def rows(
    spec: BenchmarkSpec, results: Mapping[str, Row], samples: Mapping[str, Sequence[Sample]]
) -> tuple[list[Row], list[Row]]:
    """Metric rows and sample rows from what lm-eval returns for one benchmark, by task."""
    common = {"benchmark": spec.name, "domain": spec.domain}
    sample_rows: list[Row] = []
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    stems: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    stem_of = _stem(spec, [sample for of_task in samples.values() for sample in of_task])
    for task, of_task in samples.items():
        kept = _mean_metrics(results[task], of_task)
        for sample in of_task:
            stem = stem_of(sample)
            for metric in (f"{name},{sample['filter']}" for name in sample["metrics"]):
                if metric in kept:
                    score = float(sample[metric.rpartition(",")[0]])
                    scores[metric][task].append(score)
                    stems[metric][task].append(stem)
                    sample_rows.append(
                        common
                        | {"task": task}
                        | _metric(spec, metric)
                        | {
                            "item": sample["doc_hash"],
                            "stem": stem,
                            "score": score,
                            "request": sample.get("request", ""),
                            "response": _response(sample),
                            "target": str(sample["target"]),
                        }
                    )
    if spec.metric not in scores:
        raise ValueError(f"benchmark {spec.name}: its metric {spec.metric} is none of {sorted(scores)}")
    origin = {"task_hash": _task_hash(samples), "harness_version": version("lm_eval")}
    return [
        common | _metric(spec, metric) | mean(by_task.values(), spec.weights, stems[metric].values()) | origin
        for metric, by_task in scores.items()
    ], sample_rows


def _stem(spec: BenchmarkSpec, samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """What tells which source a sample's document is of.

    The configurations of a benchmark are languages, and its documents translations: they share a stem where they have
    the same ``id``, as in multilingual ARC, or where documents have none, the same place, as in LAMBADA's parallel
    files. (Should documents at one place not be translations after all, taking them together costs degrees of freedom
    and nothing else.) Every other document is its own stem.
    """
    if len(spec.folders) < 2:
        return lambda sample: str(sample["doc_hash"])
    if all(sample["doc"].get("id") is not None for sample in samples):
        return lambda sample: str(sample["doc"]["id"])
    return lambda sample: str(sample["doc_id"])


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


def mean(
    tasks: Iterable[Sequence[float]],
    weights: Literal["items", "tasks"] = "items",
    stems: Iterable[Sequence[str]] | None = None,
) -> Row:
    """Mean score, its standard error, and the number of items, of the scores of several tasks.

    With ``items``, all items count the same: the error is s / sqrt(n) with n - 1 degrees of freedom (0 for a single
    item). With ``tasks``, every task does: the mean of the k tasks' means, with error sqrt(sum of squared errors) / k.
    Where items share a stem, the error is clustered by it: see :func:`mergetime.inference.estimates.estimate`.
    """
    listed = list(tasks)
    parts = listed if weights == "tasks" else [[score for scores in listed for score in scores]]
    means = [_mean(part) for part in parts]
    sources = [stem for of_task in stems or () for stem in of_task]
    if len(set(sources)) < len(sources):
        influence = [
            (score - own["value"]) / (len(means) * own["items"])
            for own, part in zip(means, parts, strict=True)
            for score in part
        ]
        stderr = _clustered(influence, sources)
    else:
        stderr = math.sqrt(math.fsum(one["stderr"] ** 2 for one in means)) / len(means)
    return {
        "value": math.fsum(one["value"] for one in means) / len(means),
        "stderr": stderr,
        "items": sum(one["items"] for one in means),
    }


def _clustered(influence: Sequence[float], stems: Sequence[str]) -> float:
    """The error of a sum of items' influences where each of G stems is one draw; 0 for a single one."""
    by_stem: dict[str, list[float]] = defaultdict(list)
    for stem, one in zip(stems, influence, strict=True):
        by_stem[stem].append(one)
    variance = math.fsum(math.fsum(found) ** 2 for found in by_stem.values())
    return math.sqrt(variance * len(by_stem) / max(1, len(by_stem) - 1))


def _mean(values: Sequence[float]) -> Row:
    count = len(values)
    centre = math.fsum(values) / count
    variance = math.fsum((value - centre) ** 2 for value in values) / max(1, count - 1)
    return {"value": centre, "stderr": math.sqrt(variance / count), "items": count}


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
