"""What validation decides."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import select_hyperparameters

from mergetime.core.errors import UserError
from mergetime.evaluation.selection import Trial, best_candidate, greedy_soup, held_out_score, rows_with_judged


def test_the_held_out_score_is_the_mean_of_primary_metrics() -> None:
    rows = [{"primary": True, "value": 0.2}, {"primary": False, "value": 1.0}, {"primary": True, "value": 0.6}]
    assert held_out_score(rows) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no primary metric"):
        held_out_score(rows[1:2])


def metric(benchmark: str, name: str, value: float, primary: bool = True) -> dict[str, Any]:
    return {"benchmark": benchmark, "metric": name, "primary": primary, "value": value}


def test_what_was_judged_counts_instead_of_keywords() -> None:
    rows = [metric("requests", "refusal_rate,none", 1.0), metric("arc", "acc,none", 0.5)]
    judged = [
        metric("requests", "refusal_rate,wildguard", 0.1),
        metric("requests", "over_refusal_rate,wildguard", 0.9, False),
    ]
    assert held_out_score(rows_with_judged(rows, judged)) == pytest.approx(0.3)
    assert [row["metric"] for row in rows_with_judged(rows, judged) if row["primary"]] == [
        "acc,none",
        "refusal_rate,wildguard",
    ]
    assert rows_with_judged(rows, []) == rows


def choose(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    """Choose between two values of lambda, of which keywords prefer the first and the judge prefers the second."""
    for number, (keywords, judged) in enumerate([(0.9, 0.2), (0.4, 0.7)]):
        pd.DataFrame([metric("requests", "refusal_rate,none", keywords)]).to_parquet(folder / f"{number}.parquet")
        frame = pd.DataFrame([metric("requests", "refusal_rate,wildguard", judged)])
        frame.to_parquet(folder / f"{number}.judged.parquet")
    arguments = ["--candidates", '{"lambda": 0.5}', '{"lambda": 1.0}', "--out", str(folder / "chosen.json")]
    scores = ["--scores", str(folder / "0.parquet"), str(folder / "1.parquet")]
    monkeypatch.setattr(sys, "argv", ["select_hyperparameters.py", *arguments, *scores, *more])
    select_hyperparameters.run()
    found: dict[str, Any] = json.loads((folder / "chosen.json").read_text())
    return found


def test_a_judge_chooses_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(tmp_path, monkeypatch, "--judged")["facts"] == {"chosen": {"lambda": 0.5}, "scores": [0.9, 0.4]}
    judged = [str(tmp_path / f"{number}.judged.parquet") for number in (0, 1)]
    found = choose(tmp_path, monkeypatch, "--judged", *judged)
    assert found["facts"] == {"chosen": {"lambda": 1.0}, "scores": [0.2, 0.7]}
    assert {"0 judged", "1 judged"} <= found["inputs"].keys()
    with pytest.raises(UserError, match="--judged: 2 candidates, but 1 files"):
        choose(tmp_path, monkeypatch, "--judged", judged[0])


def test_of_equal_candidates_the_first_wins() -> None:
    assert best_candidate([0.1, 0.3, 0.3]) == 1


def test_experts_join_only_where_the_average_improves() -> None:
    scores = {"math": 0.5, "code": 0.7, "safety": 0.6}
    averages: dict[tuple[str, ...], float] = {("code", "safety"): 0.7, ("code", "math"): 0.8}
    assert greedy_soup(scores, lambda members: averages[members]) == [
        Trial(("code",), 0.7, True),
        Trial(("code", "safety"), 0.7, False),
        Trial(("code", "math"), 0.8, True),
    ]


def test_a_soup_may_stay_with_one_expert() -> None:
    trials = greedy_soup({"a": 0.5, "b": 0.5}, lambda _: 0.4)
    assert [trial.members for trial in trials if trial.kept] == [("a",)]
