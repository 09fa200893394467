"""The paper's results tables: refusal rates (table 2) and accuracy per domain (tables 3-5)."""

import numpy as np
import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.best import best_per_domain, best_single_duration
from mergetime.publishing.table import ERROR_NOTE, Table, cells, grid, table

_HEADERS = {"math": "Mathematics", sc.AVERAGE: "Average"}
_BEST_NOTE = (
    "Best takes each domain at its own best duration and averages those maxima, as the paper prints it; no single "
    "model attains that average. Best single duration is one model: the duration with the highest average. Both are "
    "chosen on the test scores that they report, so both are optimistic."
)
_NO_T_STAR_NOTE = "The study keeps no expert at 1x T*, so the rows at T* are empty."
_BASE_NOTE = "The base has no training duration; its rate stands in every column."


def header(domain: str) -> str:
    """A domain's name in a column header."""
    return _HEADERS.get(domain, domain.replace("_", " ").capitalize())


def accuracy_table(results: pd.DataFrame, base: str, pool: str | None = None, name: str = "accuracy") -> Table:
    """Accuracy in percent per domain and on average, at T* and at the best duration (the form of tables 3-5).

    Rows: Base (no FT); Expert @ T*, each expert on its own domain's benchmark; then for every method the merge of the
    experts at T*, and both readings of its best duration (see :mod:`mergetime.publishing.best`). As in the paper,
    the best over durations (first reading) is bold.

    Args:
        results: columns ``mergetime.results.RESULTS``.
        base: the base's id.
        pool: which pool, as the config names it; needed where the study has several at one duration.
        name: the table's name.

    Raises:
        ValueError: in one line, if the base is unknown or has no merged models, or scores are incomplete.
    """
    known = sc.bases(results)
    if base not in known:
        raise ValueError(f"base {base} is not in the results; they hold {', '.join(known)}")
    scores = sc.domain_scores(results)
    scores = scores[scores["base"] == base]
    domains = sc.accuracy_domains(scores)
    merged = sc.merged_scores(scores, base, pool)
    blocks = [
        _row("Base (no FT)", sc.over_seeds(sc.with_average(sc.base_scores(scores, base), domains))),
        _row("Expert @ T*", _average_at_t_star(sc.own_expert_scores(scores, base), domains)),
        *_method_rows(merged, domains),
    ]
    names = [label for label, _ in blocks]
    frame = pd.concat([block for _, block in blocks], ignore_index=True)
    frame["best"] = frame["best"].eq(True)
    columns = [*domains, sc.AVERAGE]
    frame = grid(frame.rename(columns={"domain": "column"}), names, columns)
    frame["column"] = frame["column"].map(header)
    caption = f"{base}: accuracy (%) per domain at T* and at the best of all training durations (bold)."
    notes = [ERROR_NOTE, _BEST_NOTE]
    if sc.at_t_star(merged).empty:
        notes.append(_NO_T_STAR_NOTE)
    return table(name, caption, cells(frame, base), notes)


def table_2(results: pd.DataFrame, pool: str | None = None) -> Table:
    """Refusal rate in percent per duration, one panel per base (the form of table 2; the best of a row is bold).

    Beside the paper's rows, one for the base and one for its safety expert.

    Args:
        results: columns ``mergetime.results.RESULTS``.
        pool: which pool, as the config names it; needed where the study has several at one duration.

    Raises:
        ValueError: in one line, if safety was not measured, a base has no merged models, or scores are incomplete.
    """
    scores = sc.domain_scores(results)
    scores = scores[scores["domain"] == sc.SAFETY]
    if scores.empty:
        raise ValueError(f"table_2 reports the domain {sc.SAFETY}, which these results do not measure; see suites.test")
    panels = {base: _refusal_rows(scores, base, pool) for base in sc.bases(scores)}
    columns = sc.durations(pd.concat([frame for _, frame in panels.values()]))
    parts = [
        cells(grid(frame.assign(column=frame["duration"]), rows, columns), base)
        for base, (rows, frame) in ((base, _repeat_base(panel, columns)) for base, panel in panels.items())
    ]
    caption = "Refusal rate (%) across training durations and bases. Best per row in bold."
    return table("table_2", caption, pd.concat(parts), [ERROR_NOTE, _BASE_NOTE])


def _row(label: str, frame: pd.DataFrame, best: bool = False) -> tuple[str, pd.DataFrame]:
    return label, frame.assign(row=label, best=best)


def _average_at_t_star(scores: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    return sc.over_seeds(sc.with_average(sc.at_t_star(scores), domains))


def _method_rows(merged: pd.DataFrame, domains: list[str]) -> list[tuple[str, pd.DataFrame]]:
    """Per method: at T*, the best of each domain, and the best single duration."""
    at_t_star = _average_at_t_star(merged, domains)
    best, single = best_per_domain(merged, domains), best_single_duration(merged, domains)
    labels = sc.labels(sc.methods(merged))
    rows = []
    for pair, label in labels.items():
        found = _of(single, pair)
        named = f" ({found['duration'].iloc[0]})" if not found.empty else ""
        rows.append(_row(f"{label} @ T*", _of(at_t_star, pair)))
        rows.append(_row(f"Best {label}", _of(best, pair), best=True))
        rows.append(_row(f"Best single duration {label}{named}", found))
    return rows


def _of(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    return frame[(frame["method"] == pair[0]) & (frame["space"] == pair[1])]


def _refusal_rows(scores: pd.DataFrame, base: str, pool: str | None) -> tuple[list[str], pd.DataFrame]:
    """The row labels of one base and its rates; the base's own row has no duration yet."""
    merged = sc.over_seeds(sc.merged_scores(scores, base, pool))
    labels = sc.labels(sc.methods(merged))
    pairs = zip(merged["method"], merged["space"], strict=True)
    merged = _with_best(merged.assign(row=[labels[pair] for pair in pairs]))
    expert = _with_best(sc.over_seeds(sc.own_expert_scores(scores, base)).assign(row=f"Expert ({sc.SAFETY})"))
    untrained = sc.over_seeds(sc.base_scores(scores, base)).assign(row="Base (no FT)", best=False)
    frames = [frame for frame in (untrained, expert, merged) if not frame.empty]
    frame = pd.concat(frames, ignore_index=True)
    for name in ("duration", "multiple"):
        if name not in frame:
            frame[name] = None
    return ["Base (no FT)", f"Expert ({sc.SAFETY})", *labels.values()], frame


def _with_best(frame: pd.DataFrame) -> pd.DataFrame:
    highest = frame.groupby("row")["value"].transform("max")
    return frame.assign(best=np.isclose(frame["value"], highest, rtol=0, atol=1e-9))


def _repeat_base(panel: tuple[list[str], pd.DataFrame], columns: list[str]) -> tuple[list[str], pd.DataFrame]:
    """The panel with the base's rate under every duration."""
    rows, frame = panel
    base = frame[frame["duration"].isna()]
    repeated = [base.assign(duration=duration) for duration in columns]
    return rows, pd.concat([*repeated, frame[frame["duration"].notna()]], ignore_index=True)
