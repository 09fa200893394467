"""What validation decides."""

import pytest

from mergetime.selection import Trial, best_candidate, greedy_soup, held_out_score


def test_the_held_out_score_is_the_mean_of_primary_metrics() -> None:
    rows = [{"primary": True, "value": 0.2}, {"primary": False, "value": 1.0}, {"primary": True, "value": 0.6}]
    assert held_out_score(rows) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no primary metric"):
        held_out_score(rows[1:2])


def test_of_equal_candidates_the_first_wins() -> None:
    assert best_candidate([0.1, 0.3, 0.3]) == 1


def test_experts_join_only_where_the_average_improves() -> None:
    scores = {"math": 0.5, "code": 0.7, "safety": 0.6}
    averages = {("code", "safety"): 0.7, ("code", "math"): 0.8}
    assert greedy_soup(scores, lambda members: averages[members]) == [
        Trial(("code",), 0.7, True),
        Trial(("code", "safety"), 0.7, False),
        Trial(("code", "math"), 0.8, True),
    ]


def test_a_soup_may_stay_with_one_expert() -> None:
    trials = greedy_soup({"a": 0.5, "b": 0.5}, lambda _: 0.4)
    assert [trial.members for trial in trials if trial.kept] == [("a",)]
