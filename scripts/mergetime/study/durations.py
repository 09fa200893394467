"""The recipes of a study, and the durations that they keep experts at.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from mergetime.config.experts import Durations, Recipe
from mergetime.config.study import Study
from mergetime.core.duration_ids import duration_id, step_id


def recipes(study: Study) -> dict[str, Recipe]:
    """How experts are trained, by the recipe's name; empty for a study that imports all of its experts."""
    return study.experts.all_recipes


def durations(study: Study, recipe: str | None = None) -> list[str]:
    """The duration ids that experts are kept at, in the config's order; of all recipes unless one is named."""
    chosen = recipes(study) if recipe is None else {recipe: recipes(study)[recipe]}
    return list(dict.fromkeys(duration for trained_by in chosen.values() for duration in _ids(trained_by.durations)))


def _ids(listed: Durations) -> list[str]:
    if listed.multiples_of_optimum:
        return [duration_id(multiple) for multiple in listed.multiples_of_optimum]
    return [step_id(step) for step in listed.steps or []] or list(listed.early_stopping or {})
