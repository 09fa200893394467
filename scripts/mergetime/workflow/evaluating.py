"""Evaluating and judging: the suite of a split, its data, the subjects of a job, and how responses are judged."""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from mergetime.config.evaluation import Judge
from mergetime.config.sections import job_options
from mergetime.config.study import Study
from mergetime.modalities import parts
from mergetime.study import layout, suites
from mergetime.study import subjects as listed
from mergetime.workflow.fetching import benchmark_folders, benchmark_records
from mergetime.workflow.grid import Grid


def losses_of(grid: Grid, split: str) -> dict[str, str]:
    """The examples of the domains on whose own validation examples a group takes the loss, by domain."""
    return {domain: grid.paths.data(domain, "validation") for domain in suites.losses_of(grid.study, split)}


@functools.cache
def suite_files(grid: Grid, split: str) -> list[str]:
    """What subjects are evaluated on, as inputs: the fetched data of benchmarks, and prepared validation examples."""
    return benchmark_records(grid.study, split) + list(losses_of(grid, split).values())


@functools.cache
def suite_json(grid: Grid, base: str, split: str) -> str:
    """The benchmarks of a split and how they are run on a base, for the scripts that evaluate.

    Without what changes no response: the judge, the level of chance, what is kept of them, how many subjects a job has.
    """
    study = grid.study
    benchmarks = [
        {
            "name": name,
            "domain": domain,
            "benchmark": _without(job_options(study.benchmarks[name]), "chance", "judge"),
            "folders": {str(config): folder for config, folder in benchmark_folders(study, name).items()},
        }
        for domain, name in suites.benchmarks_of(study, split)
    ]
    suite = {
        "split": split,
        "benchmarks": benchmarks,
        "validation_loss": losses_of(grid, split),
        "evaluation": _without(job_options(study.evaluation), "subjects_per_job", "keep_metrics"),
        "cache": layout.CACHE,
    }
    return json.dumps(suite | parts.told(study.bases[base].modality))


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def evaluation_files(grid: Grid, subjects: Iterable[str], split: str) -> list[str]:
    """The files that the evaluations of subjects end in."""
    return [grid.paths.evaluation(subject, split, part) for subject in subjects for part in layout.EVALUATION_PARTS]


def subjects_json(grid: Grid, subjects: Iterable[str], split: str) -> str:
    """The subjects that one job evaluates, for evaluate.py: folders of weights, and what the results begin with."""
    told = []
    for subject in subjects:
        folder = None if layout.is_base(subject) else grid.paths.folder(subject)
        told.append({"subject": subject, "folder": folder, "out": grid.paths.evaluation_stem(subject, split)})
    return json.dumps(told)


# Judging


def judges_of(study: Study, split: str) -> dict[str, Judge]:
    """The judges of a split's benchmarks, by benchmark."""
    named = {name: study.benchmarks[name].judge for _, name in suites.benchmarks_of(study, split)}
    return {name: study.judges[judge] for name, judge in named.items() if judge}


def judged_splits(grid: Grid) -> list[str]:
    """The splits in which judges are asked."""
    return [split for split in grid.splits if judges_of(grid.study, split)]


def judge_folder(judge: Judge) -> str:
    """Where a judge is fetched to."""
    return layout.model(judge.model, judge.revision)


@functools.cache
def judge_models(grid: Grid, split: str) -> list[str]:
    """The fetched judges of a split, as inputs."""
    folders = [judge_folder(judge) for judge in judges_of(grid.study, split).values()]
    return [layout.fetched(folder) for folder in dict.fromkeys(folders)]


@functools.cache
def judgements_json(grid: Grid, split: str) -> str:
    """How a split's responses are judged, for scripts that ask judges."""
    judgements = [
        job_options(judge)
        | {"benchmark": name, "folder": judge_folder(judge), "weights": grid.study.benchmarks[name].weights}
        for name, judge in judges_of(grid.study, split).items()
    ]
    return json.dumps(judgements)


def judged_subjects_json(grid: Grid, subjects: Iterable[str], split: str) -> str:
    """The subjects that one job judges, for judge_responses.py: what its files, and those written, begin with."""
    told = [
        {
            "subject": subject,
            "responses": grid.paths.evaluation_stem(subject, split),
            "out": grid.paths.judged_stem(subject, split),
        }
        for subject in subjects
    ]
    return json.dumps(told)


def responses(grid: Grid, subjects: Sequence[str], split: str) -> list[str]:
    """What judges read of evaluations, as inputs."""
    parts = ("samples.parquet", "parquet")
    return [grid.paths.evaluation(subject, split, part) for subject in subjects for part in parts]


def judged_files(grid: Grid, subjects: Sequence[str], split: str) -> list[str]:
    """The files that judging the responses of subjects ends in."""
    return [grid.paths.judged(subject, split, part) for subject in subjects for part in layout.EVALUATION_PARTS]


def evaluations(grid: Grid) -> list[tuple[str, str]]:
    """Every evaluation of the study: a subject's path, and a split."""
    return [(subject.path, split) for subject in listed.subjects(grid.study) for split in subject.splits]
