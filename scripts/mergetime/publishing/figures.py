"""Figures about training duration, and the names that they can be asked for by."""

from collections.abc import Callable

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mergetime.publishing import scores as sc
from mergetime.publishing.style import OVERFITTED, RC, UNDERTRAINED, Dash, Style, styles

_PANEL_WIDTH, _HEIGHT, _LEGEND_WIDTH = 3.3, 2.9, 1.75
_REFERENCES: dict[str, tuple[str, Dash]] = {"base": ("Base (no FT)", ":"), "expert": ("Experts @ T*", "-.")}


def figure_1(results: pd.DataFrame, pool: str | None = None) -> tuple[Figure, pd.DataFrame]:
    """Average accuracy of merged models against training duration, one panel per base (figure 1 of the paper).

    The average is over the accuracy domains, in percent. Bands are one standard error over test items; with several
    seeds, bars are one standard deviation over seeds. Horizontal lines: the base, and the mean of the experts at T*,
    each on its own domain. A hollow marker rests on a T* that is no interior minimum.

    Args:
        results: columns ``mergetime.results.RESULTS``.
        pool: which pool, as the config names it; needed where the study has several at one duration.

    Returns:
        The figure, and the numbers that it draws: base, series (base, expert or merged), method, space, duration,
        multiple, value, stderr, seed_spread, seeds, boundary.

    Raises:
        ValueError: in one line, if no duration of a base is a multiple of T*, or scores are incomplete.
    """
    scores = sc.domain_scores(results)
    bases = sc.bases(scores)
    drawn = pd.concat([_averages(scores, base, pool) for base in bases], ignore_index=True)
    merged = drawn[drawn["series"] == "merged"]
    looks = styles(sc.methods(merged))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(_PANEL_WIDTH * len(bases) + _LEGEND_WIDTH, _HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(bases), squeeze=False)[0]
        for panel, base in zip(panels, bases, strict=True):
            _draw(panel, base, drawn[drawn["base"] == base], looks)
        panels[0].set_ylabel("Average accuracy (%)")
        figure.legend(handles=_legend(drawn, looks), loc="outside right center", frameon=False, handlelength=2.6)
        # Texts are laid out now, while these settings hold.
        figure.draw_without_rendering()
    return figure, drawn


def _averages(scores: pd.DataFrame, base: str, pool: str | None) -> pd.DataFrame:
    """The averages over accuracy domains of the base, of the experts at T* and of every merged model."""
    mine = scores[scores["base"] == base]
    domains = sc.accuracy_domains(mine)
    merged = sc.merged_scores(scores, base, pool)
    merged = merged[merged["multiple"].notna()]
    if merged.empty:
        raise ValueError(f"figure_1 needs durations that are multiples of T*; those of {base} are step counts")
    parts = {
        "base": sc.base_scores(scores, base),
        "expert": sc.at_t_star(sc.own_expert_scores(scores, base)),
        "merged": merged,
    }
    found = []
    for series, part in parts.items():
        means = sc.over_seeds(sc.with_average(part, domains))
        found.append(means[means["domain"] == sc.AVERAGE].assign(base=base, series=series))
    if found[-1].empty:
        raise ValueError(f"no merged model of {base} was measured in all of {', '.join(domains)}, which averages need")
    columns = ["base", "series", "method", "space", "duration", "multiple"]
    columns += ["value", "stderr", "seed_spread", "seeds", "boundary"]
    frame = pd.concat([part for part in found if not part.empty], ignore_index=True).reindex(columns=columns)
    return frame.sort_values(["series", "multiple"], kind="stable", ignore_index=True)


def _draw(panel: Axes, base: str, drawn: pd.DataFrame, looks: dict[tuple[str, str], Style]) -> None:
    merged = drawn[drawn["series"] == "merged"]
    multiples = sorted(set(merged["multiple"]))
    panel.set_xscale("log")
    left, right = multiples[0] / 1.12, multiples[-1] * 1.12
    panel.set_xlim(left, right)
    panel.axvspan(left, max(left, sc.T_STAR), color=UNDERTRAINED, alpha=0.07, linewidth=0, zorder=0)
    panel.axvspan(min(right, sc.T_STAR), right, color=OVERFITTED, alpha=0.07, linewidth=0, zorder=0)
    panel.set_xticks(multiples, [f"{multiple:g}" for multiple in multiples])
    panel.set_xticks([], minor=True)
    panel.grid(axis="y", color="0.85", linewidth=0.5, zorder=0)
    panel.set_axisbelow(True)
    for series, (_, dash) in _REFERENCES.items():
        for value in drawn.loc[drawn["series"] == series, "value"]:
            panel.axhline(value, color="0.25", linestyle=dash, linewidth=1.1, zorder=1.5)
    for pair, look in looks.items():
        line = merged[(merged["method"] == pair[0]) & (merged["space"] == pair[1])]
        if not line.empty:
            _draw_method(panel, line, look)
    panel.set_title(base)
    panel.set_xlabel("Training duration (multiples of T*)")


def _draw_method(panel: Axes, line: pd.DataFrame, look: Style) -> None:
    x, y, error = (line[name].to_numpy(dtype=float) for name in ("multiple", "value", "stderr"))
    panel.fill_between(x, y - error, y + error, color=look.color, alpha=0.15, linewidth=0, zorder=2)
    panel.plot(x, y, color=look.color, linestyle=look.dash, linewidth=1.5, zorder=3)
    if (line["seeds"] > 1).any():
        spread = line["seed_spread"].to_numpy(dtype=float)
        panel.errorbar(x, y, yerr=spread, fmt="none", ecolor=look.color, elinewidth=0.8, capsize=2, zorder=3)
    faces = ["white" if boundary else look.color for boundary in line["boundary"]]
    panel.scatter(x, y, s=22, marker=look.marker, c=faces, edgecolors=look.color, linewidths=1.1, zorder=4)


def _legend(drawn: pd.DataFrame, looks: dict[tuple[str, str], Style]) -> list[Line2D | Patch]:
    """Methods first, then reference lines, then what bands, bars, shading and hollow markers mean."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=look.color, linestyle=look.dash, marker=look.marker, markersize=5, label=look.label)
        for look in looks.values()
    ]
    for series, (label, dash) in _REFERENCES.items():
        if (drawn["series"] == series).any():
            handles.append(Line2D([], [], color="0.25", linestyle=dash, linewidth=1.1, label=label))
    handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± 1 standard error"))
    merged = drawn[drawn["series"] == "merged"]
    if (merged["seeds"] > 1).any():
        handles.append(Line2D([], [], color="0.4", marker="|", markersize=9, linestyle="", label="± 1 s.d. over seeds"))
    if merged["boundary"].any():
        hollow = Line2D([], [], marker="o", linestyle="", markersize=5, label="T* at boundary")
        hollow.set_markerfacecolor("white")
        hollow.set_markeredgecolor("0.4")
        handles.append(hollow)
    handles.append(Patch(color=UNDERTRAINED, alpha=0.2, linewidth=0, label="undertrained (< T*)"))
    handles.append(Patch(color=OVERFITTED, alpha=0.2, linewidth=0, label="overfitted (> T*)"))
    return handles


FIGURES: dict[str, Callable[[pd.DataFrame, str | None], tuple[Figure, pd.DataFrame]]] = {"figure_1": figure_1}
"""The figures that can be asked for by name. A new figure is one function and one entry here."""
