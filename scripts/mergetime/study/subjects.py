"""The subjects of a study: what is evaluated, and on which splits.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import itertools
from dataclasses import dataclass

from mergetime.config.study import Study
from mergetime.study import layout
from mergetime.study.durations import durations, recipes
from mergetime.study.methods import merges_of
from mergetime.study.pools import Expert, Pool, pools_on
from mergetime.study.suites import VALIDATION, groups, reporting


@dataclass(frozen=True)
class TrainingRun:
    """One expert's training, which all durations of a recipe share."""

    base: str
    domain: str
    recipe: str
    seed: int

    @property
    def path(self) -> str:
        """The folder of its record and loss curve, below results/{study}/."""
        return layout.training(self.base, self.domain, self.seed, self.recipe)


def trainings(study: Study) -> list[TrainingRun]:
    """The trainings of the study, in the order of bases, domains, recipes and seeds."""
    return [
        TrainingRun(base, domain, recipe, seed)
        for base, domain, recipe, seed in itertools.product(study.bases, study.domains, recipes(study), study.seeds)
    ]


@dataclass(frozen=True)
class Subject:
    """What is evaluated, with the columns that results carry; ``path`` is one of the layout's."""

    kind: str
    base: str
    path: str
    splits: tuple[str, ...]
    seed: int | None = None
    expert: str | None = None
    pool: Pool | None = None
    method: str | None = None
    candidate: int | None = None
    duration: str | None = None
    recipe: str | None = None
    axis: str | None = None
    axis_value: float | None = None

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The experts that it is or is merged from; none for a base."""
        if self.pool:
            return self.pool.experts
        return (Expert(self.expert, self.duration, self.recipe),) if self.expert else ()


def subjects(study: Study) -> list[Subject]:
    """Every subject of the study with the splits that it is evaluated on."""
    listed = []
    report = tuple(reporting(study))
    every_split = tuple(groups(study))
    for base in study.bases:
        listed.append(Subject("base", base, layout.base(base), report))
        for seed in study.seeds:
            for domain, recipe in itertools.product(study.domains, recipes(study)):
                for duration in durations(study, recipe):
                    path = layout.expert(base, domain, seed, duration, recipe)
                    listed.append(
                        Subject(
                            "expert", base, path, every_split, seed, expert=domain, duration=duration, recipe=recipe
                        )
                    )
        for name, imported in study.experts.imported.items():
            if imported.base == base:
                listed.append(Subject("expert", base, layout.imported(base, name), every_split, expert=name))
        for pool, seed in itertools.product(pools_on(study, base), study.seeds):
            for merge in merges_of(study, pool):
                listed.append(
                    Subject(
                        "merged",
                        base,
                        layout.merged(base, pool.id, merge.id, seed),
                        report if merge.candidate is None else (VALIDATION,),
                        seed,
                        pool=pool,
                        method=merge.method,
                        candidate=merge.candidate,
                        duration=pool.duration,
                        recipe=pool.recipe,
                        axis=merge.axis,
                        axis_value=merge.axis_value,
                    )
                )
    return listed
