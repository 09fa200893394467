"""What studies may have that tables and figures need, and which of these a study has.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from collections.abc import Mapping

from mergetime.config.study import Study
from mergetime.publishing.entry import Entry, Need
from mergetime.study import grid

_ORDINALS = ("first", "second", "third")


def missing(entry: Entry, study: Study) -> str | None:
    """The first need of a table or figure that a study does not meet, in words that complete "it needs ..."."""
    unmet = next((need for need in entry.needs if not need.function(study)), None)
    return unmet.sentence.format(bases=len(study.bases)) if unmet else None


def offered(entries: Mapping[str, Entry], study: Study) -> dict[str, Entry]:
    """Those of ``entries`` whose needs a study meets."""
    return {name: entry for name, entry in entries.items() if missing(entry, study) is None}


def base(position: int) -> Need:
    """A base at this position of the config, counted from 0."""
    return Need(lambda study: position < len(study.bases), f"a {_ORDINALS[position]} base; this study has {{bases}}")


def _has_merges(study: Study) -> bool:
    """Whether models are merged at single durations, from the pool that is shown: the first."""
    shown = next(iter(study.pools), None)
    return any(pool.duration and pool.id.removesuffix(f"_{pool.duration}") == shown for pool in grid.pools(study))


def _has_multiples(study: Study) -> bool:
    durations = study.experts.durations
    return durations is not None and durations.multiples_of_optimum is not None


TRAINING = Need(lambda study: study.experts.train is not None, "experts that the study trains (experts.train)")
MERGES = Need(_has_merges, "merges of experts of one duration in the first of the pools (at: each_duration)")
MULTIPLES = Need(_has_multiples, "durations in multiples of T* (experts.durations.multiples_of_optimum)")
BIAS_VARIANCE = Need(lambda study: "bias_variance" in study.analyses, "bias_variance among the analyses")
MODE_CONNECTIVITY = Need(lambda study: "mode_connectivity" in study.analyses, "mode_connectivity among the analyses")
