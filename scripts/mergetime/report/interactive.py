"""The views that answer to a choice: plotly's own menus change what is drawn, so that the page needs no script of ours.

A menu sets properties of all lines at once and knows nothing of other menus. So that every combination works, each sets
others: the base which lines are there (``visible``), the second menu how lines look (``opacity`` and what goes
with it), the third their numbers (``x``, ``y``).
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mergetime.publishing import scores as sc
from mergetime.publishing.figures import lines
from mergetime.publishing.figures.style import INK, OVERTRAINED, UNDERTRAINED, series_style, styles
from mergetime.publishing.names import Names

_SYMBOLS = {
    **{"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"},
    **{"X": "x", "*": "star", "<": "triangle-left", ">": "triangle-right", "h": "hexagon"},
}
"""Plotly's names of matplotlib's markers."""
_REFERENCES = {"base": ("Base (no fine-tuning)", "dot"), "expert": ("Experts at T*", "dashdot")}
_ROW = 38
"""Pixels from one menu to the next: they stand below each other, which a phone's width takes."""
_LOSSES = {
    "Validation loss, over its lowest": "ratio",
    "Validation loss": "validation_loss",
    "Training loss": "train_loss",
}
_LOSS_TITLES = {"ratio": "Validation loss / its lowest"}
_NATS = "{} (nats per response token)"
_TOLD = (
    "<b>%{fullData.name}</b>, %{x}x T*<br>%{y:.1f} %<br>95 % interval %{customdata[0]:.1f} to %{customdata[1]:.1f}<br>"
    "n = %{customdata[2]} items%{customdata[3]}<extra></extra>"
)
_TOLD_OF_REFERENCE = (
    "<b>%{fullData.name}</b><br>%{y:.1f} %<br>95 % interval %{customdata[0]:.1f} to %{customdata[1]:.1f}<br>"
    "n = %{customdata[2]} items<extra></extra>"
)
_TOLD_OF_LOSS = (
    "<b>%{fullData.name}</b>, step %{customdata[0]:.0f} (%{x:.2f}x T*)<br>"
    "loss %{customdata[1]:.4f}, T* at step %{customdata[2]:.0f}<extra></extra>"
)
"""What a marker tells when it is pointed at."""
CONFIG = {"displayModeBar": False, "responsive": True}

