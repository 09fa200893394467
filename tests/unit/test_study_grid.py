"""The grids of the repository's studies: their pools, merges and subjects, in an order that results depend on."""

import hashlib
from pathlib import Path

import pytest

from mergetime.config.reading import load
from mergetime.config.study import Study
from mergetime.results.collection import planned_columns
from mergetime.study import grid

ROOT = Path(__file__).parents[2]
COLUMNS = [
    "study", "base", "base_revision", "subject_kind", "subject", "expert", "pool", "method", "space", "duration",
    "multiple", "seed",
]  # fmt: skip


def listing(study: Study) -> list[str]:
    """The whole grid as text: a change of any id, path, split, or of the order, changes it."""
    pools = [
        f"{pool.id} {pool.duration} " + " ".join(f"{name}={expert.path}" for name, expert in pool.members.items())
        for pool in grid.pools(study)
    ]
    bases = [repr([pool.id for pool in grid.pools_on(study, base)]) for base in study.bases]
    subjects = []
    for subject in grid.subjects(study):
        columns = planned_columns(study, subject)
        subjects.append(f"{subject.splits} {subject.candidate} " + repr([columns[name] for name in COLUMNS]))
    return [*pools, repr(grid.durations(study)), repr(grid.merge_ids(study)), *bases, *subjects]


@pytest.mark.parametrize(
    ("name", "subjects", "pools", "digest"),
    [
        ("demo", 76, 5, "951068a864b19905"),
        ("smoke", 43, 5, "c2535abdcbff8431"),
        ("paper", 507, 8, "b8068337f1696dda"),
    ],
)
def test_a_study_that_was_run_keeps_its_grid(name: str, subjects: int, pools: int, digest: str) -> None:
    """The digests are those of version 0.1.0: another one renames, adds, drops or reorders what has been computed."""
    study = load(ROOT / f"config/{name}.yaml")
    assert (len(grid.subjects(study)), len(grid.pools(study))) == (subjects, pools)
    assert hashlib.sha256("\n".join(listing(study)).encode()).hexdigest()[:16] == digest
