"""What studies may have that tables and figures need, and which of these a study has.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from collections.abc import Mapping

from mergetime.config.experts import DEFAULT
from mergetime.config.study import Study
from mergetime.publishing.entry import Entry, Need
from mergetime.study.durations import recipes
from mergetime.study.pools import pools

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


def _shown_recipe(study: Study) -> str | None:
    """The recipe of the pool that is shown, the first, if its experts are merged at single durations; else None.

    Of several recipes it is the default one that has the name of the key below ``pools`` alone.
    """
    shown = next(iter(study.pools), None)
    merged = {pool.recipe for pool in pools(study) if pool.family == shown and pool.duration and pool.draw is None}
    if DEFAULT in merged:
        return DEFAULT
    return next(iter(merged)) if len(merged) == 1 else None


def _is_merged(study: Study) -> bool:
    """Whether a method merges the pool that is shown."""
    shown = next(iter(study.pools), None)
    return any(method.pools is None or shown in method.pools for method in study.methods.values())


def _has_multiples(study: Study) -> bool:
    by_name, shown = recipes(study), _shown_recipe(study)
    of_interest = [by_name[shown]] if shown else by_name.values()
    return any(recipe.durations.multiples_of_optimum is not None for recipe in of_interest)


TRAINING = Need(lambda study: bool(recipes(study)), "experts that the study trains (experts.train)")
MERGES = Need(
    lambda study: _shown_recipe(study) is not None and _is_merged(study),
    "merges of experts of one duration in the first of the pools (at: each_duration) by a method",
)
MULTIPLES = Need(_has_multiples, "durations in multiples of T* (experts.durations.multiples_of_optimum)")
BIAS_VARIANCE = Need(lambda study: "bias_variance" in study.analyses, "bias_variance among the analyses")
MODE_CONNECTIVITY = Need(lambda study: "mode_connectivity" in study.analyses, "mode_connectivity among the analyses")
