"""Analyses are targets of their own, and part of all where the study lists them."""

import re
from pathlib import Path

import pandas as pd
import pytest

from mergetime.analysis import barriers, bias_variance
from mergetime.analysis.collecting import OF, POOL
from mergetime.core import tables
from mergetime.measuring.columns import PATHS
from tests.workflow.conftest import SMOKE, run_in
from tests.workflow.test_reruns import append, planned

MEASURES = {
    "interference": "measure_interference",
    "bias_variance": "measure_bias_variance",
    "mode_connectivity": "measure_connectivity",
}


def write_analyses(folder: Path, listed: str) -> None:
    """Have the study list these analyses and no other."""
    config = folder / "config/smoke.yaml"
    text, changed = re.subn(r"(?m)^analyses: .*$", f"analyses: [{listed}]", config.read_text())
    assert changed == 1
    config.write_text(text)


@pytest.mark.parametrize("analysis", ["interference", "mode_connectivity"])
def test_an_analysis_of_experts_evaluates_and_merges_nothing(clone: Path, analysis: str) -> None:
    found = planned(clone, analysis)
    assert (found[analysis], found[f"collect_{analysis}"]) == (1, 1)
    assert found[MEASURES[analysis]] == 5
    assert "train_expert" in found
    assert not [rule for rule in found if rule.startswith(("evaluate_", "merge_", "select_", "make_table"))]


def test_bias_and_variance_need_the_merged_models(clone: Path) -> None:
    found = planned(clone, "bias_variance")
    assert (found["bias_variance"], found["collect_bias_variance"], found["measure_bias_variance"]) == (1, 1, 5)
    assert found["merge_pool_0"] > 0
    assert not [rule for rule in found if rule.startswith(("evaluate_merged", "make_table"))]


@pytest.mark.parametrize("analysis", MEASURES)
def test_an_analysis_is_part_of_all_where_the_study_lists_it(clone: Path, analysis: str) -> None:
    write_analyses(clone, analysis)
    found = planned(clone)
    assert {other for other, rule in MEASURES.items() if rule in found} == {analysis}
    assert found[MEASURES[analysis]] == 5
    write_analyses(clone, "")
    assert not set(planned(clone)) & set(MEASURES.values())
    assert planned(clone, analysis)[MEASURES[analysis]] == 5


def test_a_pool_of_one_expert_is_left_out(clone: Path) -> None:
    config = clone / "config/smoke.yaml"
    alone = "with_imported: {experts: [{expert: safety, at: 1x}]}"
    config.write_text(config.read_text().replace("with_imported: {experts: [{expert: safety, at: 1x}, polite]}", alone))
    for analysis, rule in MEASURES.items():
        assert planned(clone, analysis)[rule] == 4


def test_an_unknown_analysis_is_one_line(clone: Path) -> None:
    write_analyses(clone, "interferense")
    done = run_in(clone, *SMOKE, "-n")
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert errors == [
        "error: config/smoke.yaml: analyses.0: Input should be 'interference', 'bias_variance' or 'mode_connectivity'"
    ]


def test_the_analyses_of_a_study_end_in_their_tables(study: Path) -> None:
    done = run_in(study, "bias_variance", "mode_connectivity", "interference", *SMOKE)
    assert done.returncode == 0, done.stdout[-5000:]
    folder = study / "results/smoke/analysis"
    terms = tables.read(folder / "bias_variance.parquet", OF | bias_variance.COLUMNS | POOL)
    assert set(terms["method"].dropna()) == {
        "simple_average",
        "task_arithmetic",
        "greedy_soup",
        "fisher",
        "ties_adapter",
    }
    keys = ["pool", "over", "domain"]
    parts = terms[terms["method"].isna()].pivot(index=keys, columns="term", values="value")
    total = parts["bias_squared"] + parts["variance"] / 2 + parts["covariance"] / 2
    pd.testing.assert_series_equal(total, parts["expected_error"], check_names=False, rtol=0, atol=1e-12)
    paths = tables.read(folder / "mode_connectivity.parquet", OF | PATHS | POOL)
    assert set(paths["space"]) == {"delta", "adapter"}
    assert paths["pool"].nunique() == 5
    found = tables.read(folder / "barriers.parquet", OF | barriers.COLUMNS | POOL)
    assert (found["barrier"] >= 0).all()
    assert planned(study, "bias_variance", "mode_connectivity", "interference") == {}
    changes = (("analysis/bias_variance", "collect_bias_variance"), ("measuring/connectivity", "measure_connectivity"))
    for file, rule in changes:
        append(study / f"scripts/mergetime/{file}.py")
        again = planned(study, "bias_variance", "mode_connectivity", "interference")
        assert rule in again
        assert not {"measure_bias_variance", "measure_interference", "train_expert", "merge_pool_0"} & set(again)
