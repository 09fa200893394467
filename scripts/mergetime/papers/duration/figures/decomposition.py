"""Figure 2: bias, variance and covariance against training duration."""

import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.figures import drawing
from mergetime.publishing.figures.style import series_style
from mergetime.publishing.inputs import Inputs

_TERMS = {"bias_squared": "Bias²", "variance": "Variance", "covariance": "Covariance"}
_OVER = ["experts", "examples", "seeds"]
_ALL_DOMAINS = "all"
_CAPTION = (
    "Bias, variance and covariance of the experts' probabilities of the reference responses, mean over the domains, "
    "against training duration; each line takes its expectations over another thing drawn at random."
)


def figure_2(inputs: Inputs) -> drawing.Drawing:
    """The decomposition of the experts' error against duration: a row per base, a column per term (figure 2).

    The terms have scales of their own, so each has its panel. Lines: what expectations are over (experts of the pool,
    examples, seeds), as ``mergetime.analysis.bias_variance`` defines them. Bands are one standard error, as that module
    gives it; of several seeds the mean is drawn.

    Args:
        inputs: bias_variance, and the pool where the study has several at one duration.

    Returns:
        The figure, and the numbers that it draws: base, over, term, duration, multiple, value, stderr, seeds.

    Raises:
        ValueError: in one line, if nothing was measured at multiples of T*.
    """
    drawn = _terms(inputs.frame("bias_variance"), inputs.pool)
    bases = sc.bases(drawn)
    overs = [over for over in _OVER if (drawn["over"] == over).any()]
    looks = {over: series_style(_OVER.index(over)) for over in overs}
    with drawing.settings():
        handles = [drawing.line_handle(f"over {over}", color, "-", marker) for over, (color, marker) in looks.items()]
        handles += [drawing.band_handle("± 1 standard error"), *drawing.regime_handles()]
        cells = [(base, term) for base in bases for term in _TERMS]
        canvas = drawing.canvas(len(cells), len(_TERMS), 1.85, handles)
        for at, (panel, (base, term)) in enumerate(zip(canvas.panels, cells, strict=True)):
            of_panel = drawn[(drawn["base"] == base) & (drawn["term"] == term)]
            drawing.duration_axis(panel, sorted(set(drawn["multiple"])))
            for over, (color, marker) in looks.items():
                of_line = of_panel[of_panel["over"] == over]
                x, y, error = (of_line[name].tolist() for name in ("multiple", "value", "stderr"))
                drawing.line(panel, x, y, error, color, "-", marker)
            if at < len(_TERMS):
                panel.set_title(_TERMS[term])
            if term == next(iter(_TERMS)):
                panel.set_ylabel(f"{base}\nsquared probability")
        caption = f"{_CAPTION} Bands are ± 1 standard error over the domains. {drawing.REGIMES_NOTE}"
        return drawing.Drawing(drawing.finish(canvas), drawn, caption)


def _terms(frame: pd.DataFrame, pool: str | None) -> pd.DataFrame:
    """The terms over all domains, seeds averaged."""
    rows = frame[(frame["domain"] == _ALL_DOMAINS) & frame["method"].isna() & frame["term"].isin(list(_TERMS))]
    rows = sc.shown(rows, pool)
    rows = rows[rows["multiple"].notna()]
    if rows.empty:
        raise ValueError("figure_2 needs terms of pools whose experts share a multiple of T*; there are none")
    groups = rows.groupby(["base", "over", "term", "duration", "multiple"], sort=False)
    means = groups.agg(value=("value", "mean"), stderr=("stderr", "mean"), seeds=("seed", "nunique")).reset_index()
    return means.sort_values("multiple", kind="stable", ignore_index=True)
