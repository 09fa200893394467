"""Table 6: over which durations the optima of the domains range."""

import itertools

import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.sets import NO_ITEM, best_set_notes, optimal_durations, span
from mergetime.publishing.table import DOUBLE_DAGGER, Table, cells, grid, table

_NOTE = (
    "In brackets: the range of the domains' best sets, where it is wider. A domain in which no item tells durations "
    "apart has no best one, and its set holds all of them."
)


def table_6(inputs: Inputs) -> Table:
    """From the shortest to the longest of the domains' best durations, by method and base (table 6 of the paper).

    Over the accuracy domains; of equal durations, all count. In brackets the range over all durations that are in a
    domain's best set: how far the optima may lie apart, as far as the test items can tell.

    Args:
        inputs: results, samples and benchmarks, and the pool where the study has several at one duration.

    Raises:
        ValueError: in one line, if a base has no merged models, or scores are incomplete.
    """
    names = inputs.names
    scores = sc.domain_scores(inputs.results)
    bases = sc.bases(scores)
    domains = {base: sc.accuracy_domains(scores[scores["base"] == base], names) for base in bases}
    merged = {base: sc.merged_scores(scores, base, inputs.pool) for base in bases}
    labels = sc.labels(sc.methods(pd.concat(merged.values()), names), names)
    rows = []
    of_bases = {base: optimal_durations(inputs, base, domains[base]) for base in bases}
    for base, best in of_bases.items():
        for (method, space), of_method in best.groupby(["method", "space"], sort=False):
            cell = _range(of_method, merged[base])
            rows.append(
                {"row": labels[str(method), str(space)], "column": base, "seeds": of_method["seeds"].max()} | cell
            )
    frame = grid(pd.DataFrame(rows), labels.values(), bases)
    measured = ", ".join(names.header(domain) for domain in dict.fromkeys(itertools.chain(*domains.values())))
    notes = [_NOTE, *best_set_notes(pd.concat(of_bases.values()))]
    caption = "Range of best training durations over the accuracy domains, in multiples of T*."
    return table("table_6", caption, cells(frame, measured, "multiple"), notes)


def _range(best: pd.DataFrame, merged: pd.DataFrame) -> dict[str, object]:
    """One cell: the ends of the range of the best, and of the union of their sets."""
    ranks = sc.durations(merged)
    multiples = dict(zip(merged["duration"], merged["multiple"], strict=True))
    picked = _together(best.loc[~best["no_item"], "equal_best"], ranks)
    union = _together(best["best_set"], ranks)
    inner = span(picked[0], picked[-1], multiples) if picked else NO_ITEM
    outer = span(union[0], union[-1], multiples) if picked else NO_ITEM
    mark = f" {DOUBLE_DAGGER}" if best["few_items"].any() else ""
    return {
        "text": (inner if inner == outer else f"{inner} ({outer})") + mark,
        "low": multiples[picked[0]] if picked else None,
        "high": multiples[picked[-1]] if picked else None,
        "best_set": " ".join(union),
        "discordant": best["discordant"].min(),
        "boundary": bool(best["boundary"].any()),
    }


def _together(sets: pd.Series, ranks: list[str]) -> list[str]:
    """The durations that are in any of the sets, from short to long."""
    return sorted({name for names in sets for name in names.split()}, key=ranks.index)
