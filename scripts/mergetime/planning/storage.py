"""Bytes of a study: what lies on disk, what a run keeps while it lasts, and what comes from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mergetime.artifacts.forms import ADAPTER, CHECKPOINT, DELTA
from mergetime.planning import costs, sizes, workloads
from mergetime.planning.jobs import Job
from mergetime.study import layout
from mergetime.study.suites import benchmarks_of

if TYPE_CHECKING:
    from mergetime.planning.prices import Model

SAMPLE_BYTES = 500.0
"""Of an item's score and response in samples.parquet, compressed."""
OPTIMIZER_COPIES = 3
"""AdamW's two moments and the weights themselves, which a checkpoint holds."""


def download_bytes(model: Model, job: Job) -> float:
    """What a fetch brings: as it lies on disk, else by the config or by :mod:`.workloads`."""
    if job.stem.endswith("_hub"):
        return 0.0
    folder = model.root / Path(job.outputs[0]).parent
    if folder.is_dir() and (present := sizes.folder_bytes(folder)):
        return float(present)
    hub_id = job.wildcards.get("hub_id", "")
    if model.study.hub.folder and hub_id:
        kind = "models" if job.stem == "fetch_model" else "datasets"
        repository = model.root / model.study.hub.folder / kind / hub_id
        if repository.is_dir():
            return float(sizes.folder_bytes(repository))
    if job.stem == "fetch_model":
        base = next((name for name, spec in model.study.bases.items() if spec.model == hub_id), None)
        judge = next((spec for spec in model.study.judges.values() if spec.model == hub_id), None)
        if base:
            return float(model.sizes(base).stored_bytes)
        return 2.0 * workloads.JUDGE_PARAMETERS[judge.kind] if judge else 0.0
    if job.stem == "fetch_benchmark":
        return 1e6 * workloads.KNOWN.get(hub_id, workloads.Known(0, 0)).megabytes
    if job.stem == "fetch_dataset":
        return 1e6 * workloads.DATASET_MEGABYTES.get(hub_id, workloads.OTHER_DATASET_MEGABYTES)
    return costs.adapter_bytes(model.sizes(job.wildcards["base"]).adapter_parameters, model.rank)


def checkpoint_bytes(model: Model, job: Job) -> float:
    """A run's own files, removed at its end: experts that may still be kept, two checkpoints with the optimizer."""
    base = job.wildcards["base"]
    recipe, size, run = model.recipes[model.recipe(job)], model.sizes(base), model.run(job)
    train, whole = recipe.train, recipe.train.form == CHECKPOINT
    saved = costs.experts_at_once(train, recipe.durations, run.optimum, run.last_step)
    trained = 4.0 * size.parameters if whole else costs.adapter_bytes(size.adapter_parameters, train.rank)
    expert = costs.BYTES[model.study.bases[base].dtype] * size.parameters if whole else trained
    return saved * expert + 2 * OPTIMIZER_COPIES * trained


def file_bytes(model: Model, job: Job, file: str) -> float:
    """Bytes of a job's output: as it lies on disk, else by its name; records, tables and the like count nothing."""
    path, name = model.root / file, Path(file).name
    if job.stage == "fetch" and name == "fetched.json":
        # Data sets lie there twice, as Parquet and in the download cache.
        return download_bytes(model, job) * (1 if job.stem == "fetch_model" else 2)
    if path.is_dir():
        return float(sizes.folder_bytes(path))
    if path.is_file():
        return float(path.stat().st_size)
    base = job.wildcards.get("base")
    if name.endswith("samples.parquet"):
        evaluations = f"{layout.of(model.study).evaluations}/"
        read = [Path(file).name.split(".")[0] for file in job.inputs if file.startswith(evaluations)]
        splits = [job.split] if job.stage != "collect" else read
        return sum(_sample_bytes(model, split) for split in splits)
    if base is None:
        return 0.0
    size = model.sizes(base)
    if name == ADAPTER.weights:
        return costs.adapter_bytes(size.adapter_parameters, _rank_of(model, job, path))
    if name == DELTA.weights:
        return 4.0 * model.dense_entries(job)
    entries = {
        "fisher.safetensors": 4 * size.matrix_parameters,
        "gram.safetensors": 4 * size.gram_entries,
        "mask.safetensors": size.matrix_parameters,
    }
    if name in entries:
        return float(entries[name])
    is_checkpoint = name == CHECKPOINT.weights or (job.stem == "train_expert" and "." not in name)
    return float(costs.BYTES[model.study.bases[base].dtype] * size.parameters) if is_checkpoint else 0.0


def _rank_of(model: Model, job: Job, adapter: Path) -> int:
    """The rank of an adapter that a job writes: an exact merge has the sum of its members'."""
    if job.stem == "train_expert":
        return model.recipes[model.recipe(job)].train.rank
    if job.stage != "merge":
        return model.rank
    merge_id = adapter.parent.parent.name
    method = model.study.methods[model.merges[merge_id][0]]
    ranks = model.member_ranks(job)
    return max(ranks) if method.space == "adapter" else sum(ranks)


def _sample_bytes(model: Model, split: str) -> float:
    return SAMPLE_BYTES * sum(model.items(name, split).items for _, name in benchmarks_of(model.study, split))
