"""Tables, health and figures, on small results whose numbers are worked out by hand."""

import argparse
import csv
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from mergetime import papers
from mergetime.config.experts import DEFAULT
from mergetime.config.reading import parse
from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.papers.duration.names import NAMES
from mergetime.publishing import formats, scores
from mergetime.publishing.best import best_per_domain, best_single_duration
from mergetime.publishing.entry import FILES
from mergetime.publishing.figures import drawing, style
from mergetime.publishing.figures.formats import write_figure
from mergetime.publishing.inputs import Inputs, given
from mergetime.publishing.needs import MERGES, offered
from mergetime.publishing.sets import described
from mergetime.publishing.table import BOUNDARY_NOTE, CELLS, Table
from mergetime.publishing.tables import health
from mergetime.results import columns as tidy
from mergetime.results.collection import planned_columns
from mergetime.study.subjects import subjects

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BENCHMARKS = {"math": "gsm8k", "code": "humaneval", "safety": "harmbench"}
TABLES, FIGURES = papers.get("duration").tables, papers.get("duration").figures
CHANCE = {"gsm8k": 0.0, "code": 0.0, "safety": 0.0}
STUDY = {
    "study": "unit",
    "domains": {"math": {"dataset": "o/math", "config": None, "train": 10, "validation": 5}},
    "suites": {"test": BENCHMARKS},
    "benchmarks": {
        "gsm8k": {
            "dataset": "o/gsm8k",
            "config": "main",
            "metric": "exact_match,none",
            "weights": "items",
            "chance": 0.0,
        },
        "humaneval": {"dataset": "o/he", "config": ["a", "b"], "metric": "pass@1,x", "weights": "tasks", "chance": 0.0},
        "harmbench": {
            "dataset": "o/hb",
            "config": None,
            "metric": "refusal_rate,none",
            "judge": "guard",
            "weights": "items",
            "chance": 0.0,
        },
    },
}

# The best of math is at 0.5x, of code at 2x; the best average, 45, is at 2x.
TIES = {
    "0.5x": {"math": 0.50, "code": 0.20, "safety": 0.10},
    "1x": {"math": 0.40, "code": 0.30, "safety": 0.30},
    "2x": {"math": 0.30, "code": 0.60, "safety": 0.30},
}


def row(kind: str, domain: str, value: float, **other: Any) -> dict[str, Any]:
    """One row of results, standard error 0.03 unless given."""
    nothing = dict.fromkeys(["expert", "pool", "method", "space", "duration", "multiple", "seed", "chosen"])
    found = {
        "study": "unit",
        "base": "small",
        "base_revision": "0" * 40,
        "subject_kind": kind,
        **nothing,
        "t_star_at_boundary": False,
        "split": "test",
        "group": "test",
        "domain": domain,
        "benchmark": BENCHMARKS.get(domain, domain),
        "metric": "acc,none",
        "primary": True,
        "value": value,
        "stderr": 0.03,
        "items": 100,
        "task_hash": "0",
        "harness_version": "0",
        **other,
    }
    if found["duration"] and found["duration"].endswith("x"):
        found["multiple"] = float(found["duration"][:-1])
    parts = [kind, found["base"], found["expert"], found["pool"], found["method"], found["space"], found["duration"]]
    found["subject"] = "/".join(str(part) for part in [*parts, found["seed"]] if part is not None)
    return found


def merged(
    values: dict[str, dict[str, float]], method: str = "ties", seed: int = 1, **other: Any
) -> list[dict[str, Any]]:
    """Rows of one method: {duration: {domain: value}}."""
    space = other.pop("space", "delta")
    pool = other.pop("pool", "together")
    algorithm = other.pop("algorithm", method)
    return [
        row(
            "merged",
            domain,
            value,
            **{
                "method": method,
                "space": space,
                "pool": f"{pool}_{duration}",
                "pool_family": pool,
                "algorithm": algorithm,
                "recipe": "default",
                "duration": duration,
                "seed": seed,
                **other,
            },
        )
        for duration, found in values.items()
        for domain, value in found.items()
    ]


def experts(durations: list[str], value: float = 0.7, seed: int = 1, **other: Any) -> list[dict[str, Any]]:
    """Rows of one expert a domain: ``value`` at home, 0.05 elsewhere."""
    return [
        row(
            "expert",
            d,
            value if d == e else 0.05,
            **{"expert": e, "duration": duration, "seed": seed, "recipe": "default", **other},
        )
        for duration in durations
        for e in BENCHMARKS
        for d in BENCHMARKS
    ]


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Results in the order and with the columns of results.parquet."""
    return pd.DataFrame(rows).reindex(columns=list(tidy.RESULTS))


@pytest.fixture
def base_rows() -> list[dict[str, Any]]:
    return [row("base", domain, 0.1) for domain in BENCHMARKS]


@pytest.fixture
def results(base_rows: list[dict[str, Any]]) -> pd.DataFrame:
    return frame(base_rows + experts(list(TIES)) + merged(TIES))


def curve(domain: str, t_star: int = 40, rise: float = 1.5, **other: Any) -> list[dict[str, Any]]:
    """A loss curve of 2.0 at step 0, 1.0 at T*, ``rise`` at step 200."""
    losses = {0: 2.0, t_star: 1.0, 200: rise}
    found = {"study": "unit", "base": "small", "domain": domain, "seed": 1, "train_loss": 1.0, "gradient_norm": 1.0}
    found |= {"t_star": t_star, "t_star_at_boundary": False, "last_step": 200, "recipe": "default", **other}
    return [{**found, "step": step, "validation_loss": loss} for step, loss in losses.items()]


def curves(*rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of curves.parquet; what tables do not read is null, or 0."""
    found = [one for some in (rows or [curve(domain) for domain in BENCHMARKS]) for one in some]
    nothing = {name: None if column.nullable else 0 for name, column in tidy.CURVES.items()}
    return pd.DataFrame([nothing | one for one in found])[list(tidy.CURVES)]


def inputs(results: pd.DataFrame, pool: str | None = None, **frames: pd.DataFrame) -> Inputs:
    return Inputs({"results": results, **frames}, pool=pool)


def table_of(name: str, results: pd.DataFrame, pool: str | None = None, **frames: pd.DataFrame) -> Table:
    return TABLES[name].make(inputs(results, pool, **frames))


def accuracy_table(results: pd.DataFrame, pool: str | None = None) -> Table:
    return table_of("table_3", results, pool)


def table_2(results: pd.DataFrame) -> Table:
    return table_of("table_2", results)


def figure_1(results: pd.DataFrame) -> drawing.Drawing:
    return FIGURES["figure_1"].make(inputs(results))


def value_of(table: Table, row_label: str, column: str, name: str = "value") -> Any:
    cells = table.cells
    found = cells[(cells["row"] == row_label) & (cells["column"] == column)]
    assert len(found) == 1, f"{row_label}, {column}: {len(found)} cells"
    return found[name].iloc[0]


# Scores


def test_only_primary_metrics_on_test_count(results: pd.DataFrame) -> None:
    noise = frame([row("base", "math", 0.9, split="validation"), row("base", "math", 0.9, primary=False)])
    found = scores.domain_scores(pd.concat([results, noise]))
    assert found.loc[(found["subject_kind"] == "base") & (found["domain"] == "math"), "value"].tolist() == [10]


def test_a_domain_is_the_mean_of_its_benchmarks() -> None:
    rows = [row("base", "math", 0.2, stderr=0.03), row("base", "math", 0.4, stderr=0.04, benchmark="math500")]
    found = scores.domain_scores(frame(rows)).iloc[0]
    assert found["value"] == pytest.approx(30)
    assert found["stderr"] == pytest.approx(2.5)  # sqrt(3^2 + 4^2) / 2


