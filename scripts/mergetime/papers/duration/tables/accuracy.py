"""Tables 3 to 5: accuracy per domain, at T* and at the best duration."""

import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.best import best_per_domain, best_single_duration
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.names import Names
from mergetime.publishing.table import ERROR_NOTE, Table, cells, grid, table

_BEST_NOTE = (
    "Best takes each domain at its own best duration and averages those maxima, as the paper prints it; no single "
    "model attains that average. Best single duration is one model: the duration with the highest average. Both are "
    "chosen on the test scores that they report, so both are optimistic."
)
_EQUAL_NOTE = "Of single durations with equal averages, all are named, and the shortest is shown."
_NO_T_STAR_NOTE = "The study keeps no expert at 1x T*, so the rows at T* are empty."


def accuracy_table(inputs: Inputs, name: str = "table_3", position: int = 0) -> Table:
    """Accuracy in percent per domain and on average, at T* and at the best duration (the form of tables 3-5).

    Rows: Base (no FT); Expert @ T*, each expert on its own domain's benchmark; then for every method the merge of the
    experts at T*, and both readings of its best duration (see :mod:`mergetime.publishing.best`). As in the paper,
    the best over durations (first reading) is bold.

    Args:
        inputs: results, and the pool where the study has several at one duration.
        name: the table's name.
        position: of the base, in the order of the results.

    Raises:
        ValueError: in one line, if there is no such base, it has no merged models, or scores are incomplete.
    """
    results, names = inputs.results, inputs.names
    base = sc.base_at(results, position, name)
    scores = sc.domain_scores(results)
    scores = scores[scores["base"] == base]
    domains = sc.accuracy_domains(scores, names)
    merged = sc.merged_scores(scores, base, inputs.pool)
    blocks = [
        _row("Base (no FT)", sc.over_seeds(sc.with_average(sc.base_scores(scores, base), domains))),
        _row("Expert @ T*", _average_at_t_star(sc.own_expert_scores(scores, base, inputs.pool), domains)),
        *_method_rows(merged, domains, names),
    ]
    rows = [label for label, _ in blocks]
    frame = pd.concat([block for _, block in blocks], ignore_index=True)
    frame["best"] = frame["best"].eq(True)
    columns = [*domains, sc.AVERAGE]
    frame = grid(frame.rename(columns={"domain": "column"}), rows, columns)
    frame["column"] = frame["column"].map(names.header)
    caption = f"{base}: accuracy (%) per domain at T* and at the best of all training durations (bold)."
    notes = [ERROR_NOTE, _BEST_NOTE]
    if sc.at_t_star(merged).empty:
        notes.append(_NO_T_STAR_NOTE)
    if frame["equal_best"].str.contains(" ").eq(True).any():
        notes.append(_EQUAL_NOTE)
    return table(name, caption, cells(frame, base), notes)


def _row(label: str, frame: pd.DataFrame, best: bool = False) -> tuple[str, pd.DataFrame]:
    return label, frame.assign(row=label, best=best)


def _average_at_t_star(scores: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    return sc.over_seeds(sc.with_average(sc.at_t_star(scores), domains))


def _method_rows(merged: pd.DataFrame, domains: list[str], names: Names) -> list[tuple[str, pd.DataFrame]]:
    """Per method: at T*, the best of each domain, and the best single duration."""
    at_t_star = _average_at_t_star(merged, domains)
    best, single = best_per_domain(merged, domains), best_single_duration(merged, domains)
    labels = sc.labels(sc.methods(merged, names), names)
    rows = []
    for pair, label in labels.items():
        best_single = _of(single, pair)
        equal = "" if best_single.empty else best_single["equal_best"].iloc[0]
        named = f" ({', '.join(equal.split())})" if equal else ""
        rows.append(_row(f"{label} @ T*", _of(at_t_star, pair)))
        rows.append(_row(f"Best {label}", _of(best, pair), best=True))
        rows.append(_row(f"Best single duration {label}{named}", best_single))
    return rows


def _of(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    return frame[(frame["method"] == pair[0]) & (frame["space"] == pair[1])]
