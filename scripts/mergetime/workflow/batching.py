"""The jobs that take several subjects: the durations of an expert, or the merges of a pool."""

from dataclasses import dataclass

from mergetime.study import grid as listed
from mergetime.study import layout
from mergetime.study.batches import batches
from mergetime.workflow.grid import Grid


@dataclass(frozen=True)
class ExpertBatch:
    """Durations of an expert that one job evaluates."""

    number: int
    members: tuple[str, ...]

    @property
    def evaluate_rule(self) -> str:
        """The rule that evaluates them."""
        return f"evaluate_expert_{self.number}"

    @property
    def subjects(self) -> list[str]:
        """Patterns of the subjects' paths."""
        return [layout.expert("{base}", "{domain}", "{seed}", duration) for duration in self.members]


@dataclass(frozen=True)
class MergeBatch:
    """Merges of a pool that one job makes, and another evaluates on ``split``.

    ``merge``, ``evaluate`` and ``judge`` are the names of the rules, without the batch's number.
    """

    merge: str
    evaluate: str
    judge: str
    split: str
    number: int
    members: tuple[str, ...]

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
    """Subjects whose saved responses one job judges; ``split`` is a pattern where the rule takes several splits."""

    rule: str
    split: str
    subjects: tuple[str, ...]

    @property
    def evaluated_by(self) -> str:
        """The rule that saves the responses."""
        return self.rule.replace("judge", "evaluate", 1)


def expert_batches(grid: Grid) -> list[ExpertBatch]:
    """The batches of durations."""
    found = batches(listed.durations(grid.study), grid.study.evaluation.subjects_per_job)
    return [ExpertBatch(batch.number, batch.members) for batch in found]


def merge_batches(grid: Grid) -> list[MergeBatch]:
    """The batches of merges that are tested, then of those that validation chooses from."""
    size = grid.study.evaluation.subjects_per_job
    return [
        *(
            MergeBatch("merge_pool", "evaluate_merged", "judge_merged", "test", batch.number, batch.members)
            for batch in batches(grid.final, size)
        ),
        *(
            MergeBatch(
                "merge_candidates", "evaluate_candidate", "judge_candidate", "validation", batch.number, batch.members
            )
            for batch in batches(grid.candidates, size)
        ),
    ]


def judge_batches(grid: Grid, judged: list[str]) -> list[JudgeBatch]:
    """The batches of the evaluations, for judges.

    Args:
        grid: the study.
        judged: the splits in which judges are asked.
    """
    imported = [JudgeBatch("judge_imported", "{split}", (layout.imported("{base}", "{imported}"),))]
    return [
        JudgeBatch("judge_base", "{split}", (layout.base("{base}"),)),
        *(imported if grid.study.experts.imported else []),
        *(
            JudgeBatch(f"judge_expert_{found.number}", "{split}", tuple(found.subjects))
            for found in expert_batches(grid)
        ),
        *(
            JudgeBatch(f"{found.judge}_{found.number}", found.split, tuple(found.subjects))
            for found in merge_batches(grid)
            if found.split in judged
        ),
    ]
