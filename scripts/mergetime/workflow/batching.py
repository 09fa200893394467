"""The jobs that take several subjects: the durations of an expert, or the merges of a pool.

Each batch has a rule, since outputs are files by name. A rule's name ends in the batch's number; before it is the
number of the recipe, or of the kind of pools, where a study has several.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mergetime.artifacts import forms
from mergetime.study import layout
from mergetime.study.durations import durations, recipes
from mergetime.study.job_batches import batches
from mergetime.study.methods import merges_of
from mergetime.study.suites import VALIDATION
from mergetime.workflow.grid import Grid


@dataclass(frozen=True)
class ExpertBatch:
    """Durations of an expert that one job evaluates; ``weights`` is the name of the file that each has."""

    number: str
    recipe: str
    members: tuple[str, ...]
    weights: str

    @property
    def evaluate_rule(self) -> str:
        """The rule that evaluates them."""
        return f"evaluate_expert_{self.number}"

    @property
    def subjects(self) -> list[str]:
        """Patterns of the subjects' paths."""
        return [layout.expert("{base}", "{domain}", "{seed}", duration, self.recipe) for duration in self.members]


@dataclass(frozen=True)
class MergeBatch:
    """Merges of some pools that one job makes per pool, and another evaluates per split.

    ``merge``, ``evaluate`` and ``judge`` are the names of the rules, without the batch's number. ``split`` is a pattern
    where ``splits`` are several.
    """

    merge: str
    evaluate: str
    judge: str
    number: str
    members: tuple[str, ...]
    pools: tuple[str, ...]
    split: str
    splits: tuple[str, ...]

    @property
    def merge_rule(self) -> str:
        """The rule that makes them."""
        return f"{self.merge}_{self.number}"

    @property
    def evaluate_rule(self) -> str:
        """The rule that evaluates them."""
        return f"{self.evaluate}_{self.number}"

    @property
    def subjects(self) -> list[str]:
        """Patterns of the subjects' paths."""
        return [layout.merged("{base}", "{pool}", merge_id, "{seed}") for merge_id in self.members]


@dataclass(frozen=True)
class JudgeBatch:
    """Subjects whose saved responses one job judges; ``split`` is a pattern where ``splits`` may be several."""

    rule: str
    split: str
    splits: tuple[str, ...]
    subjects: tuple[str, ...]
    pools: tuple[str, ...] = ()

    @property
    def evaluated_by(self) -> str:
        """The rule that saves the responses."""
        return self.rule.replace("judge", "evaluate", 1)


def expert_batches(grid: Grid) -> list[ExpertBatch]:
    """The batches of durations, recipe by recipe."""
    return [
        ExpertBatch(_number(place, batch.number), recipe, batch.members, forms.trained_as(spec.train.mode).weights)
        for place, (recipe, spec) in enumerate(recipes(grid.study).items())
        for batch in batches(durations(grid.study, recipe), grid.study.evaluation.subjects_per_job)
    ]


def merge_batches(grid: Grid) -> list[MergeBatch]:
    """The batches of merges that are reported, then of those that validation chooses from, by kind of pools."""
    size = grid.study.evaluation.subjects_per_job
    reported, candidates = [], []
    for place, (merge_ids, pools) in enumerate(_kinds(grid)):
        final = [merge_id for merge_id in merge_ids if grid.merges[merge_id].candidate is None]
        others = [merge_id for merge_id in merge_ids if merge_id not in final]
        for batch in batches(final, size):
            rules = ("merge_pool", "evaluate_merged", "judge_merged")
            number = _number(place, batch.number)
            reported.append(MergeBatch(*rules, number, batch.members, pools, "{split}", tuple(grid.reporting)))
        for batch in batches(others, size):
            rules = ("merge_candidates", "evaluate_candidate", "judge_candidate")
            number = _number(place, batch.number)
            candidates.append(MergeBatch(*rules, number, batch.members, pools, VALIDATION, (VALIDATION,)))
    return [*reported, *candidates]


def judge_batches(grid: Grid, judged: Iterable[str]) -> list[JudgeBatch]:
    """The batches of the evaluations, for judges.

    Args:
        grid: the study.
        judged: the splits in which judges are asked.
    """
    asked = tuple(judged)
    imported = [JudgeBatch("judge_imported", "{split}", asked, (layout.imported("{base}", "{imported}"),))]
    found = [
        JudgeBatch("judge_base", "{split}", asked, (layout.base("{base}"),)),
        *(imported if grid.study.experts.imported else []),
        *(
            JudgeBatch(f"judge_expert_{batch.number}", "{split}", asked, tuple(batch.subjects))
            for batch in expert_batches(grid)
        ),
    ]
    for batch in merge_batches(grid):
        splits = tuple(split for split in batch.splits if split in asked)
        if splits:
            rule = f"{batch.judge}_{batch.number}"
            found.append(JudgeBatch(rule, batch.split, splits, tuple(batch.subjects), batch.pools))
    return found


def _kinds(grid: Grid) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Merges, and the pools that these are made of in files of one form."""
    kinds: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for pool in grid.pools.values():
        merge_ids = tuple(merge.id for merge in merges_of(grid.study, pool))
        kinds.setdefault((merge_ids, grid.members_form(pool.id).name), []).append(pool.id)
    return [(merge_ids, tuple(pools)) for (merge_ids, _), pools in kinds.items()]


def _number(place: int, batch: int) -> str:
    return f"{place}_{batch}" if place else str(batch)
