"""From the files of a study's artifacts to the tidy frames of :mod:`mergetime.results.columns`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from mergetime.config.study import Study
from mergetime.core import provenance
from mergetime.core.duration_ids import multiple_of
from mergetime.core.tables import Piece
from mergetime.results import columns as tidy
from mergetime.study.layout import Layout
from mergetime.study.methods import candidates
from mergetime.study.subjects import Subject, TrainingRun, subjects, trainings
from mergetime.study.suites import benchmarks_of


def evaluations(study: Study, folder: Path, suffix: str) -> Iterator[Piece]:
    """Every evaluation of every subject, one after another, with the columns that tell what it is of.

    Where a benchmark has a judge, what it judged is the primary metric, and the one by keywords stays beside it. Of
    scores by item, only primary metrics are given where the config says so (``evaluation.keep_metrics``).

    Args:
        study: the study.
        folder: its folder, results/{study}.
        suffix: ``parquet`` for metrics, ``samples.parquet`` for scores by item.
    """
    of_samples = suffix != "parquet"
    tidy_columns = list(tidy.SAMPLES if of_samples else tidy.RESULTS)
    paths = Layout(str(folder))
    boundaries = _boundaries(study, paths)
    for subject in subjects(study):
        columns = _subject_columns(study, paths, subject, boundaries)
        for split in subject.splits:
            frame = _read(Path(paths.evaluation(subject.path, split, suffix)), tidy_columns)
            if is_judged(study, split):
                frame = frame_with_judged(frame, _read(Path(paths.judged(subject.path, split, suffix)), tidy_columns))
            if of_samples:
                frame = with_stems(frame)
                if study.evaluation.keep_metrics == "primary":
                    frame = frame[frame["primary"]]
            same = columns | {"split": split, "group": split}
            yield Piece(frame[[name for name in tidy_columns if name not in same]], same)


def _read(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Those of the columns that an evaluation has; prompts and responses, nearly all of a file, stay on the disk."""
    present = pq.read_schema(path).names
    return pd.read_parquet(path, columns=[name for name in columns if name in present])


def frame_with_judged(evaluated: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """The rows of an evaluation and of what was judged of it; only the judged metric of a benchmark is primary."""
    kept = evaluated.assign(primary=evaluated["primary"] & ~evaluated["benchmark"].isin(judged["benchmark"]))
    return pd.concat([kept, judged], ignore_index=True)


def with_stems(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows, each with a stem: validation examples, which have none, are their own stems."""
    known = samples["stem"] if "stem" in samples else pd.Series(None, index=samples.index, dtype="object")
    return samples.assign(stem=known.where(known.notna(), samples["item"]))


def is_judged(study: Study, split: str) -> bool:
    """Whether a judge reads responses of this split."""
    return any(study.benchmarks[name].judge for _, name in benchmarks_of(study, split))


def curves(study: Study, folder: Path) -> pd.DataFrame:
    """Every loss curve, with T* and whether it is an interior minimum."""
    frames = [pd.DataFrame({name: pd.Series(dtype="object") for name in tidy.CURVES})]
    paths = Layout(str(folder))
    for training in trainings(study):
        facts = provenance.read(Path(paths.expert_record(training.path)))["facts"]
        frames.append(
            pd.read_parquet(paths.curve(training.path)).assign(
                study=study.study,
                base=training.base,
                domain=training.domain,
                seed=training.seed,
                t_star=facts["t_star"],
                t_star_at_boundary=facts["t_star_boundary"] is not None,
                last_step=facts["last_step"],
                recipe=training.recipe,
            )
        )
    return pd.concat(frames, ignore_index=True)[list(tidy.CURVES)]


def _boundaries(study: Study, paths: Layout) -> dict[TrainingRun, bool]:
    """Whether the T* of each training is at a boundary."""
    boundaries = {}
    for training in trainings(study):
        facts = provenance.read(Path(paths.expert_record(training.path)))["facts"]
        boundaries[training] = facts["t_star_boundary"] is not None
    return boundaries


def planned_columns(study: Study, subject: Subject) -> dict[str, Any]:
    """What each row says of its subject, as far as the config tells: columns of ``tidy.SUBJECT``."""
    base, pool = study.bases[subject.base], subject.pool
    return {
        "study": study.study,
        "base": subject.base,
        "base_revision": base.revision,
        "subject_kind": subject.kind,
        "subject": subject.path,
        "expert": subject.expert,
        "pool": pool.id if pool else None,
        "method": subject.method,
        "space": study.methods[subject.method].space if subject.method else None,
        "duration": subject.duration,
        "multiple": multiple_of(subject.duration),
        "seed": subject.seed,
        "algorithm": study.methods[subject.method].method if subject.method else None,
        "pool_family": pool.family if pool else None,
        "pool_size": len(pool.experts) if pool else None,
        "draw": pool.draw if pool else None,
        "members": json.dumps(list(pool.members)) if pool else None,
        "recipe": subject.recipe,
        "axis": subject.axis,
        "axis_value": subject.axis_value,
        "base_family": base.family,
        "base_parameters": base.parameters,
        "base_tuning": base.tuning,
    }


def _subject_columns(
    study: Study, paths: Layout, subject: Subject, boundaries: dict[TrainingRun, bool]
) -> dict[str, Any]:
    chosen = None
    if subject.kind == "merged" and subject.method:
        chosen = _chosen(study, paths, subject, study.methods[subject.method].by is not None)
    behind = {(expert.name, expert.recipe) for expert in subject.experts}
    return planned_columns(study, subject) | {
        "t_star_at_boundary": any(
            at_boundary
            for training, at_boundary in boundaries.items()
            if (training.base, training.seed) == (subject.base, subject.seed)
            and (training.domain, training.recipe) in behind
        ),
        "chosen": chosen,
    }


def _chosen(study: Study, paths: Layout, subject: Subject, chooses: bool) -> str | None:
    """What validation chose for a merged subject, or what a candidate stands for, as JSON."""
    assert subject.method and subject.pool
    if subject.candidate is not None:
        return json.dumps(candidates(study.methods[subject.method])[subject.candidate], sort_keys=True)
    if not chooses:
        return None
    selection = paths.selection(subject.base, subject.pool.id, subject.method, subject.seed or 0)
    facts = provenance.read(Path(selection))["facts"]
    return json.dumps(facts.get("chosen") or {"members": facts["members"]}, sort_keys=True)