def test_a_missing_benchmark_is_named(base_rows: list[dict[str, Any]]) -> None:
    rows = [*base_rows, row("base", "math", 0.4, benchmark="math500"), *merged(TIES)]
    with pytest.raises(ValueError, match=r"small ties 0.5x math lacks a benchmark"):
        scores.domain_scores(frame(rows))


def test_two_primary_metrics_are_refused(base_rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="two primary metrics on gsm8k"):
        scores.test_rows(frame([*base_rows, row("base", "math", 0.2, metric="em,none")]))


def test_results_without_test_scores_are_refused(base_rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="no primary metric on the test split"):
        scores.test_rows(frame(base_rows).assign(split="validation"))


def test_average_leaves_out_safety_and_propagates_errors(results: pd.DataFrame) -> None:
    table = accuracy_table(results)
    assert value_of(table, "TIES @ T*", "Average") == pytest.approx(35)
    assert value_of(table, "TIES @ T*", "Average", "stderr") == pytest.approx((9 + 9) ** 0.5 / 2)
    assert set(table.cells["column"]) == {"Mathematics", "Code", "Average"}


def test_seeds_and_items_are_kept_apart(base_rows: list[dict[str, Any]]) -> None:
    two = merged({"1x": {"math": 0.40, "code": 0.30}}, stderr=0.02)
    two += merged({"1x": {"math": 0.44, "code": 0.22}}, seed=2, stderr=0.04)
    table = accuracy_table(frame(base_rows + two))
    cell = table.cells[(table.cells["row"] == "TIES @ T*") & (table.cells["column"] == "Mathematics")].iloc[0]
    assert cell["value"] == pytest.approx(42)
    assert cell["stderr"] == pytest.approx(3)
    assert cell["seed_spread"] == pytest.approx(2 * 2**0.5)
    assert cell["seeds"] == 2
    # The averages are 35 and 33: their spread is that of the seeds, not of the domains.
    assert value_of(table, "TIES @ T*", "Average", "seed_spread") == pytest.approx(2**0.5)
    assert value_of(table, "Base (no FT)", "Average", "seeds") == 1
    assert "42.0 ±3.0 [2.8]" in formats.plain(table)
    assert any("2 seeds" in note for note in table.notes)