_Button = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""What a choice is called, and the properties of lines and of the layout that it sets."""


@dataclass(frozen=True)
class _Line:
    """One line: what the first two menus choose it by (None: always shown), its looks, its points by the third."""

    base: str
    choice: str | None
    look: Mapping[str, Any]
    points: Mapping[str, Mapping[str, Any]]


def quality(results: pd.DataFrame, pool: str | None, names: Names) -> go.Figure:
    """Scores of merged models against duration, to be chosen by base, method and domain.

    Args:
        results: rows of results.parquet.
        pool: which pool, where the study merges several at one duration.
        names: what domains and methods are called.

    Raises:
        ValueError: in one line, where scores are incomplete.
    """
    scores = sc.domain_scores(results)
    bases = sc.bases(scores)
    drawn = pd.concat([lines.lines(scores, base, pool, "the report", names) for base in bases], ignore_index=True)
    drawn["items"] = _items(results, drawn, names)
    merged = drawn[drawn["series"] == "merged"]
    multiples = sorted(set(merged["multiple"]))
    domains = [sc.AVERAGE, *(domain for domain in sc.domains(merged, names) if domain != sc.AVERAGE)]
    traces = []
    for base in bases:
        of_base = drawn[drawn["base"] == base]
        for series, (label, dash) in _REFERENCES.items():
            rows = of_base[of_base["series"] == series]
            line = {"color": INK, "dash": dash, "width": 1.5}
            look = {"name": label, "mode": "lines", "line": line, "hovertemplate": _TOLD_OF_REFERENCE}
            traces.append(_Line(base, None, look, {domain: _reference(rows, domain, multiples) for domain in domains}))
        for pair, style in styles(sc.methods(merged, names), names).items():
            rows = of_base[(of_base["method"] == pair[0]) & (of_base["space"] == pair[1])]
            dash = "solid" if style.dash == "-" else "dash"
            look = {
                "name": html.escape(style.label),
                "mode": "lines+markers",
                "line": {"color": style.color, "dash": dash, "width": 2},
                "marker": {"size": 8, "color": style.color},
                "hovertemplate": _TOLD,
            }
            symbol = _SYMBOLS[style.marker]
            traces.append(_Line(base, style.label, look, {domain: _merged(rows, domain, symbol) for domain in domains}))
    labels = {domain: _label(domain, names) for domain in domains}
    titles = {
        domain: f"{'Refusals' if domain in names.refusals else 'Accuracy'}, {label.lower()} (%)"
        for domain, label in labels.items()
    }
    figure = _figure(traces, "Method", "Domain", {label: domain for domain, label in labels.items()}, titles)
    figure.update_xaxes(
        type="log",
        tickvals=multiples,
        ticktext=[f"{multiple:g}" for multiple in multiples],
        range=[math.log10(min(multiples) / 1.14), math.log10(max(multiples) * 1.14)],
    )
    _shade(figure, min(multiples) / 1.14, max(multiples) * 1.14)
    return figure


def losses(curves: pd.DataFrame, names: Names) -> go.Figure:
    """Loss against training, every domain a line, to be chosen by base, domain and kind of loss.

    Of several recipes or seeds, each pair has a dash of its own.

    Args:
        curves: rows of curves.parquet.
        names: what domains are called.
    """
    domains = sc.domains(curves, names)
    several = {name: curves[name].nunique() > 1 for name in ("recipe", "seed")}
    runs = list(dict.fromkeys(zip(curves["recipe"], curves["seed"], strict=True)))
    dashes = ["solid", "dash", "dot", "dashdot", "longdash"]
    traces = []
    for (base, domain, recipe, seed), curve in curves.groupby(["base", "domain", "recipe", "seed"], sort=False):
        color, marker = series_style(domains.index(str(domain)))
        label = names.header(str(domain))
        label += (f", {recipe}" if several["recipe"] else "") + (f", seed {seed}" if several["seed"] else "")
        look = {
            "name": html.escape(label),
            "mode": "lines+markers",
            "line": {"color": color, "width": 2, "dash": dashes[runs.index((recipe, seed)) % len(dashes)]},
            "marker": {"size": 5, "symbol": _SYMBOLS[marker]},
            "hovertemplate": _TOLD_OF_LOSS,
        }
        points = {kind: _loss(curve, kind) for kind in _LOSSES.values()}
        traces.append(_Line(str(base), names.header(str(domain)), look, points))
    titles = {kind: _LOSS_TITLES.get(kind, _NATS.format(label)) for label, kind in _LOSSES.items()}
    figure = _figure(traces, "Domain", "Loss", _LOSSES, titles)
    end = float((curves["step"] / curves["t_star"]).max())
    figure.update_xaxes(range=[-0.02 * end, 1.02 * end])
    # What is of interest is close to the lowest loss, far below that of an untrained expert.
    figure.update_yaxes(type="log", dtick="D2", tickformat="~g")
    _shade(figure, -0.02 * end, 1.02 * end)
    return figure


def _figure(
    drawn: Sequence[_Line], second: str, third: str, kinds: Mapping[str, str], titles: Mapping[str, str]
) -> go.Figure:
    """The lines under three menus; ``kinds`` is what the third offers, with the keys of the lines' points."""
    bases = list(dict.fromkeys(line.base for line in drawn))
    choices = list(dict.fromkeys(line.choice for line in drawn if line.choice is not None))
    first = next(iter(kinds.values()))
    figure = go.Figure()
    for line in drawn:
        figure.add_scatter(
            **line.look, visible=line.base == bases[0], error_y={"visible": False, "thickness": 1, "width": 4}
        )
        for name, value in line.points[first].items():
            figure.data[-1][name] = value
    menus: list[list[_Button]] = [
        [("Base: " + base, {"visible": [line.base == base for line in drawn]}, {}) for base in bases],
        [
            (f"{second}: all", _chosen(drawn, [True] * len(drawn), bars=False), {}),
            *(
                (
                    f"{second}: {choice}",
                    _chosen(drawn, [line.choice in (None, choice) for line in drawn], bars=True),
                    {},
                )
                for choice in choices
            ),
        ],
        [
            (
                f"{third}: {label}",
                {name: [line.points[kind][name] for line in drawn] for name in drawn[0].points[kind]},
                {"yaxis.title.text": html.escape(titles[kind])},
            )
            for label, kind in kinds.items()
        ],
    ]
    figure.update_layout(
        template="plotly_white",
        height=640,
        margin={"t": _ROW * len(menus) + 12, "l": 56, "r": 12, "b": 40},
        updatemenus=[_menu(place, len(menus), buttons) for place, buttons in enumerate(menus)],
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        dragmode=False,
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
    )
    figure.update_xaxes(title="Training duration (multiples of T*)", title_standoff=6, showgrid=False, fixedrange=True)
    figure.update_yaxes(title=html.escape(titles[first]), title_standoff=6, fixedrange=True)
    return figure


