"""The health of a run: did training pass through an optimum, did the experts learn, can the benchmarks tell.

A study of training duration says nothing where validation loss has no interior minimum, where it does not rise
afterwards, where experts gain nothing on their own benchmark, or where a benchmark has every subject at chance or at
100 %. This module counts those; it decides nothing.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.names import Names
from mergetime.publishing.table import Table, cells, table

RISE = 1.10
"""Validation loss has risen visibly when, at the last step, it is at least this multiple of its minimum."""
GAIN = 10.0
"""An expert has learned when, at 1 x T*, it gains at least this many percentage points on its own benchmark."""
SHARES = {"interior_minimum": 0.8, "risen": 0.6, "gained": 0.8}
"""Share of domains that must pass each criterion, rounded up: 4, 3 and 4 of five."""

_TRAINING = ["base", "recipe", "seed", "domain"]
_DOMAIN_COLUMNS = {
    "t_star": ("T* (steps)", "steps"),
    "last_step": ("Last step", "steps"),
    "loss_start": ("Loss at 0", "loss"),
    "loss_t_star": ("Loss at T*", "loss"),
    "loss_last": ("Loss at end", "loss"),
    "ratio": ("End / T*", "ratio"),
    "base_score": ("Base (%)", "percent"),
    "expert_score": ("Expert @ 1x (%)", "percent"),
    "gain": ("Gain (points)", "points"),
    "interior_minimum": ("Interior minimum", "verdict"),
    "risen": ("Has risen", "verdict"),
    "gained": ("Has gained", "verdict"),
}
_BENCHMARK_COLUMNS = {
    "chance": ("Chance (%)", "percent"),
    "lowest": ("Lowest (%)", "percent"),
    "highest": ("Highest (%)", "percent"),
    "subjects": ("Subjects", "count"),
    "tells": ("Can tell", "verdict"),
}
_CRITERIA_COLUMNS = {
    "counted": ("Domains that pass", "count"),
    "needed": ("Needed", "count"),
    "domains": ("Domains", "count"),
    "met": ("Met", "verdict"),
}
_CRITERIA = {
    "interior_minimum": "Interior minimum of validation loss",
    "risen": f"Loss at the end >= {RISE:.2f} x loss at T*",
    "gained": f"Expert @ 1x gains >= {GAIN:.0f} points",
}


def curve_health(curves: pd.DataFrame) -> pd.DataFrame:
    """Per training: T*, the validation loss at step 0, at T* and at the last evaluation, and their ratio.

    Losses are in nats per response token, steps are optimizer steps; ``ratio`` is the loss at the end over that at T*.
    A loss that was not evaluated is null.
    """
    rows = []
    for (base, recipe, seed, domain), curve in curves.groupby(_TRAINING, sort=False):
        losses = curve.dropna(subset=["validation_loss"]).set_index("step")["validation_loss"].sort_index()
        first = curve.iloc[0]
        at_t_star = losses.get(first["t_star"], np.nan)
        at_end = losses.iloc[-1] if not losses.empty else np.nan
        rows.append(
            {
                "base": base,
                "recipe": recipe,
                "seed": seed,
                "domain": domain,
                "t_star": first["t_star"],
                "boundary": bool(first["t_star_at_boundary"]),
                "last_step": first["last_step"],
                "loss_start": losses.get(0, np.nan),
                "loss_t_star": at_t_star,
                "loss_last": at_end,
                "ratio": at_end / at_t_star if at_t_star else np.nan,
            }
        )
    return pd.DataFrame(rows)


def domain_health(results: pd.DataFrame, curves: pd.DataFrame, names: Names) -> pd.DataFrame:
    """:func:`curve_health` with each expert's score on its own domain (primary metric, %), and three verdicts.

    Verdicts: ``interior_minimum``; ``risen``: ratio >= :data:`RISE`; ``gained``: the expert at 1 x T* scores at least
    :data:`GAIN` points more than the base. What was not measured does not pass.
    """
    if curves.empty:
        raise ValueError("the loss curves are empty; health describes studies that train experts")
    scores = sc.domain_scores(results)
    base = scores[scores["subject_kind"] == "base"][["base", "domain", "value"]]
    experts = scores[(scores["subject_kind"] == "expert") & (scores["expert"] == scores["domain"])]
    experts = sc.at_t_star(experts)[[*_TRAINING, "value"]]
    frame = curve_health(curves)
    frame = frame.merge(base.rename(columns={"value": "base_score"}), on=["base", "domain"], how="left")
    frame = frame.merge(experts.rename(columns={"value": "expert_score"}), on=_TRAINING, how="left")
    frame["gain"] = frame["expert_score"] - frame["base_score"]
    frame["interior_minimum"] = ~frame["boundary"]
    frame["risen"] = frame["ratio"] >= RISE
    # The scores are means of shares: 10 points computed as 9.999999999999998 are 10 points.
    frame["gained"] = frame["gain"].round(9) >= GAIN
    ranks = {domain: rank for rank, domain in enumerate(sc.domains(frame, names))}
    order = frame.assign(
        rank=frame["domain"].map(ranks),
        first=frame["base"].map(_first(frame["base"])),
        recipe_rank=frame["recipe"].map(_first(frame["recipe"])),
    )
    return frame.loc[order.sort_values(["first", "recipe_rank", "seed", "rank"]).index].reset_index(drop=True)


def benchmark_health(results: pd.DataFrame, chance: dict[str, float]) -> pd.DataFrame:
    """Per base and benchmark: lowest and highest score over all subjects (%), and whether the benchmark can tell.

    It cannot where every subject is at chance or at 100 %. At chance is at most 2 binomial standard errors above it:
    value <= c + 2 sqrt(c (1 - c) / items).

    Args:
        results: columns ``mergetime.results.columns.RESULTS``.
        chance: score of guessing, a share from 0 to 1, by benchmark or by domain.

    Raises:
        ValueError: naming the benchmark whose chance level is missing.
    """
    rows = sc.test_rows(results)
    found = []
    for (base, domain, benchmark), group in rows.groupby(["base", "domain", "benchmark"], sort=False):
        level = chance.get(str(benchmark), chance.get(str(domain)))
        if level is None:
            raise ValueError(
                f"no chance level for benchmark {benchmark} (domain {domain}); give it one under benchmarks"
            )
        at_chance = group["value"] <= level + 2 * np.sqrt(level * (1 - level) / group["items"])
        found.append(
            {
                "base": base,
                "domain": domain,
                "benchmark": benchmark,
                "chance": 100 * level,
                "lowest": 100 * group["value"].min(),
                "highest": 100 * group["value"].max(),
                "subjects": len(group),
                "tells": bool((~(at_chance | (group["value"] >= 1))).any()),
            }
        )
    return pd.DataFrame(found)


def criteria(domain_frame: pd.DataFrame) -> pd.DataFrame:
    """Per base, recipe and seed: in how many domains each verdict holds, and whether that is enough (:data:`SHARES`).

    The number needed of n domains is ceil(share * n): 4, 3 and 4 of five.
    """
    rows = []
    for (base, recipe, seed), group in domain_frame.groupby(["base", "recipe", "seed"], sort=False):
        for name, share in SHARES.items():
            # Rounded first: 0.6 * 5 is a little more than 3 in floating point.
            needed, counted = math.ceil(round(share * len(group), 9)), int(group[name].sum())
            rows.append(
                {
                    "base": base,
                    "recipe": recipe,
                    "seed": seed,
                    "criterion": name,
                    "counted": counted,
                    "needed": needed,
                    "domains": len(group),
                    "met": counted >= needed,
                }
            )
    return pd.DataFrame(rows)


def health(inputs: Inputs) -> Table:
    """:func:`health_table` from the study's files; chance levels are those of its config."""
    chance = {name: found.chance for name, found in inputs.benchmarks.items()}
    return health_table(inputs.results, inputs.frame("curves"), chance, inputs.names)


