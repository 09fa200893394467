"""Which tables and figures a study has.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from collections.abc import Mapping

from mergetime.config.study import Study
from mergetime.publishing.registry import SAFETY, Entry, Need
from mergetime.study import grid


def offered(entries: Mapping[str, Entry], study: Study) -> dict[str, Entry]:
    """Those of ``entries`` whose base and needs the study has."""
    has = possessions(study)
    return {
        name: entry
        for name, entry in entries.items()
        if has.issuperset(entry.needs) and (entry.base is None or entry.base < len(study.bases))
    }


def possessions(study: Study) -> set[Need]:
    """What a study has that tables and figures may need.

    ``training``: loss curves. ``merges``: models merged at single durations, from the pool that is shown, which is the
    first. ``multiples``: durations that are multiples of T*. ``accuracy`` and ``safety``: domains measured by accuracy,
    and by refusals. The others are analyses that the config lists.
    """
    durations = study.experts.durations
    found: dict[Need, bool] = {
        "training": study.experts.train is not None,
        "merges": any(_is_shown(pool, next(iter(study.pools))) for pool in grid.pools(study)),
        "multiples": durations is not None and durations.multiples_of_optimum is not None,
        "accuracy": any(domain != SAFETY for domain in study.suites.test),
        "safety": SAFETY in study.suites.test,
        "bias_variance": "bias_variance" in study.analyses,
        "mode_connectivity": "mode_connectivity" in study.analyses,
    }
    return {name for name, has in found.items() if has}


def _is_shown(pool: grid.Pool, shown: str) -> bool:
    return pool.duration is not None and pool.id.removesuffix(f"_{pool.duration}") == shown
