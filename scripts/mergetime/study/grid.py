"""The grid of a study under one name: durations, pools, merges and subjects.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from mergetime.core.duration_ids import duration_id, multiple_of
from mergetime.study.durations import durations, recipes
from mergetime.study.methods import CANDIDATE, Merge, candidates, merge_ids, merges, merges_of, takes
from mergetime.study.pools import Expert, Pool, domain_of, pools, pools_on
from mergetime.study.subjects import Subject, TrainingRun, subjects, trainings

__all__ = [
    "CANDIDATE",
    "Expert",
    "Merge",
    "Pool",
    "Subject",
    "TrainingRun",
    "candidates",
    "domain_of",
    "duration_id",
    "durations",
    "merge_ids",
    "merges",
    "merges_of",
    "multiple_of",
    "pools",
    "pools_on",
    "recipes",
    "subjects",
    "takes",
    "trainings",
]