def health_table(results: pd.DataFrame, curves: pd.DataFrame, chance: dict[str, float], names: Names) -> Table:
    """The health of a run as a table: criteria, then domains, per base, recipe and seed; then benchmarks per base.

    :func:`mergetime.publishing.formats.plain` prints it on a terminal.
    """
    domain_frame = domain_health(results, curves, names)
    counted = criteria(domain_frame)
    benchmarks = benchmark_health(results, chance)
    parts = [
        _melted(group.assign(row=group["criterion"].map(_CRITERIA)), _CRITERIA_COLUMNS, f"{run}: criteria")
        for run, group in _runs(counted)
    ]
    parts += [
        _melted(group.assign(row=group["domain"].map(names.header)), _DOMAIN_COLUMNS, f"{run}: domains")
        for run, group in _runs(domain_frame)
    ]
    parts += [
        _melted(group.assign(row=group["benchmark"]), _BENCHMARK_COLUMNS, f"{base}: benchmarks")
        for base, group in benchmarks.groupby("base", sort=False)
    ]
    notes = [
        "Losses are validation losses in nats per response token; scores are on the test split.",
        "Can tell: not every subject is at chance (within 2 binomial standard errors) or at 100 %.",
    ]
    return table("health", "Health of the run.", pd.concat(parts), notes)


def _runs(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each base, recipe and seed, with a title that names the recipe where there are several."""
    several = frame["recipe"].nunique() > 1
    for (base, recipe, seed), group in frame.groupby(["base", "recipe", "seed"], sort=False):
        yield f"{base}, {f'{recipe}, ' if several else ''}seed {seed}", group


def _melted(frame: pd.DataFrame, columns: dict[str, tuple[str, str]], panel: str) -> pd.DataFrame:
    """One cell per row and column of ``frame``; the dagger goes to T*."""
    rows = [
        {
            "row": row["row"],
            "column": label,
            "unit": unit,
            "value": float(row[name]),
            "boundary": name == "t_star" and row["boundary"],
        }
        for _, row in frame.iterrows()
        for name, (label, unit) in columns.items()
    ]
    return cells(pd.DataFrame(rows), panel)


def _first(values: pd.Series) -> dict[str, int]:
    return {value: rank for rank, value in enumerate(dict.fromkeys(values))}
