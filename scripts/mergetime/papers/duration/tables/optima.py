"""Tables 7 to 9: the best duration per domain."""

from typing import Any

import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.sets import NO_ITEM, best_set_notes, described, optimal_durations
from mergetime.publishing.table import DOUBLE_DAGGER, Table, cells, grid, table

_NOTE = "In brackets, where it is more than the best: the best set."


def optima_table(inputs: Inputs, name: str = "table_7", position: int = 0) -> Table:
    """The best duration of every method per domain, safety by its refusals (the form of tables 7-9 of the paper).

    Of equal durations, all are printed, and the cell has no number: the shortest is no better than the others. They are
    followed by their best set, where that has others in it: ``2x (1.5–3x)``. Where no item tells durations apart, none
    is best.

    Args:
        inputs: results, samples and benchmarks, and the pool where the study has several at one duration.
        name: the table's name.
        position: of the base, in the order of the results.

    Raises:
        ValueError: in one line, if there is no such base, it has no merged models, or scores are incomplete.
    """
    names = inputs.names
    base = sc.base_at(inputs.results, position, name)
    merged = sc.merged_scores(sc.domain_scores(inputs.results), base, inputs.pool)
    domains = sc.domains(merged, names)
    labels = sc.labels(sc.methods(merged, names), names)
    frame = optimal_durations(inputs, base, domains)
    frame["row"] = [labels[pair] for pair in zip(frame["method"], frame["space"], strict=True)]
    frame["text"] = [_text(row, merged) for row in frame.itertuples(index=False)]
    several = frame["no_item"] | (frame["duration"] != frame["equal_best"])
    multiples = dict(zip(merged["duration"], merged["multiple"], strict=True))
    frame["low"] = [multiples[kept.split()[0]] for kept in frame["best_set"]]
    frame["high"] = [multiples[kept.split()[-1]] for kept in frame["best_set"]]
    # The cell's number is the duration: how well it scores stands in tables 2 to 5.
    frame = frame.assign(value=frame["multiple"].mask(several), duration=frame["duration"].mask(several))
    frame = frame.assign(stderr=None, seed_spread=None, column=frame["domain"])
    notes = [_NOTE, *best_set_notes(frame)]
    frame = grid(frame, labels.values(), domains)
    frame["column"] = frame["column"].map(names.header)
    caption = f"{base}: best training duration per domain, in multiples of T*."
    return table(name, caption, cells(frame, base, "multiple"), notes)


def _text(row: Any, merged: pd.DataFrame) -> str:
    """What a cell prints: the best durations, their set, and the mark of few items."""
    if row.no_item:
        return NO_ITEM
    best, kept = (described(names.split(), merged) for names in (row.equal_best, row.best_set))
    return (best if best == kept else f"{best} ({kept})") + (f" {DOUBLE_DAGGER}" if row.few_items else "")
