"""What a study has cost: a row for each record beside an artifact, by :data:`mergetime.results.columns.COSTS`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mergetime.config.study import Study
from mergetime.core import provenance
from mergetime.core.duration_ids import multiple_of
from mergetime.merging import registry
from mergetime.results import columns as tidy
from mergetime.results.collection import is_judged, planned_columns
from mergetime.study import layout
from mergetime.study.methods import takes
from mergetime.study.pools import pools_on
from mergetime.study.subjects import Subject, subjects, trainings


@dataclass(frozen=True)
class Record:
    """The record of an artifact.

    Attributes:
        path: The JSON, below results/{study}/.
        stage: The stage that writes it.
        chooses: Whether it is made so that validation can choose: a candidate's merge, an evaluation on validation.
        columns: What the artifact is of, in columns of ``tidy.COSTS``.
    """

    path: str
    stage: str
    chooses: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)


def costs(study: Study, folder: Path) -> pd.DataFrame:
    """The costs of every artifact that the study has a record of.

    A record that is not in ``folder``, as where evaluations came from elsewhere, leaves its numbers null.

    Args:
        study: the study.
        folder: its folder, results/{study}.
    """
    rows = [{"study": study.study, **record.columns, **_spent(record, folder)} for record in records(study)]
    return pd.DataFrame(rows).reindex(columns=list(tidy.COSTS))


def records(study: Study) -> Iterator[Record]:
    """The records of a study, stage by stage: experts, statistics, merges, selections, evaluations, judgements."""
    paths = layout.of(study)
    for training in trainings(study):
        columns = {"base": training.base, "expert": training.domain, "recipe": training.recipe, "seed": training.seed}
        yield Record(paths.below(paths.expert_record(training.path)), "train_expert", columns=columns)
    for name, imported in study.experts.imported.items():
        columns = {"base": imported.base, "expert": name}
        path = paths.below(paths.expert_record(layout.imported(imported.base, name)))
        yield Record(path, "import_expert", columns=columns)
    yield from _statistics(study)
    listed = subjects(study)
    for subject in listed:
        if subject.kind == "merged":
            chooses = subject.candidate is not None
            yield Record(f"{subject.path}/merged.json", "merge_experts", chooses, _columns_of(study, subject))
    for subject in listed:
        method = study.methods[subject.method] if subject.method else None
        if method and method.by and subject.pool and subject.candidate is None and subject.axis is None:
            path = paths.selection(subject.base, subject.pool.id, str(subject.method), subject.seed or 0)
            soup = registry.get(method.method).needs_members
            yield Record(
                paths.below(path),
                "select_soup" if soup else "select_hyperparameters",
                True,
                _columns_of(study, subject),
            )
    for subject in listed:
        for split in subject.splits:
            columns = _columns_of(study, subject) | {"group": split}
            path = paths.evaluation(subject.path, split, "json")
            yield Record(paths.below(path), "evaluate", split == "validation", columns)
            if is_judged(study, split):
                path = paths.judged(subject.path, split, "json")
                yield Record(paths.below(path), "judge_responses", split == "validation", columns)


def _statistics(study: Study) -> Iterator[Record]:
    """What was measured of experts on their data, once for all pools and methods that need it."""
    paths = layout.of(study)
    methods = [(method, kind) for method in study.methods.values() if (kind := registry.get(method.method).statistics)]
    for base in study.bases:
        for kind in dict.fromkeys(kind for _, kind in methods):
            pools = [
                pool
                for pool in pools_on(study, base)
                if any(of_kind == kind and takes(method, pool) for method, of_kind in methods)
            ]
            members = dict.fromkeys(expert for pool in pools for expert in pool.experts)
            for expert in members:
                # An imported expert has one statistic, whatever the seed.
                for seed in study.seeds if expert.duration else [None]:
                    columns: dict[str, Any] = {
                        "base": base,
                        "expert": expert.name,
                        "recipe": expert.recipe,
                        "duration": expert.duration,
                    }
                    columns |= {"multiple": multiple_of(expert.duration), "seed": seed}
                    path = paths.statistic(expert.subject(base, seed or 0), kind, "json")
                    yield Record(paths.below(path), "measure_expert", columns=columns)


def _columns_of(study: Study, subject: Subject) -> dict[str, Any]:
    planned = planned_columns(study, subject)
    return {name: planned[name] for name in planned if name in tidy.COSTS} | {"candidate": subject.candidate}


def _spent(record: Record, folder: Path) -> dict[str, Any]:
    """What the record says of time, memory and energy."""
    spent: dict[str, Any] = {"stage": record.stage, "artifact": record.path}
    if not (folder / record.path).is_file():
        return spent
    content = provenance.read(folder / record.path)
    facts, machine, wall_s = content["facts"], content["machine"], content["wall_s"]
    algorithm_s, validation_s = _split(record, facts, wall_s)
    passes = facts.get("passes")
    return spent | {
        "wall_s": wall_s,
        "algorithm_s": algorithm_s,
        "validation_s": validation_s,
        "tokens": facts.get("tokens"),
        "read_tokens": passes and passes["read_tokens"],
        "generated_tokens": passes and passes["generated_tokens"],
        "model_s": passes and passes["read_s"] + passes["generated_s"],
        "energy_j": facts.get("energy_j"),
        "peak_memory_mb": content["peak_memory_mb"],
        "gpu": machine.get("gpu"),
        "gpu_peak_memory_mb": float(machine["gpu_peak_memory_mb"]) if "gpu_peak_memory_mb" in machine else None,
    }


def _split(record: Record, facts: Mapping[str, Any], wall_s: float) -> tuple[float | None, float | None]:
    """Seconds of the algorithm and of validation; both None where an artifact only reports."""
    if record.stage == "train_expert":
        share = facts.get("validation_share")
        return (None, None) if share is None else (wall_s * (1 - share), wall_s * share)
    if record.stage == "merge_experts":
        return (0.0, wall_s) if record.chooses else (facts["seconds"], 0.0)
    if record.stage == "measure_expert":
        return wall_s, 0.0
    return (0.0, wall_s) if record.chooses else (None, None)
