"""What all figures share: their size in print, the axis of durations with its regimes, and the legend.

Figures are as wide as a column (3.35 inches) or as the text of two columns (6.9), so that nothing is scaled in print
and texts keep their size.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mergetime.publishing import scores as sc
from mergetime.publishing.figures.style import INK, OVERTRAINED, RC, UNDERTRAINED, Dash

COLUMN, TEXT = 3.35, 6.9
"""Widths, in inches."""
Handle = Line2D | Patch
BAND = 0.16
"""Opacity of an error band that stands alone."""
_NARROWER: list[dict[str, float]] = [{"labelrotation": 90}, {"labelsize": 5.5}]
"""What is done to labels of durations that touch, one after the other."""
REGIMES_NOTE = "Green: experts trained for less than T*; red: for longer."
BOUNDARY_NOTE = "Hollow markers rest on a T* that is no interior minimum of its validation loss."


@dataclass(frozen=True)
class Drawing:
    """A figure, the numbers that it draws, and the caption that says what they are."""

    figure: Figure
    drawn: pd.DataFrame
    caption: str


@dataclass(frozen=True)
class Canvas:
    """A figure with its legend and its panels, row by row."""

    figure: Figure
    panels: list[Axes]
    columns: int

    @property
    def leftmost(self) -> list[Axes]:
        """The first panel of every row."""
        return self.panels[:: self.columns]


def canvas(count: int, columns: int, height: float, handles: Sequence[Handle]) -> Canvas:
    """``count`` panels in rows of ``columns``, each ``height`` inches high, over a legend of as few rows as fit.

    To be called, like everything that draws, within ``matplotlib.rc_context(RC)``.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width = COLUMN if columns == 1 else TEXT
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    legend_height = _legend(figure, handles)
    figure.set_figheight(height * rows + legend_height)
    grid = figure.add_gridspec(rows, columns)
    panels = [figure.add_subplot(grid[at // columns, at % columns]) for at in range(count)]
    lowest = panels[-columns:]
    # Four labels side by side would touch: one in the middle says it for all.
    for panel in lowest if columns < 4 else [lowest[columns // 2]]:
        panel.set_xlabel("Training duration (multiples of T*)")
    return Canvas(figure, panels, columns)


def finish(unfinished: Canvas) -> Figure:
    """Lay out all texts while the settings of the fonts hold; turn or shrink those that would touch others."""
    _lay_out(unfinished.figure)
    for change in _NARROWER:
        if not any(_touch(panel) for panel in unfinished.panels):
            break
        for panel in unfinished.panels:
            panel.tick_params(axis="x", **change)
        _lay_out(unfinished.figure)
    for panel in unfinished.panels:
        fits = panel.bbox.width / max(panel.title.get_window_extent().width, 1.0)
        panel.title.set_fontsize(float(panel.title.get_fontsize()) * min(1.0, fits))
    _lay_out(unfinished.figure)
    # For good: every file that is written would be laid out anew, which takes longer than drawing it.
    unfinished.figure.set_layout_engine("none")
    return unfinished.figure


def _lay_out(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def duration_axis(panel: Axes, multiples: Sequence[float]) -> None:
    """A logarithmic axis with the study's own multiples as ticks, and the regimes left and right of T*."""
    left, right = min(multiples) / 1.14, max(multiples) * 1.14
    panel.set_xscale("log")
    panel.set_xlim(left, right)
    if left < sc.T_STAR:
        panel.axvspan(left, min(right, sc.T_STAR), color=UNDERTRAINED, alpha=0.07, linewidth=0, zorder=0)
    if right > sc.T_STAR:
        panel.axvspan(max(left, sc.T_STAR), right, color=OVERTRAINED, alpha=0.07, linewidth=0, zorder=0)
    panel.set_xticks(list(multiples), [f"{multiple:g}" for multiple in multiples])
    panel.set_xticks([], minor=True)
    panel.grid(axis="y", color="0.88", linewidth=0.5, zorder=0)
    panel.set_axisbelow(True)


def regime_handles() -> list[Handle]:
    """What the shading means."""
    return [
        Patch(color=UNDERTRAINED, alpha=0.22, linewidth=0, label="under-trained (< T*)"),
        Patch(color=OVERTRAINED, alpha=0.22, linewidth=0, label="over-trained (> T*)"),
    ]


def band_handle(label: str) -> Handle:
    """What the bands around lines are."""
    return Patch(color="0.45", alpha=0.3, linewidth=0, label=label)


def bar_handle(label: str) -> Handle:
    """What the bars at markers are."""
    return Line2D([], [], color=INK, linestyle="none", marker="|", markersize=8, label=label)


def line_handle(label: str, color: str = INK, dash: Dash = "-", marker: str = "", hollow: bool = False) -> Handle:
    """A line of the legend."""
    face = "white" if hollow else color
    return Line2D(
        [], [], color=color, linestyle=dash, linewidth=1.2, marker=marker, markersize=4.2, markerfacecolor=face,
        label=label,
    )  # fmt: skip


def line(
    panel: Axes,
    x: Sequence[float],
    y: Sequence[float],
    error: Sequence[float],
    color: str,
    dash: Dash,
    marker: str,
    hollow: Sequence[bool] = (),
    band: float = BAND,
    least: float = -np.inf,
) -> None:
    """A line with markers over its band, y +- error but not below ``least``; null errors leave the band out."""
    ys, errors = np.asarray(y, dtype=float), np.asarray(error, dtype=float)
    panel.fill_between(x, np.maximum(ys - errors, least), ys + errors, color=color, alpha=band, linewidth=0, zorder=2)
    panel.plot(x, ys, color=color, linestyle=dash, linewidth=1.2, zorder=3)
    faces = ["white" if flag else color for flag in hollow] or color
    panel.scatter(x, ys, s=15, marker=marker, c=faces, edgecolors=color, linewidths=0.9, zorder=4)


def _legend(figure: Figure, handles: Sequence[Handle]) -> float:
    """The legend below the panels, in as many columns as the width takes; its height in inches."""
    for columns in range(min(len(handles), 6), 0, -1):
        legend = figure.legend(
            handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, handlelength=2.4,
            columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2,
        )  # fmt: skip
        figure.draw_without_rendering()
        extent = legend.get_window_extent()
        if columns == 1 or extent.width <= figure.bbox.width:
            return float(extent.height / figure.dpi)
        legend.remove()
    return 0.0


def _touch(panel: Axes) -> bool:
    """Whether two labels of the axis of durations come closer than 0.015 inches."""
    boxes = [label.get_window_extent() for label in panel.get_xticklabels() if label.get_text()]
    boxes.sort(key=lambda box: box.x0)
    gap = 0.015 * panel.figure.dpi
    return any(after.x0 - before.x1 < gap for before, after in itertools.pairwise(boxes))


def settings() -> AbstractContextManager[None]:
    """The fonts and lines of all figures, for the time that one is drawn."""
    context: AbstractContextManager[None] = matplotlib.rc_context(RC)
    return context
