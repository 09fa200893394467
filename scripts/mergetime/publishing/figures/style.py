"""How figures look: one colour and one marker per method in all of them, safe for colour-blind readers and in print."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergetime.publishing.names import Names
from mergetime.publishing.scores import MethodKey, families, family_label, labels

RC: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 7.5,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "font.family": "DejaVu Sans",
    "figure.dpi": 100,
}
UNDERTRAINED, OVERTRAINED = "#009E73", "#D55E00"
"""Green and red of the Okabe-Ito palette, for the shading of the two regimes."""
INK = "#333333"
"""For what is no method: references, samples in legends."""

# Okabe and Ito's palette. Green stands late and yellow last: one is close to the shading, the other faint on paper.
_FIXED = {
    "simple_average": ("#D55E00", "o"),
    "task_arithmetic": ("#E69F00", "s"),
    "ties": ("#0072B2", "^"),
    "dare_ties": ("#56B4E9", "D"),
    "greedy_soup": ("#CC79A7", "v"),
}
_OTHERS = [("#009E73", "P"), ("#000000", "X"), ("#F0E442", "*"), ("#0072B2", "<"), ("#D55E00", ">"), ("#CC79A7", "h")]
SERIES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#000000", "P")]
"""For lines that are no methods, such as bases, in turn."""

Dash = Literal["-", ":", "-.", "--"] | tuple[float, tuple[float, ...]]
ADAPTER: Dash = (0, (3, 1.5))
"""Of a method in adapter space, where the study has it in both."""


@dataclass(frozen=True)
class Style:
    """How one method is drawn; ``family`` is what its spaces are called together, where there are two."""

    label: str
    color: str
    marker: str
    dash: Dash
    family: str


def styles(algorithms: Mapping[MethodKey, str], names: Names) -> dict[MethodKey, Style]:
    """The style of each method of a study, given its algorithm.

    The best known methods have fixed ones; others take the next free ones in the order of their ids, the same in every
    figure of the study. The spaces of one family share colour and marker: adapter space is dashed.
    """
    family_of = families(algorithms)
    others = sorted(set(family_of.values()) - set(_FIXED))
    known = {**_FIXED, **{name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(others)}}
    looks = {}
    for (method, space), label in labels(algorithms, names).items():
        family = family_of[method, space]
        color, marker = known[family]
        has_both = len({other_space for (_, other_space), other in family_of.items() if other == family}) > 1
        dash: Dash = ADAPTER if has_both and space == "adapter" else "-"
        looks[method, space] = Style(label, color, marker, dash, family_label(family, names) if has_both else label)
    return looks


def series_style(position: int) -> tuple[str, str]:
    """Colour and marker of the line at ``position`` among those that are no methods."""
    return SERIES[position % len(SERIES)]
