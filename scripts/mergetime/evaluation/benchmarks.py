"""Benchmarks: lm-eval tasks, of ours or its own, on data that was fetched.

lm-eval is imported when tasks are loaded, not with this module: it takes seconds.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from mergetime.config.evaluation import Benchmark


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
    """Configuration to its data as fetched at a commit: one Parquet file per split."""
    weights: Literal["items", "tasks"] = "items"
    shots: int | None = None
    limit: int | None = None
    max_new_tokens: int | None = None

    @classmethod
    def of(cls, name: str, domain: str, benchmark: "Benchmark", folders: Mapping[str, Path]) -> Self:
        """A benchmark as the config has it, on data in these folders."""
        return cls(
            name,
            domain,
            benchmark.task,
            benchmark.metric,
            folders,
            benchmark.weights,
            benchmark.shots,
            benchmark.limit,
            benchmark.max_new_tokens,
        )

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

    NLTK looks first into folders ``nltk_data`` beside our tasks, after those of NLTK_DATA: IFEval's checkers would
    otherwise download what they need, or take what the machine happens to have.

    Raises:
        ValueError: for a task that neither ``include_path`` nor lm-eval has.
    """
    _offer_nltk_data([data for folder in include_path for data in sorted(folder.glob("**/nltk_data"))])
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


def _data(name: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that point a task, of ours or of lm-eval, at the data that was fetched."""
    files = {file.stem: str(file) for file in sorted(folder.glob("*.parquet"))}
    if not files:
        raise FileNotFoundError(f"benchmark {name}: no Parquet files in {folder}; run fetch")
    arguments = {name: value for name, value in (config.get("dataset_kwargs") or {}).items() if name != "revision"}
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": arguments | {"data_files": files}}


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
    if not folders:
        return
    named = list(filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep)))
    paths = list(dict.fromkeys([*named, *(str(folder.resolve()) for folder in folders)]))
    # NLTK reads the variable when it is imported, which takes seconds: it is not imported for this.
    os.environ["NLTK_DATA"] = os.pathsep.join(paths)
    if "nltk" in sys.modules:
        known = sys.modules["nltk"].data.path
        known[:] = [*paths, *(path for path in known if path not in paths)]
