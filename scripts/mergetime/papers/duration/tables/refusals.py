"""Table 2: refusal rates."""

import numpy as np
import pandas as pd

from mergetime.papers.duration.names import SAFETY
from mergetime.publishing import scores as sc
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.table import ERROR_NOTE, Table, cells, grid, table

_BASE_NOTE = "The base has no training duration; its rate stands in every column."


def table_2(inputs: Inputs) -> Table:
    """Refusal rate in percent per duration, one panel per base (the form of table 2; the best of a row is bold).

    Beside the paper's rows, one for the base and one for its safety expert.

    Args:
        inputs: results, and the pool where the study has several at one duration.

    Raises:
        ValueError: in one line, if safety was not measured, a base has no merged models, or scores are incomplete.
    """
    scores = sc.domain_scores(inputs.results)
    scores = scores[scores["domain"] == SAFETY]
    if scores.empty:
        raise ValueError(f"table_2 reports the domain {SAFETY}, which these results do not measure; see suites.test")
    panels = {base: _refusal_rows(scores, base, inputs) for base in sc.bases(scores)}
    columns = sc.durations(pd.concat([frame for _, frame in panels.values()]))
    parts = [
        cells(grid(frame.assign(column=frame["duration"]), rows, columns), base)
        for base, (rows, frame) in ((base, _repeat_base(panel, columns)) for base, panel in panels.items())
    ]
    caption = "Refusal rate (%) across training durations and bases. Best per row in bold."
    return table("table_2", caption, pd.concat(parts), [ERROR_NOTE, _BASE_NOTE])


def _refusal_rows(scores: pd.DataFrame, base: str, inputs: Inputs) -> tuple[list[str], pd.DataFrame]:
    """The row labels of one base and its rates; the base's own row has no duration yet."""
    merged = sc.over_seeds(sc.merged_scores(scores, base, inputs.pool))
    labels = sc.labels(sc.methods(merged, inputs.names), inputs.names)
    pairs = zip(merged["method"], merged["space"], strict=True)
    merged = _with_best(merged.assign(row=[labels[pair] for pair in pairs]))
    expert = _with_best(sc.over_seeds(sc.own_expert_scores(scores, base, inputs.pool)).assign(row=f"Expert ({SAFETY})"))
    untrained = sc.over_seeds(sc.base_scores(scores, base)).assign(row="Base (no FT)", best=False)
    frames = [frame for frame in (untrained, expert, merged) if not frame.empty]
    frame = pd.concat(frames, ignore_index=True)
    for name in ("duration", "multiple"):
        if name not in frame:
            frame[name] = None
    return ["Base (no FT)", f"Expert ({SAFETY})", *labels.values()], frame


def _with_best(frame: pd.DataFrame) -> pd.DataFrame:
    highest = frame.groupby("row")["value"].transform("max")
    return frame.assign(best=np.isclose(frame["value"], highest, rtol=0, atol=1e-9))


def _repeat_base(panel: tuple[list[str], pd.DataFrame], columns: list[str]) -> tuple[list[str], pd.DataFrame]:
    """The panel with the base's rate under every duration."""
    rows, frame = panel
    base = frame[frame["duration"].isna()]
    repeated = [base.assign(duration=duration) for duration in columns]
    return rows, pd.concat([*repeated, frame[frame["duration"].notna()]], ignore_index=True)
