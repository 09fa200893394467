"""Tables, health and figures, on small results whose numbers are worked out by hand."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mergetime import results as tidy
from mergetime.errors import UserError
from mergetime.publishing import figures, formats, health, scores, style
from mergetime.publishing.best import best_per_domain, best_single_duration
from mergetime.publishing.registry import TABLES, Inputs, make
from mergetime.publishing.table import BOUNDARY_NOTE, CELLS, Table
from mergetime.publishing.tables import accuracy_table, table_2

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BENCHMARKS = {"math": "gsm8k", "code": "humaneval", "safety": "harmbench"}
CHANCE = {"gsm8k": 0.0, "code": 0.0, "safety": 0.0}

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
    return [
        row(
            "merged",
            domain,
            value,
            **{
                "method": method,
                "space": space,
                "pool": f"{pool}_{duration}",
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
        row("expert", d, value if d == e else 0.05, **{"expert": e, "duration": duration, "seed": seed, **other})
        for duration in durations
        for e in BENCHMARKS
        for d in BENCHMARKS
    ]


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Results in the order and with the columns of results.parquet."""
    return pd.DataFrame(rows)[list(tidy.RESULTS)]


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
    found |= {"t_star": t_star, "t_star_at_boundary": False, "last_step": 200, **other}
    return [{**found, "step": step, "validation_loss": loss} for step, loss in losses.items()]


def curves(*rows: list[dict[str, Any]]) -> pd.DataFrame:
    found = [one for some in (rows or [curve(domain) for domain in BENCHMARKS]) for one in some]
    return pd.DataFrame(found)[list(tidy.CURVES)]


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
    table = accuracy_table(results, "small")
    assert value_of(table, "ties @ T*", "Average") == pytest.approx(35)
    assert value_of(table, "ties @ T*", "Average", "stderr") == pytest.approx((9 + 9) ** 0.5 / 2)
    assert set(table.cells["column"]) == {"Mathematics", "Code", "Average"}


def test_seeds_and_items_are_kept_apart(base_rows: list[dict[str, Any]]) -> None:
    two = merged({"1x": {"math": 0.40, "code": 0.30}}, stderr=0.02)
    two += merged({"1x": {"math": 0.44, "code": 0.22}}, seed=2, stderr=0.04)
    table = accuracy_table(frame(base_rows + two), "small")
    cell = table.cells[(table.cells["row"] == "ties @ T*") & (table.cells["column"] == "Mathematics")].iloc[0]
    assert cell["value"] == pytest.approx(42)
    assert cell["stderr"] == pytest.approx(3)
    assert cell["seed_spread"] == pytest.approx(2 * 2**0.5)
    assert cell["seeds"] == 2
    # The averages are 35 and 33: their spread is that of the seeds, not of the domains.
    assert value_of(table, "ties @ T*", "Average", "seed_spread") == pytest.approx(2**0.5)
    assert value_of(table, "Base (no FT)", "Average", "seeds") == 1
    assert "42.0 ±3.0 [2.8]" in formats.plain(table)
    assert any("2 seeds" in note for note in table.notes)


