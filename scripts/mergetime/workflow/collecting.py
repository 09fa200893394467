"""What the tidy tables of a study are collected from."""

from mergetime.study import subjects
from mergetime.workflow.evaluating import evaluations, judged_splits
from mergetime.workflow.grid import Grid


def evaluated(grid: Grid) -> list[str]:
    """The results of every evaluation."""
    return [grid.paths.evaluation(subject, split) for subject, split in evaluations(grid)]


def judged(grid: Grid) -> list[str]:
    """What judges said of every evaluation, in the splits in which they are asked."""
    splits = judged_splits(grid)
    return [grid.paths.judged(subject, split) for subject, split in evaluations(grid) if split in splits]


def trainings(grid: Grid) -> list[str]:
    """The record of every training."""
    return [grid.paths.expert_record(training.path) for training in subjects.trainings(grid.study)]