def test_a_missing_seed_is_named(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + merged(TIES) + merged({"1x": TIES["1x"], "2x": TIES["2x"]}, seed=2)
    with pytest.raises(ValueError, match=r"ties 0\.5x math has 1 of 2 seeds"):
        accuracy_table(frame(rows))


# Both readings of best


def test_best_per_domain_is_the_mean_of_maxima(results: pd.DataFrame) -> None:
    found = scores.merged_scores(scores.domain_scores(results), "small")
    best = best_per_domain(found, ["math", "code"]).set_index("domain")
    assert best["value"].to_dict() == pytest.approx({"math": 50, "code": 60, scores.AVERAGE: 55})
    assert best.loc["math", "duration"] == "0.5x"
    assert best.loc["code", "duration"] == "2x"
    assert best["duration"].isna()[scores.AVERAGE]


def test_best_single_duration_is_one_model(results: pd.DataFrame) -> None:
    found = scores.merged_scores(scores.domain_scores(results), "small")
    best = best_single_duration(found, ["math", "code"]).set_index("domain")
    assert best["value"].to_dict() == pytest.approx({"math": 30, "code": 60, scores.AVERAGE: 45})
    assert set(best["duration"]) == {"2x"}


def test_of_equal_durations_the_shortest_is_best() -> None:
    same = {duration: {"math": 0.1 + 0.2, "code": 0.3} for duration in ("10x", "0.5x", "2x")}
    found = scores.merged_scores(scores.domain_scores(frame(merged(same))), "small")
    assert set(best_single_duration(found, ["math", "code"])["duration"]) == {"0.5x"}
    assert best_per_domain(found, ["math"])["duration"].dropna().tolist() == ["0.5x"]


def test_one_duration_is_picked_for_all_seeds() -> None:
    # Seed 1 alone would pick 1x (50), but over both seeds 2x is better: 45 against 30.
    first = merged({"1x": {"math": 0.5}, "2x": {"math": 0.45}})
    second = merged({"1x": {"math": 0.1}, "2x": {"math": 0.45}}, seed=2)
    found = scores.merged_scores(scores.domain_scores(frame(first + second)), "small")
    best = best_per_domain(found, ["math"])
    assert best.set_index("domain").loc["math", "duration"] == "2x"
    assert best["value"].tolist() == pytest.approx([45, 45])


def test_both_readings_stand_in_the_table(results: pd.DataFrame) -> None:
    table = accuracy_table(results)
    assert list(dict.fromkeys(table.cells["row"])) == [
        "Base (no FT)",
        "Expert @ T*",
        "TIES @ T*",
        "Best TIES",
        "Best single duration TIES (2x)",
    ]
    assert value_of(table, "Expert @ T*", "Mathematics") == pytest.approx(70)
    assert value_of(table, "Best TIES", "Average") == pytest.approx(55)
    assert value_of(table, "Best single duration TIES (2x)", "Average") == pytest.approx(45)
    assert table.cells[table.cells["best"]]["row"].unique().tolist() == ["Best TIES"]


# Durations that are missing, bases, pools, methods


def test_a_duration_without_a_domain_is_no_best_single_duration(base_rows: list[dict[str, Any]]) -> None:
    partial = {"1x": TIES["1x"], "2x": {"code": 0.99}}
    table = accuracy_table(frame(base_rows + merged(partial)))
    assert value_of(table, "Best single duration TIES (1x)", "Code") == pytest.approx(30)
    assert value_of(table, "Best TIES", "Code") == pytest.approx(99)


@pytest.mark.parametrize("durations", [["step_512", "step_64"], ["0.5x", "2x"]])
def test_without_t_star_the_rows_at_t_star_are_empty(base_rows: list[dict[str, Any]], durations: list[str]) -> None:
    rows = base_rows + experts(durations) + merged(dict.fromkeys(durations, TIES["2x"]))
    table = accuracy_table(frame(rows))
    assert pd.isna(value_of(table, "TIES @ T*", "Average"))
    assert pd.isna(value_of(table, "Expert @ T*", "Code"))
    assert "| TIES @ T\\* | — | — | — |" in formats.markdown(table)
    assert any("no expert at 1x T*" in note for note in table.notes)


def test_steps_are_ordered_by_number(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + merged({f"step_{step}": TIES["2x"] for step in (512, 64, 1024)})
    table = table_2(frame(rows))
    assert list(dict.fromkeys(table.cells["column"])) == ["step_64", "step_512", "step_1024"]


def test_a_base_that_lacks_a_domain_has_no_average(results: pd.DataFrame) -> None:
    lacking = results[~((results["subject_kind"] == "base") & (results["domain"] == "code"))]
    table = accuracy_table(lacking)
    assert pd.isna(value_of(table, "Base (no FT)", "Code"))
    assert pd.isna(value_of(table, "Base (no FT)", "Average"))


def test_tables_3_and_4_are_the_first_and_second_base(results: pd.DataFrame) -> None:
    second = results.assign(base="large", value=results["value"] / 2)
    both = pd.concat([results, second])
    assert value_of(table_of("table_3", both), "Best TIES", "Average") == pytest.approx(55)
    assert value_of(table_of("table_4", both), "Best TIES", "Average") == pytest.approx(27.5)
    with pytest.raises(ValueError, match="table_5 is about base 3 of a study; the results hold 2: small, large"):
        table_of("table_5", both)


def test_without_merged_models_there_is_one_line(base_rows: list[dict[str, Any]]) -> None:
    for make_one in (accuracy_table, table_2, figure_1):
        with pytest.raises(ValueError, match="base small has no model merged at one duration"):
            make_one(frame(base_rows + experts(["1x"])))


def test_several_pools_must_be_named(base_rows: list[dict[str, Any]]) -> None:
    halved = {duration: {d: v / 2 for d, v in found.items()} for duration, found in TIES.items()}
    both = frame(base_rows + merged(TIES) + merged(halved, pool="pairs"))
    with pytest.raises(ValueError, match=r"several pools at one duration \(pairs, together\); name one with --pool"):
        accuracy_table(both)
    assert value_of(accuracy_table(both, "pairs"), "Best TIES", "Average") == pytest.approx(27.5)
    with pytest.raises(ValueError, match="from pool nosuch; pools there are: pairs, together"):
        accuracy_table(both, "nosuch")


def test_methods_show_their_space_where_a_family_has_two() -> None:
    printed = {("ties", "delta"): "ties", ("ties_adapter", "adapter"): "ties", ("dare_ties", "delta"): "dare_ties"}
    assert list(scores.labels(printed, NAMES).values()) == ["TIES (delta)", "TIES (adapter)", "DARE+TIES"]
    own = {("knots", "delta"): "knots", ("knots_adapter", "adapter"): "knots", ("slerp", "delta"): "slerp"}
    assert list(scores.labels(own, NAMES).values()) == ["knots (delta)", "knots_adapter", "slerp"]


def test_a_method_is_of_the_family_of_its_algorithm_whatever_its_id() -> None:
    # No id says the space, or it says the other one.
    named = {("trimmed", "delta"): "ties", ("factors", "adapter"): "ties", ("adapter_mean", "delta"): "simple_average"}
    assert list(scores.labels(named, NAMES).values()) == ["TIES (delta)", "TIES (adapter)", "Simple Averaging"]
    # An id that ends like another family's is of its own algorithm.
    other = {("ties_adapter", "delta"): "knots", ("ties", "delta"): "ties"}
    assert list(scores.families(other).values()) == ["knots", "ties"]
    assert list(scores.labels(other, NAMES).values()) == ["ties_adapter", "TIES"]


def test_settings_of_one_algorithm_stay_apart() -> None:
    settings = {("ties", "delta"): "ties", ("dense", "delta"): "ties", ("ties_adapter", "adapter"): "ties"}
    assert scores.families(settings) == {
        ("ties", "delta"): "ties",
        ("dense", "delta"): "dense",
        ("ties_adapter", "adapter"): "ties",
    }
    assert list(scores.labels(settings, NAMES).values()) == ["TIES (delta)", "dense", "TIES (adapter)"]
    unnamed = {("ties_02", "delta"): "ties", ("ties_05", "delta"): "ties"}
    assert list(scores.labels(unnamed, NAMES).values()) == ["ties_02", "ties_05"]
    # An id that is another algorithm's stands for neither.
    confusing = {("ties", "delta"): "knots", ("dense", "delta"): "knots", ("trimmed", "delta"): "ties"}
    assert list(scores.families(confusing).values()) == ["ties (knots)", "dense", "ties"]
    assert len(set(scores.labels(confusing, NAMES).values())) == 3


def test_two_densities_have_rows_of_their_own(base_rows: list[dict[str, Any]]) -> None:
    denser = {duration: {d: v / 2 for d, v in found.items()} for duration, found in TIES.items()}
    rows = base_rows + merged(TIES, "ties_02", algorithm="ties") + merged(denser, "ties_05", algorithm="ties")
    table = accuracy_table(frame(rows))
    assert value_of(table, "Best ties_02", "Average") == pytest.approx(55)
    assert value_of(table, "Best ties_05", "Average") == pytest.approx(27.5)


def test_a_pool_whose_family_ends_like_a_duration_keeps_its_name(base_rows: list[dict[str, Any]]) -> None:
    # An explicit pool has its family's name alone, at the duration that its experts share.
    explicit = merged({"1x": TIES["1x"]}, pool="late")
    explicit = [one | {"pool": "late_1x", "pool_family": "late_1x"} for one in explicit]
    found = scores.shown(frame(explicit + merged(TIES, pool="late")))
    assert sorted(found["pool"].unique()) == ["late", "late_1x"]
    table = accuracy_table(frame(base_rows + explicit + merged(TIES, pool="late")), "late_1x")
    assert value_of(table, "Best TIES", "Average") == pytest.approx(35)


def test_random_subsets_are_not_taken_for_the_pool_of_their_family(base_rows: list[dict[str, Any]]) -> None:
    drawn = [one | {"draw": 0, "value": 0.0} for one in merged(TIES, pool="together")]
    assert scores.shown(frame(drawn)).empty
    table = accuracy_table(frame(base_rows + merged(TIES) + drawn))
    assert value_of(table, "Best TIES", "Average") == pytest.approx(55)


def test_recipes_are_pools_of_their_own(base_rows: list[dict[str, Any]]) -> None:
    halved = {duration: {d: v / 2 for d, v in found.items()} for duration, found in TIES.items()}
    fast = [one | {"recipe": "fast"} for one in merged(halved)]
    trained = experts(list(TIES)) + experts(list(TIES), 0.3, recipe="fast")
    for one in (*fast, *trained):
        one["subject"] = f"{one['recipe']}/{one['subject']}"
    both = frame(base_rows + trained + merged(TIES) + fast)
    with pytest.raises(ValueError, match=r"several pools at one duration \(together, together_fast\)"):
        accuracy_table(both)
    for pool, expert, best in (("together", 70, 55), ("together_fast", 30, 27.5)):
        table = accuracy_table(both, pool)
        assert value_of(table, "Expert @ T*", "Average") == pytest.approx(expert)
        assert value_of(table, "Best TIES", "Average") == pytest.approx(best)
    assert scores.shown(frame(fast))["pool"].unique().tolist() == ["together"]
    assert scores.DEFAULT_RECIPE == DEFAULT


def test_swept_rows_count_nowhere(results: pd.DataFrame) -> None:
    swept = [
        row | {"axis": "density", "axis_value": 0.1, "value": 1.0, "subject": f"{row['subject']}/swept"}
        for row in merged(TIES)
    ]
    both = pd.concat([results, frame(swept)], ignore_index=True)
    pd.testing.assert_frame_equal(health.benchmark_health(both, CHANCE), health.benchmark_health(results, CHANCE))
    for name in ("table_2", "table_3", "table_6", "table_7"):
        given: dict[str, Any] = {"samples": samples(results)} if "samples" in TABLES[name].reads else {}
        pd.testing.assert_frame_equal(table_of(name, both, **given).cells, table_of(name, results, **given).cells)
    for name in ("figure_1", "figure_4"):
        drawn, alone = (FIGURES[name].make(inputs(one)).drawn for one in (both, results))
        pd.testing.assert_frame_equal(drawn, alone)


def test_methods_and_domains_stand_in_the_order_of_the_paper() -> None:
    order = ["zeta", "ties", "alpha", "simple_average"]
    rows = [one for method in order for one in merged({"1x": {"chess": 0.1, "code": 0.1, "math": 0.1}}, method)]
    found = scores.domain_scores(frame(rows))
    assert scores.domains(found, NAMES) == ["math", "code", "chess"]
    assert [method for method, _ in scores.methods(found, NAMES)] == ["simple_average", "ties", "zeta", "alpha"]


# Table 2


def test_table_2(results: pd.DataFrame) -> None:
    table = table_2(pd.concat([results, results.assign(base="large")]))
    assert list(dict.fromkeys(table.cells["panel"])) == ["small", "large"]
    small = table.cells[table.cells["panel"] == "small"].set_index(["row", "column"])
    assert small.loc["TIES"]["value"].to_dict() == pytest.approx({"0.5x": 10, "1x": 30, "2x": 30})
    assert small.loc["TIES"]["best"].to_dict() == {"0.5x": False, "1x": True, "2x": True}
    assert small.loc["Base (no FT)"]["value"].tolist() == pytest.approx([10, 10, 10])
    assert not small.loc["Base (no FT)"]["best"].any()
    assert small.loc["Expert (safety)"]["value"].tolist() == pytest.approx([70, 70, 70])


def test_table_2_needs_safety(results: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="table_2 reports the domain safety"):
        table_2(results[results["domain"] != "safety"])


# Table 1


def test_table_1_comes_from_the_study_alone() -> None:
    table = TABLES["table_1"].make(Inputs({}, STUDY))
    texts = table.cells.set_index(["row", "column"])["text"]
    assert texts["Mathematics", "Training data"] == "o/math (10 + 5)"
    assert texts["Mathematics", "Metric"] == "Exact-match accuracy"
    assert pd.isna(texts["Code", "Training data"])
    assert texts["Code", "Evaluation benchmark"] == "humaneval (o/he, a, b)"
    assert texts["Code", "Metric"] == "Pass@1, mean over tasks"
    assert texts["Safety", "Metric"] == "Refuse-to-answer rate, judged by guard"
    assert formats.latex(table).count("X}") == 1, "words are broken"
    assert "| Code | — | humaneval (o/he, a, b) |" in formats.markdown(table)
    several = {**STUDY, "suites": {"test": {"math": ["gsm8k", "humaneval"], "code": [], "safety": "harmbench"}}}
    texts = TABLES["table_1"].make(Inputs({}, several)).cells.set_index(["row", "column"])["text"]
    assert texts["Mathematics", "Evaluation benchmark"] == "gsm8k (o/gsm8k); humaneval (o/he, a, b)"
    assert texts["Mathematics", "Metric"] == "Exact-match accuracy; Pass@1, mean over tasks"
    assert texts["Safety", "Evaluation benchmark"] == "harmbench (o/hb)"
    with pytest.raises(UserError, match="--study is missing"):
        TABLES["table_1"].make(Inputs())


# Tables 6 to 9


def samples(results: pd.DataFrame, items: int = 20) -> pd.DataFrame:
    """Scores by item whose means are the results': so many items right, the first ones."""
    rows = results[(results["subject_kind"] == "merged") & (results["split"] == "test")].drop(columns="value")
    found = [
        pd.DataFrame([one] * items).assign(
            item=[f"item{at}" for at in range(items)], score=[float(at < round(value * items)) for at in range(items)]
        )
        for (_, one), value in zip(rows.iterrows(), results.loc[rows.index, "value"], strict=True)
    ]
    return pd.concat(found, ignore_index=True).assign(task="task", stem=lambda rows: rows["item"])


def test_table_7_marks_what_cannot_be_told_apart(results: pd.DataFrame) -> None:
    table = table_of("table_7", results, samples=samples(results))
    cell = table.cells.set_index("column").loc["Mathematics"]
    # Of 20 items 10, 8 and 6 are right: one more in ten is not told apart from chance, a fifth is.
    assert cell["value"] == 0.5
    assert cell["best_set"] == "0.5x 1x"
    assert (cell["low"], cell["high"]) == (0.5, 1)
    # A fifth of 20 items are 4: few.
    assert (cell["text"], cell["discordant"]) == ("0.5x (0.5–1x) ‡", 4)
    oracle = stats.ttest_rel([1] * 10 + [0] * 10, [1] * 8 + [0] * 12)
    assert cell["gain"] == pytest.approx(10)
    assert cell["gain_p_value"] == pytest.approx(min(1, 2 * oracle.pvalue))
    code = table.cells.set_index("column").loc["Code"]
    assert (code["text"], code["best_set"], code["low"], code["discordant"]) == ("2x", "2x", 2, 6)
    # 1x and 2x score the same.
    safety = table.cells.set_index("column").loc["Safety"]
    assert (safety["text"], safety["best_set"]) == ("1–2x ‡", "1x 2x")
    assert safety[["value", "duration", "gain"]].isna().all()
    assert "2x" in formats.markdown(table)
    assert "0.5x (0.5--1x) $^{\\ddagger}$" in formats.latex(table)
    assert [note[0] for note in table.notes if "Fewer than 6 test items" in note] == ["‡"]
    plenty = table_of("table_7", results, samples=samples(results, items=100))
    assert "‡" not in formats.markdown(plenty)


def test_table_6_is_the_range_over_domains(results: pd.DataFrame) -> None:
    both = pd.concat([results, results.assign(base="large")], ignore_index=True)
    table = table_of("table_6", both, samples=samples(both))
    assert table.cells["column"].tolist() == ["small", "large"]
    cell = table.cells.iloc[0]
    assert (cell["row"], cell["text"], cell["low"], cell["high"]) == ("TIES", "0.5–2x ‡", 0.5, 2)
    assert cell["panel"] == "Mathematics, Code"
    assert cell["best_set"] == "0.5x 1x 2x"


def test_where_no_item_tells_durations_apart_none_is_best(results: pd.DataFrame) -> None:
    merged_math = (results["subject_kind"] == "merged") & (results["domain"] == "math")
    alike = results.assign(value=results["value"].mask(merged_math, 0.4))
    table = table_of("table_7", alike, samples=samples(alike))
    cell = table.cells.set_index("column").loc["Mathematics"]
    assert (cell["text"], cell["best_set"], cell["discordant"]) == ("no item differs", "0.5x 1x 2x", 0)
    assert cell[["value", "duration", "gain"]].isna().all()
    assert any(note.startswith("No item differs: ") for note in table.notes)
    # Of table 6, code alone has a best duration; its set is narrower than that of math.
    ranges = table_of("table_6", alike, samples=samples(alike))
    assert ranges.cells["text"].tolist() == ["2x (0.5–2x)"]
    everywhere = alike.assign(value=alike["value"].mask(alike["subject_kind"] == "merged", 0.4))
    nothing = table_of("table_6", everywhere, samples=samples(everywhere)).cells.iloc[0]
    assert (nothing["text"], nothing["best_set"]) == ("no item differs", "0.5x 1x 2x")
    assert nothing[["low", "high"]].isna().all()


def test_equal_averages_are_named(results: pd.DataFrame) -> None:
    alike = results.assign(value=results["value"].mask(results["duration"].isin(["1x", "2x"]), 0.5))
    table = accuracy_table(alike)
    assert value_of(table, "Best single duration TIES (1x, 2x)", "Average") == pytest.approx(50)
    note = "Of single durations with equal averages, all are named, and the shortest is shown."
    assert note in table.notes
    assert note not in accuracy_table(results).notes


@pytest.mark.parametrize(("seeds", "said"), [(2, "of these trained models"), (3, "items and 3 training seeds")])
def test_sets_say_which_models_they_are_about(results: pd.DataFrame, seeds: int, said: str) -> None:
    rows, scores = (
        pd.concat([part.assign(seed=seed) for seed in range(seeds)])
        for part in (results[results["subject_kind"] == "merged"], samples(results))
    )
    table = table_of("table_7", pd.concat([results[results["subject_kind"] != "merged"], rows]), samples=scores)
    assert sum(said in note for note in table.notes) == 1


def test_the_spread_over_seeds_makes_sets_larger(results: pd.DataFrame) -> None:
    def kept(spread: float) -> str:
        """The set for code, where 60 of 100 items are right at 2x and 30 at 1x, more or less in single seeds."""
        change = {(0, "1x"): spread, (1, "1x"): -spread, (1, "2x"): spread, (2, "2x"): -spread}
        rows = pd.concat([results.assign(seed=seed) for seed in range(3)], ignore_index=True)
        rows = rows[rows["subject_kind"] == "merged"].reset_index(drop=True)
        changes = [change.get(key, 0) for key in zip(rows["seed"], rows["duration"], strict=True)]
        rows = rows.assign(value=(rows["value"] + changes).round(2))
        cells = table_of("table_7", rows, samples=samples(rows, items=100)).cells.set_index("column")
        return str(cells.loc["Code", "best_set"])

    assert kept(0.0) == "2x"
    assert kept(0.25) == "0.5x 1x 2x"


def test_durations_that_are_no_neighbours_are_listed() -> None:
    found = pd.DataFrame({"duration": ["0.5x", "1x", "2x", "3x"], "multiple": [0.5, 1, 2, 3]})
    assert described(["3x", "0.5x", "2x"], found) == "0.5x, 2–3x"
    steps = pd.DataFrame({"duration": ["step_8", "step_64"], "multiple": [None, None]}, dtype=object)
    assert described(["step_64", "step_8"], steps) == "step_8–step_64"


def test_samples_of_other_results_are_refused(results: pd.DataFrame) -> None:
    other = samples(results.assign(value=1 - results["value"]))
    with pytest.raises(ValueError, match="results and samples of ties on math differ"):
        table_of("table_7", results, samples=other)
    with pytest.raises(ValueError, match="no samples of ties on safety"):
        table_of("table_7", results, samples=samples(results).query("domain != 'safety'"))


def test_intervals_stand_in_the_cells(results: pd.DataFrame) -> None:
    cells = accuracy_table(results).cells.set_index(["row", "column"])
    found: Any = cells.loc[("TIES @ T*", "Mathematics")]
    assert (found["low"], found["high"]) == pytest.approx((40 - 1.96 * 3, 40 + 1.96 * 3), abs=1e-3)
    assert table_2(results).cells["low"].min() >= 0


def test_what_no_item_or_every_item_scores_is_not_certain(base_rows: list[dict[str, Any]]) -> None:
    ends = {"1x": {"math": 0.0, "code": 1.0, "safety": 0.0}}
    rows = base_rows + merged(TIES) + merged(ends, "dare_ties", stderr=0.0)
    rows += merged({"1x": dict.fromkeys(TIES["1x"], 0.0)}, "greedy_soup", stderr=0.0)
    table = accuracy_table(frame(rows))
    assert value_of(table, "DARE+TIES @ T*", "Mathematics", "text") == "0.0 (0 of 100, below 3.7)"
    assert value_of(table, "DARE+TIES @ T*", "Code", "text") == "100.0 (100 of 100, above 96.3)"
    # A mean of two such cells reaches sqrt(3.7^2 + 3.7^2) / 2 to the side that each may err to.
    assert value_of(table, "Greedy Soup @ T*", "Average", "text") == "0.0 (0 of 200, below 2.6)"
    assert value_of(table, "DARE+TIES @ T*", "Average", "low") == pytest.approx(50 - 3.7 / 2, abs=0.01)
    assert value_of(table, "DARE+TIES @ T*", "Average", "text") == "50.0 (48.2 to 51.8)"
    assert value_of(table, "TIES @ T*", "Mathematics", "text") is None
    assert "| 0.0 (0 of 100, below 3.7) | 100.0 (100 of 100, above 96.3) | 50.0 (48.2 to 51.8) |" in formats.markdown(
        table
    )
    assert any(note.startswith("Where no item, or every item, scores") for note in table.notes)
    assert "(0 of 100, below 3.7)" in formats.latex(table_2(frame(rows)))


# Formats


def test_the_boundary_shows_in_every_format(base_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = merged({"1x": TIES["1x"]}) + merged({"2x": TIES["2x"]}, t_star_at_boundary=True)
    table = accuracy_table(frame(base_rows + rows))
    formats.write_table(table, tmp_path / "table_3")
    markdown, tex = (tmp_path / "table_3.md").read_text(), (tmp_path / "table_3.tex").read_text()
    assert "**60.0 ±3.0 †**" in markdown
    assert "| 30.0 ±3.0 |" in markdown
    assert r"\textbf{60.0}{\scriptsize\,$\pm$3.0}$^{\dagger}$" in tex
    assert markdown.count("no interior minimum") == tex.count("no interior minimum") == 1
    with (tmp_path / "table_3.csv").open() as stream:
        lines = {line["row"]: line for line in csv.DictReader(stream)}
    assert lines["Best TIES"]["Code"] == "60.0 ±3.0 †"
    assert lines["Best TIES"]["note"] == BOUNDARY_NOTE
    assert lines["TIES @ T*"]["note"] == ""
    cells = pd.read_parquet(tmp_path / "table_3.parquet").set_index(["row", "column"])
    assert cells.loc[("Best TIES", "Code"), "boundary"]
    assert cells.loc[("Best TIES", "Code"), "note"] == BOUNDARY_NOTE
    assert not cells.loc[("TIES @ T*", "Code"), "boundary"]


def test_without_a_boundary_there_is_no_dagger(results: pd.DataFrame) -> None:
    table = accuracy_table(results)
    assert "†" not in formats.markdown(table)
    assert "dagger" not in formats.latex(table)


def test_parquet_is_tidy_and_numeric(results: pd.DataFrame, tmp_path: Path) -> None:
    formats.write_table(table_of("table_3", results), tmp_path / "t")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.equals(tables.arrow_schema(CELLS), check_metadata=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md", "t.parquet", "t.tex"]


def test_latex_is_escaped(base_rows: list[dict[str, Any]]) -> None:
    tex = formats.latex(accuracy_table(frame(base_rows + merged(TIES, method="my_ties&50%"))))
    assert r"Best my\_ties\&50\%" in tex
    assert "my_ties" not in tex
    assert formats.escape("\\~^{}$#<>±×≥—†") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\$\#\textless{}\textgreater{}$\pm$$\times$$\geq$---"
        r"$^{\dagger}$"
    )


def test_a_failed_table_leaves_the_old_files(
    results: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of("table_3", results)
    formats.write_table(table, tmp_path / "t")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(_: Table) -> str:
        raise RuntimeError

    monkeypatch.setattr(formats, "latex", broken)
    with pytest.raises(RuntimeError):
        formats.write_table(table_of("table_2", results), tmp_path / "t")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Health


def test_a_healthy_run(results: pd.DataFrame) -> None:
    found = health.domain_health(results, curves(), NAMES)
    assert found["domain"].tolist() == ["math", "code", "safety"]
    first = found.iloc[0]
    assert first[["t_star", "last_step", "loss_start", "loss_t_star", "loss_last", "ratio"]].tolist() == [
        40,
        200,
        2.0,
        1.0,
        1.5,
        1.5,
    ]
    assert first["gain"] == pytest.approx(60)
    assert found[["interior_minimum", "risen", "gained"]].all(axis=None)
    counted = health.criteria(found)
    assert counted["met"].all()
    assert counted["needed"].tolist() == [3, 2, 3]


def test_failing_verdicts(base_rows: list[dict[str, Any]]) -> None:
    flat = curve("code", rise=1.0999)
    edge = curve("math", t_star_at_boundary=True)
    weak = frame(base_rows + experts(["1x"], value=0.199) + merged(TIES))
    found = health.domain_health(weak, curves(edge, flat, curve("safety", rise=1.10)), NAMES).set_index("domain")
    assert found["interior_minimum"].to_dict() == {"math": False, "code": True, "safety": True}
    assert found["risen"].to_dict() == {"math": True, "code": False, "safety": True}
    assert not found["gained"].any()
    counted = health.criteria(found.reset_index()).set_index("criterion")
    assert counted["met"].to_dict() == {"interior_minimum": False, "risen": True, "gained": False}
    text = formats.plain(health.health_table(weak, curves(edge, flat, curve("safety")), CHANCE, NAMES))
    assert "40 †" in text
    assert " no " in text


def test_exactly_ten_points_are_a_gain(base_rows: list[dict[str, Any]]) -> None:
    found = health.domain_health(frame(base_rows + experts(["1x"], value=0.2) + merged(TIES)), curves(), NAMES)
    assert found["gained"].all()


@pytest.mark.parametrize(("domains", "needed"), [(1, [1, 1, 1]), (3, [3, 2, 3]), (5, [4, 3, 4]), (10, [8, 6, 8])])
def test_thresholds_scale_with_the_number_of_domains(domains: int, needed: list[int]) -> None:
    verdicts = pd.DataFrame({"base": "small", "recipe": "default", "seed": 1, "interior_minimum": [True] * domains})
    counted = health.criteria(verdicts.assign(risen=True, gained=False))
    assert counted["needed"].tolist() == needed
    assert counted["met"].tolist() == [True, True, False]


def test_each_recipe_is_judged_by_itself(base_rows: list[dict[str, Any]]) -> None:
    learned = [row | {"recipe": "short"} for row in experts(["1x"])]
    flat = [row | {"recipe": "long", "value": 0.0} for row in experts(["1x"])]
    trained = [
        curve(domain, rise=1.0 + (recipe == "long"), recipe=recipe)
        for recipe in ("short", "long")
        for domain in BENCHMARKS
    ]
    made = health.health_table(frame(base_rows + learned + flat + merged(TIES)), curves(*trained), CHANCE, NAMES)
    panels = made.cells.groupby("panel", sort=False)
    assert [name for name, _ in panels if "benchmarks" not in str(name)] == [
        "small, short, seed 1: criteria", "small, long, seed 1: criteria",
        "small, short, seed 1: domains", "small, long, seed 1: domains",
    ]  # fmt: skip
    counted = made.cells[made.cells["column"] == "Domains that pass"].set_index(["panel", "row"])["value"]
    risen, gained = "Loss at the end >= 1.10 x loss at T*", "Expert @ 1x gains >= 10 points"
    assert counted["small, short, seed 1: criteria", risen] == 0
    assert counted["small, long, seed 1: criteria", risen] == len(BENCHMARKS)
    assert counted["small, short, seed 1: criteria", gained] > counted["small, long, seed 1: criteria", gained]


def test_what_was_not_measured_does_not_pass(base_rows: list[dict[str, Any]]) -> None:
    silent = curves(curve("math", validation_loss=None))
    silent["validation_loss"] = float("nan")
    found = health.domain_health(frame(base_rows + experts(["2x"]) + merged(TIES)), silent, NAMES).iloc[0]
    assert pd.isna(found["gain"])
    assert pd.isna(found["ratio"])
    assert not found["risen"]
    assert not found["gained"]


def test_health_is_per_seed(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + experts(["1x"]) + experts(["1x"], value=0.15, seed=2) + merged(TIES) + merged(TIES, seed=2)
    both = curves(*[curve(domain, seed=seed) for seed in (1, 2) for domain in BENCHMARKS])
    counted = health.criteria(health.domain_health(frame(rows), both, NAMES)).set_index(["seed", "criterion"])
    assert counted.loc[(1, "gained"), "counted"] == 3
    assert counted.loc[(2, "gained"), "counted"] == 0


@pytest.mark.parametrize(
    ("values", "chance", "tells"),
    [
        ([0.0, 0.0], 0.0, False),
        ([1.0, 1.0], 0.0, False),
        ([0.0, 1.0], 0.0, False),
        ([0.0, 0.01], 0.0, True),
        # 2 binomial standard errors above 25 % of 100 items end at 33.66 %.
        ([0.20, 0.33], 0.25, False),
        ([0.20, 0.34], 0.25, True),
    ],
)
def test_whether_a_benchmark_can_tell(values: list[float], chance: float, tells: bool) -> None:
    rows = [row("base", "math", values[0]), *merged({"1x": {"math": values[1]}})]
    found = health.benchmark_health(frame(rows), {"math": chance}).iloc[0]
    assert found["tells"] == tells
    assert [found["lowest"], found["highest"]] == pytest.approx([100 * min(values), 100 * max(values)])


def test_a_missing_chance_level_is_named(results: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no chance level for benchmark humaneval"):
        health.benchmark_health(results, {"gsm8k": 0.0, "harmbench": 0.0})
    with pytest.raises(UserError, match="--curves is missing: give the study's curves"):
        table_of("health", results)


# Figures


def test_figure_1_draws_the_averages(results: pd.DataFrame) -> None:
    made = figure_1(pd.concat([results, results.assign(base="large")]))
    assert [panel.get_title() for panel in made.figure.axes] == ["small", "large"]
    small = made.drawn[made.drawn["base"] == "small"]
    line = small[small["series"] == "merged"]
    assert line["multiple"].tolist() == [0.5, 1, 2]
    assert line["value"].tolist() == pytest.approx([35, 35, 45])
    assert line["stderr"].tolist() == pytest.approx([18**0.5 / 2] * 3)
    assert small.loc[small["series"] == "base", "value"].tolist() == pytest.approx([10])
    assert small.loc[small["series"] == "expert", "value"].tolist() == pytest.approx([70])


def test_figure_4_draws_every_domain_and_base(results: pd.DataFrame) -> None:
    made = FIGURES["figure_4"].make(inputs(pd.concat([results, results.assign(base="large")])))
    assert len(made.figure.axes) == 6
    assert [panel.get_ylabel() for panel in made.figure.axes[::2]] == [
        "Mathematics\naccuracy (%)",
        "Code\naccuracy (%)",
        "Safety\nrefusal rate (%)",
    ]
    line = made.drawn[(made.drawn["series"] == "merged") & (made.drawn["base"] == "large")].set_index("domain")
    assert line.loc["safety", "value"].tolist() == pytest.approx([10, 30, 30])
    alone = FIGURES["figure_4"].make(inputs(results))
    assert [panel.get_title() for panel in alone.figure.axes] == ["Mathematics", "Code", "Safety"]


def test_scores_that_hardly_differ_are_no_cliff(results: pd.DataFrame) -> None:
    made = FIGURES["figure_4"].make(inputs(results.assign(value=1.0, stderr=0.0)))
    assert {panel.get_ylim() for panel in made.figure.axes} == {(94.75, 100.25)}


def bias_variance(seeds: list[int]) -> pd.DataFrame:
    """Terms at two durations, larger by 0.1 in seed 2, and rows that the figure leaves out."""
    rows = [
        {"base": "small", "pool": f"together_{multiple:g}x", "duration": f"{multiple:g}x", "multiple": multiple}
        | {"pool_family": "together", "draw": None, "recipe": "default"}
        | {"seed": seed, "over": over, "domain": domain, "method": None, "term": term}
        | {"value": multiple / 10 + (seed == 2) / 10 + (domain != "all"), "stderr": 0.02}
        for seed in seeds
        for multiple in (0.5, 2.0)
        for over in ("experts", "examples")
        for domain in ("math", "all")
        for term in ("bias_squared", "variance", "covariance", "expected_error")
    ]
    extra = {**rows[0], "domain": "all", "method": "ties", "term": "merged_error", "value": 9.0}
    return pd.DataFrame([*rows, extra])


def test_figure_2_draws_the_terms() -> None:
    made = FIGURES["figure_2"].make(Inputs({"bias_variance": bias_variance([1, 2])}, pool="together"))
    assert [panel.get_title() for panel in made.figure.axes] == ["Bias²", "Variance", "Covariance"]
    assert len(made.drawn) == 3 * 2 * 2
    assert made.drawn["value"].max() < 1
    found = made.drawn[(made.drawn["term"] == "variance") & (made.drawn["over"] == "experts")]
    assert found["value"].tolist() == pytest.approx([0.1, 0.25])
    assert found["seeds"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="figure_2 needs terms of pools"):
        FIGURES["figure_2"].make(Inputs({"bias_variance": bias_variance([1])}, pool="pairs"))


def test_figure_3_draws_means_over_pairs() -> None:
    rows = [
        {"base": base, "pool": f"together_{multiple:g}x", "duration": f"{multiple:g}x", "multiple": multiple, "seed": 1}
        | {"pool_family": "together", "draw": None, "recipe": "default"}
        | {"space": space, "first": first, "domain": domain, "barrier": multiple * height, "alpha": alpha}
        for base in ("small", "large")
        for multiple in (0.5, 2.0)
        for space in ("delta", "adapter")
        for domain in ("math", "all")
        for first, height, alpha in (("math", 0.1, 1.0), ("code", 0.3, 0.4), (None, 5.0, None))
    ]
    made = FIGURES["figure_3"].make(Inputs({"barriers": pd.DataFrame(rows)}, pool="together"))
    found = made.drawn[(made.drawn["base"] == "large") & (made.drawn["space"] == "delta")]
    assert found["barrier"].tolist() == pytest.approx([0.1, 0.4])
    assert found["spread"].tolist() == pytest.approx([0.1 / 2**0.5, 0.4 / 2**0.5])
    assert found["pairs"].tolist() == [2, 2]
    assert found["without_hump"].tolist() == [1, 1]
    assert "standard deviation over pairs" in made.caption
    assert "8 of the 16 paths have no hump" in made.caption
    assert made.drawn["multiple"].unique().tolist() == [0.5, 2.0]
    heights = [tuple(line.get_ydata()) for line in made.figure.axes[0].lines]
    places = {tuple(line.get_xdata()) for line in made.figure.axes[0].lines}
    assert (len(heights), len(set(heights)), len(places)) == (4, 1, 2), "equal lines do not hide each other"
    apart = [row | {"barrier": 1.0 if row["first"] == "math" else 0.0, "alpha": 0.5} for row in rows]
    humps = FIGURES["figure_3"].make(Inputs({"barriers": pd.DataFrame(apart)}, pool="together"))
    assert min(band.get_paths()[0].vertices[:, 1].min() for band in humps.figure.axes[0].collections[::2]) == 0
    assert "hump" not in humps.caption


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_texts_of_figures_do_not_touch(base_rows: list[dict[str, Any]], count: int) -> None:
    multiples = ["0.25x", "0.5x", "0.75x", "1x", "1.5x", "2x", "3x", "5x"]
    one = frame(base_rows + experts(multiples) + merged(dict.fromkeys(multiples, TIES["2x"])))
    bases = [one.assign(base=f"a-base-with-a-long-name-{number}") for number in range(count)]
    for name in ("figure_1", "figure_4"):
        made = FIGURES[name].make(inputs(pd.concat(bases))).figure
        whole = made.bbox
        texts = [panel.title for panel in made.axes] + [panel.xaxis.label for panel in made.axes]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        for panel in made.axes:
            ticks = [label.get_window_extent() for label in panel.get_xticklabels()]
            assert len(ticks) == len(multiples)
            boxes += ticks
        legend = made.legends[0].get_window_extent()
        boxes.append(legend)
        for at, box in enumerate(boxes):
            assert whole.x0 <= box.x0 <= box.x1 <= whole.x1 and whole.y0 <= box.y0 <= box.y1 <= whole.y1
            assert not any(box.overlaps(other) for other in boxes[at + 1 :])


def test_figures_are_the_same_bytes_again(results: pd.DataFrame, tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_figure(figure_1(results), tmp_path / place / "figure_1")
    for suffix in ("pdf", "png", "parquet"):
        first, second = (tmp_path / place / f"figure_1.{suffix}" for place in ("one", "two"))
        assert first.read_bytes() == second.read_bytes(), suffix
    assert b"standard error" in pq.read_schema(tmp_path / "one/figure_1.parquet").metadata[b"caption"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "figure_1.parquet",
        "figure_1.pdf",
        "figure_1.png",
    ]


def test_figure_1_with_seeds_and_boundaries(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + merged(TIES, t_star_at_boundary=True) + merged(TIES, seed=2)
    made = figure_1(frame(rows))
    texts = [text.get_text() for text in made.figure.legends[0].get_texts()]
    assert "T* at boundary" in texts
    assert "± 1 s.d. over seeds" in texts
    assert "Experts @ T*" not in texts
    assert "2 seeds" in made.caption
    assert "Hollow markers" in made.caption
    assert made.drawn.loc[made.drawn["series"] == "merged", "boundary"].all()


def test_figure_1_needs_multiples_of_t_star(base_rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="figure_1 needs durations that are multiples of T"):
        figure_1(frame(base_rows + merged({"step_512": TIES["1x"]})))


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    alone = style.styles({("ties", "delta"): "ties"}, NAMES)["ties", "delta"]
    among = style.styles({(name, "delta"): name for name in ("simple_average", "ties", "new")}, NAMES)
    assert among["ties", "delta"] == alone
    assert len({(look.color, look.marker) for look in among.values()}) == 3
    two = style.styles({("ties", "delta"): "ties", ("ties_adapter", "adapter"): "ties"}, NAMES)
    assert two["ties_adapter", "adapter"].color == alone.color
    assert two["ties_adapter", "adapter"].dash != alone.dash


# Scripts


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def study(results: pd.DataFrame, tmp_path: Path) -> Path:
    tables.write(results.astype({"seed": "Int64"}), tidy.RESULTS, tmp_path / "results.parquet")
    tables.write(curves(), tidy.CURVES, tmp_path / "curves.parquet")
    samples(results).to_parquet(tmp_path / "samples.parquet")
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    return tmp_path


def files(study: Path, name: str) -> list[str]:
    """The options for the files that a table reads."""
    paths = {"study": "study.json"}
    found = [
        str(part) for read in TABLES[name].reads for part in (f"--{read}", study / paths.get(read, f"{read}.parquet"))
    ]
    return found + (["--benchmarks", json.dumps(STUDY["benchmarks"])] if TABLES[name].benchmarks else [])


@pytest.mark.parametrize("name", ["table_1", "table_2", "table_3", "table_6", "table_7", "health"])
def test_make_table(study: Path, name: str) -> None:
    stem = study / "made" / name
    done = run_script(
        "make_table.py", "--paper", "duration", "--table", name, *files(study, name), "--out-stem", str(stem), "--show"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert {path.suffix for path in stem.parent.iterdir()} == {".parquet", ".csv", ".md", ".tex", ".json"}


def test_what_a_table_reports_is_all_that_is_read(results: pd.DataFrame, study: Path) -> None:
    reported = samples(results)
    # What is evaluated beside it stands first, and gives texts that no row has which is read.
    beside: dict[str, Any] = {"split": "validation", "primary": False, "subject_kind": "expert", "axis": "density"}
    others = [reported.assign(**{name: value, "item": f"{name} item", "score": 1.0}) for name, value in beside.items()]
    pd.concat([*others, reported], ignore_index=True).to_parquet(study / "all.parquet")
    options = argparse.Namespace(
        results=study / "results.parquet", samples=study / "all.parquet", benchmarks="{}", pool="together"
    )
    read, _ = given("table_7", TABLES["table_7"], options)
    found = read.frame("samples")
    texts = [name for name in map(str, found) if tidy.SAMPLES[name].type == pa.string()]
    pd.testing.assert_frame_equal(found.astype(dict.fromkeys(texts, "str")), reported[list(found)], check_dtype=False)
    assert all(found[name].cat.categories.is_monotonic_increasing for name in texts), "codes sort as texts do"
    made, oracle = TABLES["table_7"].make(read), table_of("table_7", results, samples=reported)
    pd.testing.assert_frame_equal(made.cells, oracle.cells)


def test_make_table_fails_in_one_line(study: Path) -> None:
    (study / "broken.json").write_text("{")
    results = ["--results", str(study / "results.parquet")]
    cases = {
        "results.parquet: table_4 is about base 2": ["--table", "table_4", *results],
        "health needs --curves (curves.parquet of the study)": ["--table", "health", *results],
        "paper duration has no table 'table_33'; did you mean 'table_3'?": ["--table", "table_33", *results],
        "table_2 needs --results (results.parquet of the study)": ["--table", "table_2"],
        "broken.json: not JSON": ["--table", "table_1", "--study", str(study / "broken.json")],
        "curves.parquet: columns missing: axis, benchmark, draw, duration, item": [*("--table", "table_7"), *results, *("--samples", str(study / "curves.parquet")), "--benchmarks", "{}"],
        "table_7 needs --benchmarks": ["--table", "table_7", *results, "--samples", "x"],
        "--benchmarks: '[1]' is not of the form": ["--table", "table_7", *results, "--samples", str(study / "samples.parquet"), "--benchmarks", "[1]"],
        "--benchmarks: chance of math is 25.0": ["--table", "table_7", *results, "--samples", str(study / "samples.parquet"), "--benchmarks", '{"math": {"chance": 25, "weights": "items"}}'],
    }  # fmt: skip
    for message, arguments in cases.items():
        done = run_script("make_table.py", "--paper", "duration", "--out-stem", "x", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_make_figure(study: Path) -> None:
    arguments = ("--paper", "duration", "--figure", "figure_1", "--out-stem", str(study / "figure_1"))
    done = run_script("make_figure.py", "--results", str(study / "results.parquet"), *arguments)
    assert done.returncode == 0, done.stderr
    assert (study / "figure_1.pdf").read_bytes().startswith(b"%PDF")
    assert "standard error" in json.loads((study / "figure_1.json").read_text())["facts"]["caption"]
    missing = run_script("make_figure.py", "--results", str(study / "nothing.parquet"), *arguments)
    assert missing.returncode == 1
    assert "nothing.parquet" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


# Which there are


def test_every_entry_has_its_function() -> None:
    for entry in [*TABLES.values(), *FIGURES.values()]:
        module, _, name = entry.function.partition(":")
        assert callable(getattr(import_module(f"mergetime.{module}"), name))
        assert set(entry.reads) <= set(FILES)


def test_the_registry_is_light() -> None:
    code = "import sys, mergetime.papers; mergetime.papers.get('duration'); print(sorted({'pandas', 'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS, check=True)
    assert done.stdout.strip() == "[]"


def test_an_entry_has_the_digest_of_its_own_module() -> None:
    digests = {name: entry.code("make_figure") for name, entry in FIGURES.items()}
    assert len(set(digests.values())) == len(digests)
    assert TABLES["table_3"].code("make_table") == TABLES["table_5"].code("make_table")
    assert TABLES["table_3"].code("make_table") != TABLES["table_2"].code("make_table")


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({}, {"table_4", "table_5", "table_8", "table_9", "figure_2", "figure_3"}),
        ({"analyses": ["mode_connectivity"]}, {"table_4", "table_5", "table_8", "table_9", "figure_2"}),
        ({"suites": {"validation": {}, "test": {"math": "arithmetic"}}, "methods": {"ties": {"method": "ties"}}}, {"table_2"}),
        ({"pools": {"one": {"experts": [{"expert": "math", "at": "1x"}, {"expert": "code", "at": "2x"}]}}}, {"table_2", "table_3", "table_6", "table_7", "figure_1", "figure_4"}),
    ],
)  # fmt: skip
def test_a_study_has_what_it_measures(changes: dict[str, Any], lacking: set[str]) -> None:
    config = yaml.safe_load((SCRIPTS.parent / "config/demo.yaml").read_text()) | {"analyses": []} | changes
    study = parse(config, "demo")
    everything = set(TABLES) | set(FIGURES)
    found = set(offered(TABLES, study)) | set(offered(FIGURES, study))
    assert not found & lacking
    if not changes:
        assert found == everything - lacking


@pytest.mark.parametrize(
    ("pool", "recipes", "merges"),
    [
        ({"experts": "all"}, ("default",), True),
        ({"experts": "all", "recipe": "fast"}, ("default", "fast"), True),
        ({"experts": "all", "recipe": "each"}, ("default", "fast"), True),
        ({"experts": "all", "recipe": "each"}, ("fast",), True),
        ({"experts": "all", "recipe": "each"}, ("fast", "slow"), False),
        ({"random_subsets": {"sizes": [2], "count": 3, "seed": 1}}, ("default",), False),
    ],
)
def test_a_study_shows_the_pool_that_scores_find(pool: dict[str, Any], recipes: tuple[str, ...], merges: bool) -> None:
    config = yaml.safe_load((SCRIPTS.parent / "config/demo.yaml").read_text())
    trained = dict.fromkeys(recipes, config["experts"])
    pools = {"together": pool | {"at": "each_duration"}}
    changes = {"experts": {"recipes": trained}, "pools": pools, "analyses": []}
    study = parse(config | changes, "demo")
    assert MERGES.function(study) == merges
    # What tables find by the columns of results.parquet.
    rows = pd.DataFrame([planned_columns(study, one) for one in subjects(study) if one.kind == "merged"])
    assert ("together" in set(scores.shown(rows)["pool"])) == merges


def test_a_study_has_a_table_for_each_base() -> None:
    config = yaml.safe_load((SCRIPTS.parent / "config/demo.yaml").read_text())
    (base,) = config["bases"].values()
    study = parse(config | {"bases": dict.fromkeys("abcde", base)}, "demo")
    assert {"table_3", "table_4", "table_5", "table_7", "table_8", "table_9"} <= set(offered(TABLES, study))
    steps = config["experts"] | {"durations": {"steps": [10, 20]}}
    study = parse(config | {"experts": steps}, "demo")
    assert not set(offered(FIGURES, study))
    assert "table_7" in offered(TABLES, study)