def test_a_missing_seed_is_named(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + merged(TIES) + merged({"1x": TIES["1x"], "2x": TIES["2x"]}, seed=2)
    with pytest.raises(ValueError, match=r"ties 0\.5x math has 1 of 2 seeds"):
        accuracy_table(frame(rows), "small")


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
    table = accuracy_table(results, "small")
    assert list(dict.fromkeys(table.cells["row"])) == [
        "Base (no FT)",
        "Expert @ T*",
        "ties @ T*",
        "Best ties",
        "Best single duration ties (2x)",
    ]
    assert value_of(table, "Expert @ T*", "Mathematics") == pytest.approx(70)
    assert value_of(table, "Best ties", "Average") == pytest.approx(55)
    assert value_of(table, "Best single duration ties (2x)", "Average") == pytest.approx(45)
    assert table.cells[table.cells["best"]]["row"].unique().tolist() == ["Best ties"]


# Durations that are missing, bases, pools, methods


def test_a_duration_without_a_domain_is_no_best_single_duration(base_rows: list[dict[str, Any]]) -> None:
    partial = {"1x": TIES["1x"], "2x": {"code": 0.99}}
    table = accuracy_table(frame(base_rows + merged(partial)), "small")
    assert value_of(table, "Best single duration ties (1x)", "Code") == pytest.approx(30)
    assert value_of(table, "Best ties", "Code") == pytest.approx(99)


@pytest.mark.parametrize("durations", [["step_512", "step_64"], ["0.5x", "2x"]])
def test_without_t_star_the_rows_at_t_star_are_empty(base_rows: list[dict[str, Any]], durations: list[str]) -> None:
    rows = base_rows + experts(durations) + merged(dict.fromkeys(durations, TIES["2x"]))
    table = accuracy_table(frame(rows), "small")
    assert pd.isna(value_of(table, "ties @ T*", "Average"))
    assert pd.isna(value_of(table, "Expert @ T*", "Code"))
    assert "| ties @ T\\* | — | — | — |" in formats.markdown(table)
    assert any("no expert at 1x T*" in note for note in table.notes)


def test_steps_are_ordered_by_number(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + merged({f"step_{step}": TIES["2x"] for step in (512, 64, 1024)})
    table = table_2(frame(rows))
    assert list(dict.fromkeys(table.cells["column"])) == ["step_64", "step_512", "step_1024"]


def test_a_base_that_lacks_a_domain_has_no_average(results: pd.DataFrame) -> None:
    lacking = results[~((results["subject_kind"] == "base") & (results["domain"] == "code"))]
    table = accuracy_table(lacking, "small")
    assert pd.isna(value_of(table, "Base (no FT)", "Code"))
    assert pd.isna(value_of(table, "Base (no FT)", "Average"))


def test_tables_3_and_4_are_the_first_and_second_base(results: pd.DataFrame) -> None:
    second = results.assign(base="large", value=results["value"] / 2)
    both = Inputs(pd.concat([results, second]))
    assert value_of(make("table_3", both), "Best ties", "Average") == pytest.approx(55)
    assert value_of(make("table_4", both), "Best ties", "Average") == pytest.approx(27.5)
    with pytest.raises(ValueError, match="table_5 is about base 3 of a study; the results hold 2: small, large"):
        make("table_5", both)
    with pytest.raises(ValueError, match="base huge is not in the results; they hold small"):
        accuracy_table(results, "huge")


def test_without_merged_models_there_is_one_line(base_rows: list[dict[str, Any]]) -> None:
    for make_one in (lambda r: accuracy_table(r, "small"), table_2, figures.figure_1):
        with pytest.raises(ValueError, match="base small has no model merged at one duration"):
            make_one(frame(base_rows + experts(["1x"])))


def test_several_pools_must_be_named(base_rows: list[dict[str, Any]]) -> None:
    halved = {duration: {d: v / 2 for d, v in found.items()} for duration, found in TIES.items()}
    both = frame(base_rows + merged(TIES) + merged(halved, pool="pairs"))
    with pytest.raises(ValueError, match=r"several pools at one duration \(pairs, together\); name one with --pool"):
        accuracy_table(both, "small")
    assert value_of(accuracy_table(both, "small", "pairs"), "Best ties", "Average") == pytest.approx(27.5)
    with pytest.raises(ValueError, match="from pool nosuch; pools there are: pairs, together"):
        accuracy_table(both, "small", "nosuch")


def test_methods_show_their_space_where_a_family_has_two() -> None:
    pairs = [("ties", "delta"), ("ties_adapter", "adapter"), ("dare_ties", "delta")]
    assert list(scores.labels(pairs).values()) == ["ties (delta)", "ties_adapter", "dare_ties"]
    assert list(scores.labels([("ties", "delta"), ("ties", "adapter")]).values()) == ["ties (delta)", "ties (adapter)"]


def test_methods_and_domains_stand_in_the_order_of_the_paper() -> None:
    order = ["zeta", "ties", "alpha", "simple_average"]
    rows = [one for method in order for one in merged({"1x": {"chess": 0.1, "code": 0.1, "math": 0.1}}, method)]
    found = scores.domain_scores(frame(rows))
    assert scores.domains(found) == ["math", "code", "chess"]
    assert [method for method, _ in scores.methods(found)] == ["simple_average", "ties", "zeta", "alpha"]


# Table 2


def test_table_2(results: pd.DataFrame) -> None:
    table = table_2(pd.concat([results, results.assign(base="large")]))
    assert list(dict.fromkeys(table.cells["panel"])) == ["small", "large"]
    small = table.cells[table.cells["panel"] == "small"].set_index(["row", "column"])
    assert small.loc["ties"]["value"].to_dict() == pytest.approx({"0.5x": 10, "1x": 30, "2x": 30})
    assert small.loc["ties"]["best"].to_dict() == {"0.5x": False, "1x": True, "2x": True}
    assert small.loc["Base (no FT)"]["value"].tolist() == pytest.approx([10, 10, 10])
    assert not small.loc["Base (no FT)"]["best"].any()
    assert small.loc["Expert (safety)"]["value"].tolist() == pytest.approx([70, 70, 70])


def test_table_2_needs_safety(results: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="table_2 reports the domain safety"):
        table_2(results[results["domain"] != "safety"])


# Formats


def test_the_boundary_shows_in_every_format(base_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = merged({"1x": TIES["1x"]}) + merged({"2x": TIES["2x"]}, t_star_at_boundary=True)
    table = accuracy_table(frame(base_rows + rows), "small")
    formats.write_table(table, tmp_path / "table_3")
    markdown, tex = (tmp_path / "table_3.md").read_text(), (tmp_path / "table_3.tex").read_text()
    assert "**60.0 ±3.0 †**" in markdown
    assert "| 30.0 ±3.0 |" in markdown
    assert r"\textbf{60.0}{\scriptsize\,$\pm$3.0}$^{\dagger}$" in tex
    assert markdown.count("no interior minimum") == tex.count("no interior minimum") == 1
    with (tmp_path / "table_3.csv").open() as stream:
        lines = {line["row"]: line for line in csv.DictReader(stream)}
    assert lines["Best ties"]["Code"] == "60.0 ±3.0 †"
    assert lines["Best ties"]["note"] == BOUNDARY_NOTE
    assert lines["ties @ T*"]["note"] == ""
    cells = pd.read_parquet(tmp_path / "table_3.parquet").set_index(["row", "column"])
    assert cells.loc[("Best ties", "Code"), "boundary"]
    assert cells.loc[("Best ties", "Code"), "note"] == BOUNDARY_NOTE
    assert not cells.loc[("ties @ T*", "Code"), "boundary"]


def test_without_a_boundary_there_is_no_dagger(results: pd.DataFrame) -> None:
    table = accuracy_table(results, "small")
    assert "†" not in formats.markdown(table)
    assert "dagger" not in formats.latex(table)


def test_parquet_is_tidy_and_numeric(results: pd.DataFrame, tmp_path: Path) -> None:
    formats.write_table(make("table_3", Inputs(results)), tmp_path / "t")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.equals(tidy.arrow_schema(CELLS), check_metadata=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md", "t.parquet", "t.tex"]


def test_latex_is_escaped(base_rows: list[dict[str, Any]]) -> None:
    tex = formats.latex(accuracy_table(frame(base_rows + merged(TIES, method="my_ties&50%")), "small"))
    assert r"Best my\_ties\&50\%" in tex
    assert "my_ties" not in tex
    assert formats.escape("\\~^{}$#<>±×≥—†") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\$\#\textless{}\textgreater{}$\pm$$\times$$\geq$---"
        r"$^{\dagger}$"
    )


def test_a_failed_table_leaves_the_old_files(
    results: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make("table_3", Inputs(results))
    formats.write_table(table, tmp_path / "t")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(_: Table) -> str:
        raise RuntimeError

    monkeypatch.setattr(formats, "latex", broken)
    with pytest.raises(RuntimeError):
        formats.write_table(make("table_2", Inputs(results)), tmp_path / "t")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Health


def test_a_healthy_run(results: pd.DataFrame) -> None:
    found = health.domain_health(results, curves())
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
    found = health.domain_health(weak, curves(edge, flat, curve("safety", rise=1.10))).set_index("domain")
    assert found["interior_minimum"].to_dict() == {"math": False, "code": True, "safety": True}
    assert found["risen"].to_dict() == {"math": True, "code": False, "safety": True}
    assert not found["gained"].any()
    counted = health.criteria(found.reset_index()).set_index("criterion")
    assert counted["met"].to_dict() == {"interior_minimum": False, "risen": True, "gained": False}
    text = formats.plain(health.health_table(weak, curves(edge, flat, curve("safety")), CHANCE))
    assert "40 †" in text
    assert " no " in text


def test_exactly_ten_points_are_a_gain(base_rows: list[dict[str, Any]]) -> None:
    found = health.domain_health(frame(base_rows + experts(["1x"], value=0.2) + merged(TIES)), curves())
    assert found["gained"].all()


@pytest.mark.parametrize(("domains", "needed"), [(1, [1, 1, 1]), (3, [3, 2, 3]), (5, [4, 3, 4]), (10, [8, 6, 8])])
def test_thresholds_scale_with_the_number_of_domains(domains: int, needed: list[int]) -> None:
    verdicts = pd.DataFrame({"base": "small", "seed": 1, "interior_minimum": [True] * domains})
    counted = health.criteria(verdicts.assign(risen=True, gained=False))
    assert counted["needed"].tolist() == needed
    assert counted["met"].tolist() == [True, True, False]


def test_what_was_not_measured_does_not_pass(base_rows: list[dict[str, Any]]) -> None:
    silent = curves(curve("math", validation_loss=None))
    silent["validation_loss"] = float("nan")
    found = health.domain_health(frame(base_rows + experts(["2x"]) + merged(TIES)), silent).iloc[0]
    assert pd.isna(found["gain"])
    assert pd.isna(found["ratio"])
    assert not found["risen"]
    assert not found["gained"]


def test_health_is_per_seed(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + experts(["1x"]) + experts(["1x"], value=0.15, seed=2) + merged(TIES) + merged(TIES, seed=2)
    both = curves(*[curve(domain, seed=seed) for seed in (1, 2) for domain in BENCHMARKS])
    counted = health.criteria(health.domain_health(frame(rows), both)).set_index(["seed", "criterion"])
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
    with pytest.raises(UserError, match="health needs --curves"):
        make("health", Inputs(results))


# Figures


def test_figure_1_draws_the_averages(results: pd.DataFrame) -> None:
    figure, drawn = figures.figure_1(pd.concat([results, results.assign(base="large")]))
    assert [panel.get_title() for panel in figure.axes] == ["small", "large"]
    small = drawn[drawn["base"] == "small"]
    line = small[small["series"] == "merged"]
    assert line["multiple"].tolist() == [0.5, 1, 2]
    assert line["value"].tolist() == pytest.approx([35, 35, 45])
    assert line["stderr"].tolist() == pytest.approx([18**0.5 / 2] * 3)
    assert small.loc[small["series"] == "base", "value"].tolist() == pytest.approx([10])
    assert small.loc[small["series"] == "expert", "value"].tolist() == pytest.approx([70])


def test_figures_are_the_same_bytes_again(results: pd.DataFrame, tmp_path: Path) -> None:
    for place in ("one", "two"):
        formats.write_figure(*figures.figure_1(results), tmp_path / place / "figure_1")
    for suffix in ("pdf", "png", "parquet"):
        first, second = (tmp_path / place / f"figure_1.{suffix}" for place in ("one", "two"))
        assert first.read_bytes() == second.read_bytes(), suffix
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "figure_1.parquet",
        "figure_1.pdf",
        "figure_1.png",
    ]


def test_figure_1_with_seeds_and_boundaries(base_rows: list[dict[str, Any]]) -> None:
    rows = base_rows + merged(TIES, t_star_at_boundary=True) + merged(TIES, seed=2)
    figure, drawn = figures.figure_1(frame(rows))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "T* at boundary" in texts
    assert "± 1 s.d. over seeds" in texts
    assert "Experts @ T*" not in texts
    assert drawn.loc[drawn["series"] == "merged", "boundary"].all()


def test_figure_1_needs_multiples_of_t_star(base_rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="figure_1 needs durations that are multiples of T"):
        figures.figure_1(frame(base_rows + merged({"step_512": TIES["1x"]})))


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    alone = style.styles([("ties", "delta")])["ties", "delta"]
    among = style.styles([("simple_average", "delta"), ("ties", "delta"), ("new", "delta")])
    assert among["ties", "delta"] == alone
    assert len({(look.color, look.marker) for look in among.values()}) == 3
    two = style.styles([("ties", "delta"), ("ties_adapter", "adapter")])
    assert two["ties_adapter", "adapter"].color == alone.color
    assert two["ties_adapter", "adapter"].dash != alone.dash


# Scripts


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def study(results: pd.DataFrame, tmp_path: Path) -> Path:
    tidy.write(results.astype({"seed": "Int64"}), tidy.RESULTS, tmp_path / "results.parquet")
    tidy.write(curves(), tidy.CURVES, tmp_path / "curves.parquet")
    return tmp_path


def test_make_table_writes_and_shows_health(study: Path) -> None:
    done = run_script(
        "make_table.py",
        *("--results", str(study / "results.parquet"), "--curves", str(study / "curves.parquet")),
        *("--table", "health", "--chance", json.dumps(CHANCE), "--out-stem", str(study / "health"), "--show"),
    )
    assert done.returncode == 0, done.stderr
    assert "Interior minimum of validation loss" in done.stdout
    assert {path.suffix for path in study.glob("health.*")} == {".parquet", ".csv", ".md", ".tex", ".json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "table_4"], "results.parquet: table_4 is about base 2"),
        (["--table", "health"], "health needs --curves"),
        (["--table", "health", "--chance", "[1]"], "--chance: '[1]' is no JSON object"),
        (["--table", "health", "--chance", '{"math": 25}'], "--chance: math is 25.0"),
    ],
)
def test_make_table_fails_in_one_line(study: Path, arguments: list[str], message: str) -> None:
    done = run_script("make_table.py", "--results", str(study / "results.parquet"), "--out-stem", "x", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_make_figure(study: Path) -> None:
    arguments = ("--figure", "figure_1", "--out-stem", str(study / "figure_1"))
    done = run_script("make_figure.py", "--results", str(study / "results.parquet"), *arguments)
    assert done.returncode == 0, done.stderr
    assert (study / "figure_1.pdf").read_bytes().startswith(b"%PDF")
    missing = run_script("make_figure.py", "--results", str(study / "nothing.parquet"), *arguments)
    assert missing.returncode == 1
    assert "nothing.parquet" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


def test_every_table_and_figure_can_be_asked_for() -> None:
    assert list(TABLES) == ["table_2", "table_3", "table_4", "table_5", "health"]
    assert list(figures.FIGURES) == ["figure_1"]
