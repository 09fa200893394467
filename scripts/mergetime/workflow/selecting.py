"""Choosing by validation: the results that decide, and what the scripts that choose are told."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mergetime.study import layout
from mergetime.study.methods import candidates
from mergetime.workflow.evaluating import judged_splits
from mergetime.workflow.grid import Grid
from mergetime.workflow.merging import member_weights


def choosing(grid: Grid) -> list[str]:
    """The methods whose hyper-parameters validation chooses."""
    return [name for name, method in grid.study.methods.items() if method.choose]


def soups(grid: Grid) -> list[str]:
    """The methods whose members validation chooses."""
    return [name for name, method in grid.study.methods.items() if method.method == "greedy_soup"]


def candidate_scores(grid: Grid, base: str, pool: str, method: str, seed: str) -> list[str]:
    """The validation results of a method's candidates."""
    merges = [merge for merge in grid.merges.values() if merge.method == method and merge.candidate is not None]
    return _validated(grid, (layout.merged(base, pool, merge.id, seed) for merge in merges))


def candidates_json(grid: Grid, method: str) -> list[str]:
    """The hyper-parameters of each of these candidates."""
    return [json.dumps(candidate) for candidate in candidates(grid.study.methods[method])]


def member_scores(grid: Grid, base: str, pool: str, seed: str) -> list[str]:
    """The validation results of a pool's members."""
    return _validated(grid, (expert.subject(base, seed) for expert in grid.pools[pool].experts))


def judged_of(grid: Grid, scores: Iterable[str]) -> list[str]:
    """What judges said of the responses behind validation results; nothing where validation has no judge."""
    if "validation" not in judged_splits(grid):
        return []
    return [f"{file.removesuffix('.parquet')}.judged.parquet" for file in scores]


def judged_candidates(grid: Grid, base: str, pool: str, method: str, seed: str) -> list[str]:
    """What judges said of a method's candidates."""
    return judged_of(grid, candidate_scores(grid, base, pool, method, seed))


def judged_members(grid: Grid, base: str, pool: str, seed: str) -> list[str]:
    """What judges said of a pool's members."""
    return judged_of(grid, member_scores(grid, base, pool, seed))


def soup_json(grid: Grid, base: str, pool: str, seed: str) -> str:
    """The members of a pool with their results, for select_soup.py."""
    weights = member_weights(grid, base, pool, seed)
    scores = member_scores(grid, base, pool, seed)
    judged: Sequence[str | None] = judged_of(grid, scores) or [None] * len(scores)
    experts = {
        name: {"folder": str(Path(file).parent), "scores": own, "judged": said}
        for (name, file), own, said in zip(weights.items(), scores, judged, strict=True)
    }
    return json.dumps(experts)


def _validated(grid: Grid, subjects: Iterable[str]) -> list[str]:
    return [grid.paths.evaluation(subject, "validation") for subject in subjects]
