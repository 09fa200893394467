"""Scores of merged models against duration: the numbers of such figures, and their panels."""

import pandas as pd
from matplotlib.axes import Axes

from mergetime.publishing import scores as sc
from mergetime.publishing.figures import drawing
from mergetime.publishing.figures.style import ADAPTER, INK, Dash, Style
from mergetime.publishing.names import Names

COLUMNS = ["base", "domain", "series", "method", "space", "duration", "multiple"]
COLUMNS += ["value", "stderr", "low", "high", "seed_spread", "seeds", "boundary", "algorithm"]
_REFERENCES: dict[str, tuple[str, Dash]] = {"base": ("Base (no FT)", ":"), "expert": ("Experts @ T*", "-.")}
_FAINTEST = 0.08
"""Opacity of bands where there are many: fainter ones would not print."""
_LEAST_SPAN = 5.0
"""Percentage points that an axis of scores shows at least."""
BANDS_NOTE = "Bands are ± 1 standard error over test items"
REFERENCES_NOTE = "Horizontal lines: the base, and the experts at T*, each on its own domain."


def lines(scores: pd.DataFrame, base: str, pool: str | None, name: str, names: Names) -> pd.DataFrame:
    """The scores of a base, of its experts at T* on their own domains, and of its merged models; in percent.

    Args:
        scores: as ``mergetime.publishing.scores.domain_scores`` gives them.
        base: the base's id.
        pool: which pool, as the config names it; None where there is one.
        name: the figure's, for messages.
        names: what domains and methods are called.

    Returns:
        Columns :data:`COLUMNS`, series being base, expert or merged; ``average`` among the domains is the mean over the
        accuracy domains.

    Raises:
        ValueError: in one line, if no duration of the base is a multiple of T*, or there is no average to draw.
    """
    of_base = scores[scores["base"] == base]
    domains = sc.accuracy_domains(of_base, names)
    merged = sc.merged_scores(scores, base, pool)
    merged = merged[merged["multiple"].notna()]
    if merged.empty:
        raise ValueError(f"{name} needs durations that are multiples of T*; those of {base} are step counts")
    parts = {
        "base": sc.base_scores(scores, base),
        "expert": sc.at_t_star(sc.own_expert_scores(scores, base, pool)),
        "merged": merged,
    }
    frames = []
    for series, part in parts.items():
        whole = pd.concat([sc.with_average(part, domains), part[~part["domain"].isin(domains)]])
        frames.append(sc.over_seeds(whole).assign(base=base, series=series))
    if not (frames[-1]["domain"] == sc.AVERAGE).any():
        raise ValueError(f"no merged model of {base} was measured in all of {', '.join(domains)}, which averages need")
    frame = pd.concat([part for part in frames if not part.empty], ignore_index=True).reindex(columns=COLUMNS)
    return frame.sort_values(["domain", "series", "multiple"], kind="stable", ignore_index=True)


def draw(panel: Axes, drawn: pd.DataFrame, looks: dict[tuple[str, str], Style]) -> None:
    """One panel: the rows of one base and domain."""
    merged = drawn[drawn["series"] == "merged"]
    drawing.duration_axis(panel, sorted(set(merged["multiple"])))
    for series, (_, dash) in _REFERENCES.items():
        for value in drawn.loc[drawn["series"] == series, "value"]:
            panel.axhline(value, color=INK, linestyle=dash, linewidth=1.0, zorder=1.5)
    present = set(zip(merged["method"], merged["space"], strict=True))
    for pair in (pair for pair in looks if pair in present):
        of_method = merged[(merged["method"] == pair[0]) & (merged["space"] == pair[1])]
        _draw_method(panel, of_method, looks[pair], max(_FAINTEST, drawing.BAND * min(1.0, 4 / len(present))))
    _percent_axis(panel)


def _percent_axis(panel: Axes) -> None:
    """At least ``_LEAST_SPAN`` points high, so that scores which hardly differ look so, and within 0 to 100 %."""
    low, high = panel.dataLim.intervaly
    if high - low < _LEAST_SPAN:
        bottom = min(max((low + high - _LEAST_SPAN) / 2, 0.0), 100.0 - _LEAST_SPAN)
        margin = 0.05 * _LEAST_SPAN
        panel.set_ylim(bottom - margin, bottom + _LEAST_SPAN + margin)


def handles(drawn: pd.DataFrame, looks: dict[tuple[str, str], Style]) -> list[drawing.Handle]:
    """The legend: families of methods, spaces, references, then what bands, bars, markers and shading mean."""
    first = {look.family: look for look in reversed(looks.values())}
    families = {look.family: first[look.family] for look in looks.values()}
    entries = [drawing.line_handle(name, look.color, "-", look.marker) for name, look in families.items()]
    if any(look.dash == ADAPTER for look in looks.values()):
        entries += [drawing.line_handle("in delta space"), drawing.line_handle("in adapter space", dash=ADAPTER)]
    for series, (label, dash) in _REFERENCES.items():
        if (drawn["series"] == series).any():
            entries.append(drawing.line_handle(label, dash=dash))
    entries.append(drawing.band_handle("± 1 standard error"))
    merged = drawn[drawn["series"] == "merged"]
    if (merged["seeds"] > 1).any():
        entries.append(drawing.bar_handle("± 1 s.d. over seeds"))
    if merged["boundary"].any():
        entries.append(drawing.line_handle("T* at boundary", marker="o", hollow=True))
    return entries + drawing.regime_handles()


def caption(start: str, drawn: pd.DataFrame) -> str:
    """``start``, and what everything in the panels means."""
    merged = drawn[drawn["series"] == "merged"]
    seeds = int(merged["seeds"].max())
    bands = f"{BANDS_NOTE}; bars are ± 1 standard deviation over {seeds} seeds." if seeds > 1 else f"{BANDS_NOTE}."
    parts = [start, bands, REFERENCES_NOTE, drawing.REGIMES_NOTE]
    return " ".join([*parts, *([drawing.BOUNDARY_NOTE] if merged["boundary"].any() else [])])


def _draw_method(panel: Axes, rows: pd.DataFrame, look: Style, band: float) -> None:
    x, y, error = (rows[name].tolist() for name in ("multiple", "value", "stderr"))
    drawing.line(panel, x, y, error, look.color, look.dash, look.marker, rows["boundary"].tolist(), band)
    if (rows["seeds"] > 1).any():
        spread = rows["seed_spread"].to_numpy(dtype=float)
        panel.errorbar(x, y, yerr=spread, fmt="none", ecolor=look.color, elinewidth=0.8, capsize=2, zorder=3)
