"""Judging is apart from generating: a judge that is added or changed evaluates nothing again."""

from pathlib import Path

import pandas as pd

from tests.workflow.conftest import SMOKE, run_in
from tests.workflow.test_reruns import planned

JUDGED = "results/smoke/evaluations/bases/qwen3.5-demo/test.judged.parquet"
COMMIT = "161cfa29dda671966e80b82f2d6aab1dc03ff610"


def set_judge(folder: Path, batch_size: int) -> None:
    """Make the demo's base the judge of the study's requests: it answers nothing that can be read."""
    config = folder / "config/smoke.yaml"
    text = config.read_text().split("\njudges:")[0]
    if "judge: tiny" not in text:
        text = text.replace('metric: "refusal_rate,none"}', 'metric: "refusal_rate,none", judge: tiny}')
    judge = f"model: mergetime/qwen3.5-demo, revision: {COMMIT}, dtype: float32, batch_size: {batch_size}"
    config.write_text(f"{text}\njudges:\n  tiny: {{{judge}}}\n")


def test_a_judge_reads_what_was_saved(study: Path) -> None:
    set_judge(study, 8)
    assert planned(study, JUDGED) == {"judge_base": 1, "total": 1}
    done = run_in(study, JUDGED, *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    found = pd.read_parquet(study / JUDGED)
    assert set(found["metric"]) == {"refusal_rate,wildguard", "over_refusal_rate,wildguard"}
    assert found.loc[found["primary"], "metric"].tolist() == ["refusal_rate,wildguard"]
    assert planned(study, JUDGED) == {}
    set_judge(study, 4)
    assert planned(study, JUDGED) == {"judge_base": 1, "total": 1}


def test_judges_are_asked_where_the_study_has_them(clone: Path) -> None:
    assert not [rule for rule in planned(clone) if rule.startswith("judge_")]
    set_judge(clone, 8)
    found = planned(clone, JUDGED)
    assert (found["judge_base"], found["evaluate_base"]) == (1, 1)
