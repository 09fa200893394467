"""Tables 7 to 9: the best duration per domain."""

from mergetime.publishing import scores as sc
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.sets import BEST_SET_NOTE, described, optimal_durations
from mergetime.publishing.table import Table, cells, grid, table

_NOTE = f"In brackets, where it is more than the best: the best set. {BEST_SET_NOTE}"


def optima_table(inputs: Inputs, name: str = "table_7", position: int = 0) -> Table:
    """The best duration of every method per domain, safety by its refusals (the form of tables 7-9 of the paper).

    Of equal durations, the shortest is the best. It is followed by its best set, where that has others in it:
    ``2x (1.5–3x)``.

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
    frame["text"] = [
        best if best == kept else f"{best} ({described(kept.split(), merged)})"
        for best, kept in zip(frame["duration"], frame["best_set"], strict=True)
    ]
    multiples = dict(zip(merged["duration"], merged["multiple"], strict=True))
    frame["low"] = [multiples[kept.split()[0]] for kept in frame["best_set"]]
    frame["high"] = [multiples[kept.split()[-1]] for kept in frame["best_set"]]
    # The cell's number is the duration: how well it scores stands in tables 2 to 5.
    frame = frame.assign(value=frame["multiple"], stderr=None, seed_spread=None, column=frame["domain"])
    frame = grid(frame, labels.values(), domains)
    frame["column"] = frame["column"].map(names.header)
    caption = f"{base}: best training duration per domain, in multiples of T*."
    return table(name, caption, cells(frame, base, "multiple"), [_NOTE])
