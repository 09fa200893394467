"""The durations that a study keeps its experts at.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import re

from mergetime.config.study import Study


def duration_id(multiple: float) -> str:
    """``0.25x``, ``1x``, ``1.5x``: how a multiple of T* stands in paths."""
    return f"{multiple:g}x"


def multiple_of(duration: str | None) -> float | None:
    """The multiple of T* that a duration id names; None for step counts and imported experts."""
    return float(duration[:-1]) if duration and re.fullmatch(r"[0-9.]+x", duration) else None


def durations(study: Study) -> list[str]:
    """The duration ids that experts are kept at, in the config's order."""
    listed = study.experts.durations
    if listed is None:
        return []
    if listed.multiples_of_optimum:
        return [duration_id(multiple) for multiple in listed.multiples_of_optimum]
    return [f"step_{step}" for step in listed.steps or []] or list(listed.early_stopping or {})