def _chosen(drawn: Sequence[_Line], shown: Sequence[bool], *, bars: bool) -> dict[str, Any]:
    """What hides the lines that are not shown, whatever their base.

    Plotly reads ``hoverinfo`` of lines without a template alone; both keep a line that nobody sees from answering.
    """
    return {
        "opacity": [1 if is_shown else 0 for is_shown in shown],
        "hovertemplate": [
            line.look["hovertemplate"] if is_shown else "" for line, is_shown in zip(drawn, shown, strict=True)
        ],
        "hoverinfo": ["all" if is_shown else "skip" for is_shown in shown],
        "showlegend": list(shown),
        "error_y.visible": [is_shown and bars for is_shown in shown],
    }


def _menu(place: int, count: int, buttons: Sequence[_Button]) -> dict[str, Any]:
    return {
        "buttons": [
            {"label": html.escape(label), "method": "update", "args": [lines, layout]}
            for label, lines, layout in buttons
        ],
        **{"type": "dropdown", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "showactive": True},
        "pad": {"b": _ROW * (count - 1 - place) + 8},
        "bgcolor": "#ffffff",
    }


def _merged(rows: pd.DataFrame, domain: str, symbol: str) -> dict[str, Any]:
    points = rows[rows["domain"] == domain]
    low, high = points["low"], points["high"]
    details = [
        (down, up, items, _details(row))
        for down, up, items, (_, row) in zip(low, high, points["items"], points.iterrows(), strict=True)
    ]
    return {
        "x": points["multiple"].tolist(),
        "y": points["value"].tolist(),
        "error_y.array": (high - points["value"]).tolist(),
        "error_y.arrayminus": (points["value"] - low).tolist(),
        "marker.symbol": [f"{symbol}-open" if flag else symbol for flag in points["boundary"]],
        "customdata": details,
    }


def _details(row: pd.Series) -> str:
    seeds = f"<br>mean of {row['seeds']} seeds, s.d. {row['seed_spread']:.1f}" if row["seeds"] > 1 else ""
    return seeds + ("<br>rests on a T* at the boundary" if row["boundary"] else "")


def _reference(rows: pd.DataFrame, domain: str, multiples: Sequence[float]) -> dict[str, Any]:
    """A horizontal line over all durations, with the same properties as those of merged models."""
    reference = rows[rows["domain"] == domain].head(1)
    value, *details = (reference[name].item() if len(reference) else None for name in ("value", "low", "high", "items"))
    return {
        "x": list(multiples),
        "y": [value] * len(multiples),
        "error_y.array": [],
        "error_y.arrayminus": [],
        "marker.symbol": "circle",
        "customdata": [tuple(details)] * len(multiples),
    }


def _loss(curve: pd.DataFrame, kind: str) -> dict[str, Any]:
    name = "validation_loss" if kind == "ratio" else kind
    points = curve.dropna(subset=[name]).sort_values("step")
    value = points[name] / points[name].min() if kind == "ratio" else points[name]
    return {
        "x": (points["step"] / points["t_star"]).tolist(),
        "y": value.tolist(),
        "customdata": points[["step", name, "t_star"]].to_numpy().tolist(),
    }


def _items(results: pd.DataFrame, drawn: pd.DataFrame, names: Names) -> list[int]:
    """The number of test items behind each row: a domain's benchmarks together, an average's domains together."""
    rows = sc.test_rows(results)
    by_benchmark = rows.groupby(["base", "domain", "benchmark"])["items"].max()
    counts = by_benchmark.groupby(["base", "domain"]).sum()
    accuracy = counts.drop(list(names.refusals), level="domain", errors="ignore").groupby("base").sum()
    return [
        int(accuracy[base] if domain == sc.AVERAGE else counts[base, domain])
        for base, domain in zip(drawn["base"], drawn["domain"], strict=True)
    ]


def _shade(figure: go.Figure, left: float, right: float) -> None:
    """The two regimes, as in the figures."""
    for start, end, color in ((left, sc.T_STAR, UNDERTRAINED), (sc.T_STAR, right, OVERTRAINED)):
        if start < end:
            figure.add_shape(
                type="rect", x0=start, x1=end, y0=0, y1=1, yref="paper",
                fillcolor=color, opacity=0.07, line_width=0, layer="below",
            )  # fmt: skip


def _label(domain: str, names: Names) -> str:
    return "average" if domain == sc.AVERAGE else names.header(domain)
