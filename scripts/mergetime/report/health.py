"""Whether the run can be believed, and what it took: optima, answers that failed, time and energy."""

from pathlib import Path
from typing import Any

import pandas as pd

from mergetime.core import provenance
from mergetime.planning.jobs import STAGES, Job
from mergetime.report.costs import by_rule as costs_by_rule
from mergetime.report.listing import Listing, listing
from mergetime.study.layout import Layout

PAGE = "make_report"
"""The stage that makes the page."""
_TRAINING = ["base", "domain", "recipe", "seed"]


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of all artifacts below a study's folder, but for that of an earlier page."""
    read = (provenance.read(file) for file in sorted(folder.rglob("*.json")))
    return [found for found in read if isinstance(found, dict) and found.get("stage", PAGE) != PAGE]


def at_boundary(curves: pd.DataFrame) -> list[str]:
    """The trainings whose T* is no interior minimum of the validation loss."""
    first_steps = curves[curves["t_star_at_boundary"].astype(bool)].drop_duplicates(_TRAINING)
    several = curves["recipe"].nunique() > 1
    return [
        f"{row.base}, {row.domain}, {f'{row.recipe}, ' if several else ''}seed {row.seed}: step {row.t_star}"
        for row in first_steps.itertuples()
    ]


def trainings(curves: pd.DataFrame) -> int:
    """The number of trainings behind the curves."""
    return len(curves.drop_duplicates(_TRAINING))


def failures(folder: Path, results: pd.DataFrame, written: list[dict[str, Any]]) -> Listing:
    """By split and benchmark: answers that were asked for, and those that failed.

    Without a score: fewer items than other subjects have on the benchmark. Empty: the saved response holds nothing but
    blanks, which is scored like any other. Unreadable: the judge's verdict could not be read; it counts as no refusal.

    Args:
        folder: the study's folder, whose ``evaluations`` hold responses; without it, empty ones are not counted.
        results: rows of results.parquet.
        written: the study's records.
    """
    primary = results[results["primary"].astype(bool)]
    wanted = primary.groupby(["base", "split", "benchmark"])["items"].transform("max")
    asked = primary.assign(wanted=wanted, missing=wanted - primary["items"])
    empty = _empty_responses(folder)
    unreadable = _unreadable(written)
    rows = []
    for (split, benchmark), found in asked.groupby(["split", "benchmark"], sort=False):
        key = str(split), str(benchmark)
        rows.append(
            [
                *key,
                len(found),
                f"{found['wanted'].sum():.0f}",
                f"{found['missing'].sum():.0f}",
                "—" if empty is None else empty.get(key, 0),
                unreadable.get(key, "—"),
            ]
        )
    head = ["split", "benchmark", "subjects", "answers", "without a score", "empty", "unreadable to the judge"]
    return listing(head, rows, numbers=(2, 3, 4, 5, 6))


def costs(folders: list[Path], curves: pd.DataFrame) -> Listing | None:
    """By stage and rule: jobs, their wall time and largest memory, and the energy of the GPUs that trained.

    None where Snakemake left no records of jobs (its ``benchmark`` files).
    """
    by_rule = costs_by_rule(folders)
    if by_rule.empty:
        return None
    by_rule["stage"] = [Job(str(rule), (), ()).stage for rule in by_rule.index]
    energy = curves["energy_j"].sum(min_count=1)
    lines: list[list[Any]] = []
    for stage in STAGES:
        found = by_rule[by_rule["stage"] == stage].sort_values("wall", ascending=False)
        for rule, row in found.iterrows():
            drawn = f"{energy / 3.6e6:.3f}" if rule == "train_expert" and pd.notna(energy) else "—"
            lines.append([stage, rule, row["jobs"], *_times(row["wall"], row["jobs"]), f"{row['peak']:,.0f}", drawn])
    total, count = by_rule["wall"].sum(), by_rule["jobs"].sum()
    lines.append(["all", "", count, *_times(total, count), f"{by_rule['peak'].max():,.0f}", ""])
    head = ["stage", "rule", "jobs", "wall time, min", "s a job", "peak memory, MB", "GPU energy, kWh"]
    return listing(head, lines, numbers=(2, 3, 4, 5, 6))


def _times(seconds: float, jobs: float) -> list[str]:
    return [f"{seconds / 60:,.1f}", f"{seconds / jobs:,.1f}"]


def _empty_responses(folder: Path) -> dict[tuple[str, str], int] | None:
    # What a judge read is a copy of these.
    files = [
        file for file in Path(Layout(str(folder)).evaluations).rglob("*.samples.parquet") if ".judged." not in file.name
    ]
    counted: dict[tuple[str, str], int] = {}
    for file in files:
        rows = pd.read_parquet(file, columns=["benchmark", "response"], filters=[("primary", "==", True)])
        blank = rows[rows["response"].notna() & rows["response"].str.strip().eq("")]
        for benchmark, count in blank["benchmark"].value_counts().items():
            key = file.name.split(".")[0], str(benchmark)
            counted[key] = counted.get(key, 0) + int(count)
    return counted if files else None


def _unreadable(written: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    counted: dict[tuple[str, str], int] = {}
    for one in (one for one in written if one["stage"] == "judge_responses"):
        for benchmark, facts in one["facts"].items():
            key = one["config"]["split"], benchmark
            counted[key] = counted.get(key, 0) + facts["unreadable"]
    return counted
