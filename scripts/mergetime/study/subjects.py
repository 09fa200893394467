"""The subjects of a study: what is evaluated, and on which splits.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import itertools
from dataclasses import dataclass

from mergetime.config.study import Study
from mergetime.study import layout
from mergetime.study.durations import durations
from mergetime.study.methods import merge_ids
from mergetime.study.pools import Pool, pools_on


@dataclass(frozen=True)
class Subject:
    """What is evaluated, with the columns that results carry; ``path`` stands below results/{study}/evaluations/."""

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


def subjects(study: Study) -> list[Subject]:
    """Every subject of the study with the splits that it is evaluated on."""
    found = []
    both = ("validation", "test") if study.suites.validation else ("test",)
    for base in study.bases:
        found.append(Subject("base", base, layout.base(base), ("test",)))
        for seed in study.seeds:
            for domain in study.domains if study.experts.train else ():
                for duration in durations(study):
                    path = layout.expert(base, domain, seed, duration)
                    found.append(Subject("expert", base, path, both, seed, expert=domain, duration=duration))
        for name, imported in study.experts.imported.items():
            if imported.base == base:
                found.append(Subject("expert", base, layout.imported(base, name), both, expert=name))
        for pool, seed in itertools.product(pools_on(study, base), study.seeds):
            for merge_id, (method, number) in merge_ids(study).items():
                found.append(
                    Subject(
                        "merged",
                        base,
                        layout.merged(base, pool.id, merge_id, seed),
                        ("test",) if number is None else ("validation",),
                        seed,
                        pool=pool,
                        method=method,
                        candidate=number,
                        duration=pool.duration,
                    )
                )
    return found
