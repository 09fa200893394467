"""The agreement of presets with their sources, as docs/presets.md states it."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PAGE = (Path(__file__).parents[2] / "docs/presets.md").read_text()
_ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| ([^|]*) \| ([\d.e-]+|exact|-) \|$", re.MULTILINE)
STATED: dict[tuple[str, str], float | None] = {
    (method, preset): None if error == "-" else 0.0 if error == "exact" else float(error)
    for method, preset, _, error in _ROW.findall(PAGE)
}
"""By method and preset the largest relative error that the page states; None: nothing to compare with."""


def distance(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest difference over all tensors, as a share of the largest entry."""
    assert found.keys() == wanted.keys()
    largest = max(float(np.abs(own).max()) for own in wanted.values())
    assert largest > 0
    return max(float(np.abs(np.asarray(found[name], float) - wanted[name]).max()) for name in wanted) / largest


def check(method: str, preset: str, error: float) -> None:
    """Fail where the error is more than the page states; another processor rounds a little otherwise."""
    stated = STATED[method, preset]
    assert stated is not None
    assert error <= max(3 * stated, 1e-6), (
        f"{method}, {preset}: docs/presets.md states {stated}, here it is {error:.1e}"
    )
