"""From the files of a study's artifacts to the tidy frames of :mod:`mergetime.results.columns`."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mergetime.study import grid, layout
from mergetime.core import provenance
from mergetime.results import columns as tidy
from mergetime.config.study import Study
from mergetime.config.study import Study
from mergetime.study.layout import Layout


def evaluations(study: Study, folder: Path, suffix: str) -> pd.DataFrame:
    """Every evaluation of every subject, with the columns that tell what it is of.

    Where a benchmark has a judge, what it judged is the primary metric, and the one by keywords stays beside it.

    Args:
        study: the study.
        folder: its folder, results/{study}.
        suffix: ``parquet`` for metrics, ``samples.parquet`` for scores by item.
    """
    wanted = tidy.RESULTS if suffix == "parquet" else tidy.SAMPLES
    paths = Layout(str(folder))
    boundaries = _boundaries(study, paths)
    frames = []
    for subject in grid.subjects(study):
        columns = _subject_columns(study, paths, subject, boundaries)
        for split in subject.splits:
            frame = pd.read_parquet(paths.evaluation(subject.path, split, suffix))
            if _is_judged(study, split):
                frame = with_judged(frame, pd.read_parquet(paths.judged(subject.path, split, suffix)))
            if suffix != "parquet":
                frame = with_stems(frame)
            frames.append(frame.assign(**columns, split=split)[list(wanted)])
    return pd.concat(frames, ignore_index=True)


def with_judged(evaluated: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """The rows of an evaluation and of what was judged of it; only the judged metric of a benchmark is primary."""
    kept = evaluated.assign(primary=evaluated["primary"] & ~evaluated["benchmark"].isin(judged["benchmark"]))
    return pd.concat([kept, judged], ignore_index=True)


def with_stems(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows with a stem each: validation examples, which have none, are their own."""
    known = samples["stem"] if "stem" in samples else pd.Series(None, index=samples.index, dtype="object")
    return samples.assign(stem=known.where(known.notna(), samples["item"]))


def _is_judged(study: Study, split: str) -> bool:
    names = getattr(study.suites, split).values()
    return any(study.benchmarks[name].judge for name in names if name in study.benchmarks)


def curves(study: Study, folder: Path) -> pd.DataFrame:
    """Every loss curve, with T* and whether it is an interior minimum."""
    frames = [pd.DataFrame({name: pd.Series(dtype="object") for name in tidy.CURVES})]
    paths = Layout(str(folder))
    for base, domain, seed in _trainings(study):
        run = layout.training(base, domain, seed)
        facts = provenance.read(Path(paths.expert_record(run)))["facts"]
        frames.append(
            pd.read_parquet(paths.curve(run)).assign(
                study=study.study,
                base=base,
                domain=domain,
                seed=seed,
                t_star=facts["t_star"],
                t_star_at_boundary=facts["t_star_boundary"] is not None,
                last_step=facts["last_step"],
            )
        )
    return pd.concat(frames, ignore_index=True)[list(tidy.CURVES)]


def _trainings(study: Study) -> list[tuple[str, str, int]]:
    if not study.experts.train:
        return []
    return [(base, domain, seed) for base in study.bases for domain in study.domains for seed in study.seeds]


def _boundaries(study: Study, paths: Layout) -> dict[tuple[str, str, int], bool]:
    """Whether the T* of each training is at a boundary."""
    boundaries = {}
    for training in _trainings(study):
        facts = provenance.read(Path(paths.expert_record(layout.training(*training))))["facts"]
        boundaries[training] = facts["t_star_boundary"] is not None
    return boundaries


def planned_columns(study: Study, subject: grid.Subject) -> dict[str, Any]:
    """What each row says of its subject, as far as the config tells: columns of ``tidy.SUBJECT``."""
    return {
        "study": study.study,
        "base": subject.base,
        "base_revision": study.bases[subject.base].revision,
        "subject_kind": subject.kind,
        "subject": subject.path,
        "expert": subject.expert,
        "pool": subject.pool.id if subject.pool else None,
        "method": subject.method,
        "space": study.methods[subject.method].space if subject.method else None,
        "duration": subject.duration,
        "multiple": grid.multiple_of(subject.duration),
        "seed": subject.seed,
    }


def _subject_columns(
    study: Study, paths: Layout, subject: grid.Subject, boundaries: dict[tuple[str, str, int], bool]
) -> dict[str, Any]:
    behind = [expert.name for expert in subject.pool.experts] if subject.pool else [subject.expert]
    chosen = None
    if subject.kind == "merged" and subject.method:
        chosen = _chosen(study, paths, subject, study.methods[subject.method].by is not None)
    return planned_columns(study, subject) | {
        "t_star_at_boundary": any(
            boundaries.get((subject.base, name or "", subject.seed or 0), False) for name in behind
        ),
        "chosen": chosen,
    }


def _chosen(study: Study, paths: Layout, subject: grid.Subject, chooses: bool) -> str | None:
    """What validation chose for a merged subject, or what a candidate stands for, as JSON."""
    assert subject.method and subject.pool
    if subject.candidate is not None:
        return json.dumps(grid.candidates(study.methods[subject.method])[subject.candidate], sort_keys=True)
    if not chooses:
        return None
    selection = paths.selection(subject.base, subject.pool.id, subject.method, subject.seed or 0)
    facts = provenance.read(Path(selection))["facts"]
    return json.dumps(facts.get("chosen") or {"members": facts["members"]}, sort_keys=True)
