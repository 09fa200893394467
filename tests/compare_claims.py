"""Hold a study's verdicts on claims against its own tables and figures.

    PYTHONPATH=scripts python tests/compare_claims.py results/demo

Effects are computed again from what Figures 1, 2 and 4 draw, best durations from what Tables 7 to 9 print. Exits with 1
and a line for each verdict that these contradict.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergetime.claims import claim, judge
from mergetime.claims.claim import Claim, Claims
from mergetime.core import tables
from mergetime.papers.duration.names import NAMES
from mergetime.publishing import scores as sc

CLAIMS = Path(__file__).resolve().parents[1] / "config/papers/duration/claims.yaml"

Curve = pd.Series
"""Scores in percent by multiple of T*."""


def contradictions(folder: Path, claims: Claims) -> Iterator[str]:
    """A line for every verdict of ``folder``/claims.parquet that the tables or figures beside it contradict."""
    judged = tables.read(folder / "claims.parquet", judge.COLUMNS)
    judged = judged[judged["verdict"] != "not_testable"]
    drawn = pd.concat([pd.read_parquet(folder / f"figures/figure_{number}.parquet") for number in (1, 4)])
    optima = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("tables/table_[789].parquet")))
    by_id = {each.id: each for each in claims.claims}
    for _, row in judged.iterrows():
        stated = by_id[row["claim"]]
        where = " ".join(str(row[name]) for name in ("claim", "base", "space") if pd.notna(row[name]))
        held = stated.rule.holds(row["effect"])
        if row["verdict"] in ("supported", "contradicted") and held != (row["verdict"] == "supported"):
            yield f"{where}: {row['verdict']}, but {row['effect']:.3f} is {'' if held else 'not '}{stated.rule}"
        effect = _effect(stated, row, drawn, folder)
        if effect is not None and not np.isclose(effect, row["effect"], atol=1e-6):
            yield f"{where}: the effect is {row['effect']:.3f}, from figures {effect:.3f}"
        printed = _printed_set(stated, row, drawn, optima)
        if printed is not None and not _agrees(row, stated, printed):
            yield f"{where}: {row['verdict']} from {row['candidates']}, but a table prints {printed}"


def _agrees(row: pd.Series, stated: Claim, printed: list[float]) -> bool:
    """Whether a judgement rests on the best set that is printed, and says what that says."""
    candidates = [float(duration) for duration in row["candidates"].split()]
    return candidates == printed and row["verdict"] == stated.rule.decide_among(printed)


def _effect(stated: Claim, row: pd.Series, drawn: pd.DataFrame, folder: Path) -> float | None:
    """A statistic of what is drawn; None for those that need more."""
    if stated.statistic == "term_slope":
        terms = pd.read_parquet(folder / "figures/figure_2.parquet")
        terms = terms[(terms["base"] == row["base"]) & (terms["over"] == "experts")]
        curve = terms[terms["term"] == stated.parameters["term"]].set_index("multiple")["value"]
        return _slope(curve[curve.index >= 1]) if stated.parameters.get("past_t_star") else _slope(curve)
    computed = _EFFECTS.get(stated.statistic)
    if computed is None:
        return None
    domain = stated.parameters.get("domain", sc.AVERAGE)
    return computed(lambda method: _curve(drawn, row, method, domain), stated.parameters)


def _curve(drawn: pd.DataFrame, row: pd.Series, family: str, domain: str) -> Curve:
    """The scores of a family of methods by multiple, in the space of a judgement; the base's is at 0."""
    rows = drawn[(drawn["base"] == row["base"]) & (drawn["domain"] == domain)]
    if family == "base":
        return rows[rows["series"] == "base"].assign(multiple=0.0).set_index("multiple")["value"]
    merged = rows[(rows["series"] == "merged") & (rows["space"] == row["space"])]
    families = sc.families(sc.methods(drawn[drawn["series"] == "merged"], NAMES))
    chosen = [families[method, row["space"]] == family for method in merged["method"]]
    return merged[chosen].set_index("multiple")["value"].sort_index()


def _best(curve: Curve) -> float:
    """The duration of the highest score; the shortest of equals."""
    return float(curve.index.to_numpy(dtype=float)[curve.round(9).argmax()])


def _slope(curve: Curve) -> float:
    return float(np.polyfit(np.log2(curve.index.to_numpy(dtype=float)), curve.to_numpy(), 1)[0])


def _from(curve: Curve, parameters: Mapping[str, Any]) -> Curve:
    """The durations that a claim is about."""
    return curve[(curve.index >= parameters.get("shortest", 0)) & (curve.index <= parameters.get("longest", np.inf))]


_EFFECTS: Mapping[str, Callable[[Callable[[str], Curve], Mapping[str, Any]], float]] = {
    "peak": lambda of, p: _best(of(p["method"])),
    "gain_over_t_star": lambda of, p: float(_from(of(p["method"]), p).max() - of(p["method"])[1.0]),
    "loss_to_longest": lambda of, p: float(of(p["method"]).max() - of(p["method"]).iloc[-1]),
    "best_margin": lambda of, p: float(of(p["first"]).max() - p.get("factor", 1) * of(p["second"]).max()),
    "difference": lambda of, p: float((of(p["first"]) - of(p["second"])).mean()),
    "slope": lambda of, p: _slope(_from(of(p["method"]), p)),
    "over_base": lambda of, p: float(of(p["method"])[p.get("multiple", 1.0)] - of("base")[0.0]),
}


def _printed_set(stated: Claim, row: pd.Series, drawn: pd.DataFrame, optima: pd.DataFrame) -> list[float] | None:
    """The best set of a domain as a table has it; None where no table has one."""
    if stated.statistic != "peak" or "domain" not in stated.parameters:
        return None
    algorithms = sc.methods(drawn[(drawn["series"] == "merged") & (drawn["base"] == row["base"])], NAMES)
    families, labels = sc.families(algorithms), sc.labels(algorithms, NAMES)
    label = next(
        labels[key] for key in labels if (families[key], key[1]) == (stated.parameters["method"], row["space"])
    )
    cells = optima[(optima["panel"] == row["base"]) & (optima["row"] == label)]
    cell = cells[cells["column"] == NAMES.header(stated.parameters["domain"])].iloc[0]
    return [float(name.removesuffix("x")) for name in cell["best_set"].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results of a study, with claims, tables and figures")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="that were judged (%(default)s)")
    options = parser.parse_args()
    lines = list(contradictions(options.folder, claim.load(options.claims)))
    print("\n".join(lines) or "no verdict is contradicted")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
