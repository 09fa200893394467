"""Which pools each analysis measures, and where a measurement is stored.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from dataclasses import dataclass

from mergetime.config.study import Study
from mergetime.study.layout import Layout
from mergetime.study.pools import Pool, domain_of, pools_on


@dataclass(frozen=True)
class Measurement:
    """One measurement: a pool on a base at a seed."""

    analysis: str
    base: str
    pool: Pool
    seed: int

    def file(self, paths: Layout, suffix: str = "parquet") -> str:
        """Where it is kept."""
        return paths.measurement(self.analysis, self.base, self.pool.id, self.seed, suffix)


def jobs(study: Study, analysis: str) -> list[Measurement]:
    """The measurements of an analysis, in the order of bases, pools and seeds.

    Interference and bias-variance take pools of two experts or more, bias-variance only where the study has domains,
    whose validation examples it needs. Mode connectivity takes pools with two experts or more that have a domain.
    """
    return [
        Measurement(analysis, base, pool, seed)
        for base in study.bases
        for pool in pools_on(study, base)
        for seed in study.seeds
        if _measurable(study, pool, analysis)
    ]


def domains_of(study: Study, pool: Pool) -> dict[str, str]:
    """The domain of each member of a pool, without imported experts that name none."""
    domains = {name: domain_of(study, expert) for name, expert in pool.members.items()}
    return {name: domain for name, domain in domains.items() if domain is not None}


def _measurable(study: Study, pool: Pool, analysis: str) -> bool:
    if analysis == "mode_connectivity":
        return len(domains_of(study, pool)) > 1
    return len(pool.experts) > 1 and (analysis == "interference" or bool(study.domains))
