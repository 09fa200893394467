"""Figure 3: loss barriers between experts against training duration."""

import pandas as pd

from mergetime.analysis.barriers import hump_note, without_hump
from mergetime.publishing import scores as sc
from mergetime.publishing.figures import drawing
from mergetime.publishing.figures.style import ADAPTER, series_style
from mergetime.publishing.inputs import Inputs

_ALL_DOMAINS = "all"
_CAPTION = (
    "Mean loss barrier on the straight path between two experts (highest loss on it less the mean loss of its ends, on "
    "both experts' validation examples), against training duration. Bands are ± 1 standard deviation over pairs of "
    "experts, not below 0, which no barrier is."
)
_ASIDE = 1.05
"""The factor that adapter space is drawn to the right by: barriers are the same in both where no path has a hump."""
_ASIDE_NOTE = "Adapter space stands a little to the right."


def figure_3(inputs: Inputs) -> drawing.Drawing:
    """Mean barrier over the pairs of experts against duration, one line per base (figure 3 of the paper).

    Nats per response token. Bands are one standard deviation over pairs, of several seeds together. Dashed: the path is
    in the LoRA factors (adapter space) instead of in the weights.

    Args:
        inputs: barriers, and the pool where the study has several at one duration.

    Returns:
        The figure, and the numbers that it draws: base, space, duration, multiple, barrier, spread, lowest, highest,
        pairs, without_hump (how many of these have their highest loss at an end), seeds.

    Raises:
        ValueError: in one line, if nothing was measured at multiples of T*.
    """
    drawn = _means(inputs.frame("barriers"), inputs.pool)
    bases = sc.bases(drawn)
    spaces = [space for space in ("delta", "adapter") if (drawn["space"] == space).any()]
    dashes = {space: ADAPTER if space == "adapter" and len(spaces) > 1 else "-" for space in spaces}
    looks = {base: series_style(position) for position, base in enumerate(bases)}
    with drawing.settings():
        handles = [drawing.line_handle(base, color, "-", marker) for base, (color, marker) in looks.items()]
        if len(spaces) > 1:
            handles += [drawing.line_handle(f"in {space} space", dash=dash) for space, dash in dashes.items()]
        handles += [drawing.band_handle("± 1 s.d. over pairs"), *drawing.regime_handles()]
        canvas = drawing.canvas(1, 1, 2.2, handles)
        panel = canvas.panels[0]
        drawing.duration_axis(panel, sorted(set(drawn["multiple"])))
        for (base, space), rows in drawn.groupby(["base", "space"], sort=False):
            color, marker = looks[str(base)]
            aside = _ASIDE if space == "adapter" and len(spaces) > 1 else 1.0
            x, y, spread = (column.tolist() for column in (rows["multiple"] * aside, rows["barrier"], rows["spread"]))
            drawing.line(panel, x, y, spread, color, dashes[str(space)], marker, least=0.0)
        panel.set_ylabel("Loss barrier (nats per token)")
        notes = [_CAPTION, *_without_hump(drawn), *([_ASIDE_NOTE] if len(spaces) > 1 else []), drawing.REGIMES_NOTE]
        return drawing.Drawing(drawing.finish(canvas), drawn, " ".join(notes))


def _means(frame: pd.DataFrame, pool: str | None) -> pd.DataFrame:
    """Mean and spread over the pairs of a pool."""
    rows = sc.shown(frame[frame["first"].notna() & (frame["domain"] == _ALL_DOMAINS)], pool)
    rows = rows[rows["multiple"].notna()]
    if rows.empty:
        raise ValueError("figure_3 needs barriers of pools whose experts share a multiple of T*; there are none")
    groups = rows.assign(at_end=without_hump(rows)).groupby(["base", "space", "duration", "multiple"], sort=False)
    means = groups["barrier"].agg(barrier="mean", spread="std", lowest="min", highest="max").reset_index()
    means["pairs"] = groups.size().to_numpy()
    means["without_hump"] = groups["at_end"].sum().to_numpy()
    means["seeds"] = groups["seed"].nunique().to_numpy()
    return means.sort_values("multiple", kind="stable", ignore_index=True)


def _without_hump(drawn: pd.DataFrame) -> list[str]:
    """What the caption says of paths whose loss is highest at an end; nothing if there are none."""
    note = hump_note(int(drawn["without_hump"].sum()), int(drawn["pairs"].sum()))
    return [f"{note}."] if note else []
