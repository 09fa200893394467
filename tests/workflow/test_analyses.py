"""Analyses are targets of their own, and part of all where the study lists them."""

from pathlib import Path

from tests.workflow.conftest import SMOKE, run_in
from tests.workflow.test_reruns import planned


def test_interference_is_a_target_that_evaluates_and_merges_nothing(clone: Path) -> None:
    found = planned(clone, "interference")
    assert (found["interference"], found["collect_interference"]) == (1, 1)
    assert found["measure_interference"] == 5
    assert "train_expert" in found
    assert not [rule for rule in found if rule.startswith(("evaluate_", "merge_", "select_", "make_table"))]


def test_interference_is_part_of_all_where_the_study_lists_it(clone: Path) -> None:
    assert planned(clone)["measure_interference"] == 5
    config = clone / "config/smoke.yaml"
    config.write_text(config.read_text().replace("analyses: [interference]\n", ""))
    assert "measure_interference" not in planned(clone)
    assert planned(clone, "interference")["measure_interference"] == 5


def test_a_pool_of_one_expert_is_left_out(clone: Path) -> None:
    config = clone / "config/smoke.yaml"
    alone = "with_imported: {experts: [{expert: safety, at: 1x}]}"
    config.write_text(config.read_text().replace("with_imported: {experts: [{expert: safety, at: 1x}, polite]}", alone))
    assert planned(clone, "interference")["measure_interference"] == 4


def test_an_unknown_analysis_is_one_line(clone: Path) -> None:
    config = clone / "config/smoke.yaml"
    config.write_text(config.read_text().replace("analyses: [interference]", "analyses: [interferense]"))
    done = run_in(clone, *SMOKE, "-n")
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert errors == ["error: config/smoke.yaml: analyses.0: Input should be 'interference'"]
