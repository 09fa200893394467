"""How durations are spelled in paths and tables.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import re


def duration_id(multiple: float) -> str:
    """``0.25x``, ``1x``, ``1.5x``: a multiple of T*."""
    return f"{multiple:g}x"


def step_id(step: int) -> str:
    """``step_800``: a number of optimizer steps."""
    return f"step_{step}"


def multiple_of(duration: str | None) -> float | None:
    """The multiple of T* that a duration id names; None for step counts and imported experts."""
    return float(duration[:-1]) if duration and re.fullmatch(r"[0-9.]+x", duration) else None
