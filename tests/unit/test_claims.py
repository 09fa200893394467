"""Claims judged on simulated studies, where what is true is known."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mergetime.claims import claim, judge, resampling, results, statistics
from mergetime.claims.claim import Claim, Claims, DecisionRule
from mergetime.claims.evidence import Evidence, Scores
from mergetime.claims.pairs import over_pairs
from mergetime.claims.resampling import bootstrap
from mergetime.config import reading
from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.inputs import read as read_input
from mergetime.publishing.sets import optimal_durations
from mergetime.results import columns as tidy
from tests.unit import simulated
from tests.unit.simulated import ITEM, apart, flat, peaking

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "config/papers/duration/claims.yaml"
SCORES = simulated.scores(0, flat)
GROWS = ("term_slope", {"above": 0})


def verdict(scores: Scores | Mapping[str, Scores], statistic: str, rule: dict[str, Any], **parameters: Any) -> str:
    """What is said of a claim about one base, or several."""
    found = scores if isinstance(scores, Mapping) else {"small": scores}
    return str(judged(Evidence(found, {}), statistic, rule, **parameters)["verdict"].iloc[0])


def judged(found: Evidence, statistic: str, rule: dict[str, Any], **parameters: Any) -> pd.DataFrame:
    about = {"id": "c", "paper": "p", "section": "1", "claim": "so it is", "statistic": statistic}
    one = Claim.model_validate({**about, "parameters": parameters, "rule": rule})
    return judge.judged(Claims(papers={"p": "A paper"}, claims=[one]), found)


@pytest.mark.parametrize(
    ("statistic", "rule", "parameters", "wanted"),
    [
        ("peak", {"at_most": 0.75}, {"method": "simple_average"}, "supported"),
        ("peak", {"at_most": 0.75}, {"method": "ties"}, "contradicted"),
        ("peak", {"between": [2, 5]}, {"method": "ties"}, "supported"),
        ("loss_to_longest", {"at_least": 14}, {"method": "simple_average"}, "supported"),
        ("loss_to_longest", {"at_least": 14}, {"method": "greedy_soup"}, "contradicted"),
        ("gain_over_t_star", {"at_least": 2.5}, {"method": "ties"}, "supported"),
        ("slope", {"below": 0}, {"method": "simple_average", "shortest": 1.0}, "supported"),
        ("slope", {"below": 0}, {"method": "ties"}, "contradicted"),
        ("best_margin", {"above": 0}, {"first": "simple_average", "second": "ties", "factor": 2.5}, "contradicted"),
        ("over_base", {"above": 0}, {"method": "ties", "multiple": 3.0, "domain": "safety"}, "supported"),
        ("over_best_expert", {"below": -10}, {"method": "simple_average", "multiple": 5.0}, "supported"),
    ],
)
def test_a_large_effect_is_decided(
    statistic: str, rule: dict[str, Any], parameters: dict[str, Any], wanted: str
) -> None:
    scores = simulated.scores(7, apart, items=400, methods=("ties", "simple_average", "greedy_soup"))
    assert verdict(scores, statistic, rule, **parameters) == wanted


def test_effects_have_the_size_and_the_interval_that_items_give() -> None:
    scores = simulated.scores(3, apart, items=400)
    found = judged(Evidence({"small": scores}, {}), "over_base", {"above": 0}, method="ties").iloc[0]
    values: dict[Any, Any] = dict(zip(scores.cells, scores.point, strict=True))
    gains = [
        values["merged", "", "ties", "delta", 1.0, domain] - values["base", "", "", "", 0.0, domain]
        for domain in ("math", "code")
    ]
    assert found["effect"] == pytest.approx(np.mean(gains))
    assert found["low"] < found["effect"] < found["high"]
    # Two domains of 400 items, two models of 25 % and 56 % whose errors are little correlated.
    half = 1.96 * 100 * ((0.25 * 0.75 + 0.56 * 0.44) / 400 / 2) ** 0.5
    assert 0.6 * half < (found["high"] - found["low"]) / 2 < 1.2 * half


def test_sharing_items_narrows_differences() -> None:
    index = pd.MultiIndex.from_tuples([("t", str(item), 0, str(item)) for item in range(100)], names=ITEM)
    columns = pd.MultiIndex.from_tuples([("merged", "", name, "delta", 1.0) for name in ("ties", "simple_average")])
    first = np.arange(100) % 2 == 0
    second = first | (np.arange(100) < 10)
    matrix = pd.DataFrame(np.stack([first, second], axis=1).astype(float), index=index, columns=columns)
    found = judge.interval(
        statistics.difference(
            statistics.Context(Evidence({"b": bootstrap({"math": {"m": matrix}}, "b")}, {}), "b", "delta"),
            "simple_average",
            "ties",
        )
    )
    assert found.effect == pytest.approx(5.0)
    # Five items of a hundred differ: a standard error of 2.2 points, where unpaired models would have 7.
    assert 0 < found.low < found.high < 12


def test_translations_of_one_question_are_drawn_together() -> None:
    languages, questions = ("de", "es", "fr", "ru"), 50
    right = (np.arange(questions) < 25).astype(float)
    columns = pd.MultiIndex.from_tuples([("base", "", "", "", 0.0)])

    def spread(stem: Callable[[str, int], str]) -> float:
        rows = [(language, f"{language} {n}", 0, stem(language, n)) for language in languages for n in range(questions)]
        index = pd.MultiIndex.from_tuples(rows, names=ITEM)
        matrix = pd.DataFrame(np.tile(right, len(languages)), index=index, columns=columns)
        found = bootstrap({"multilingual": {"arc": matrix}}, "b", {"arc": "tasks"}, 2000)
        assert found.point == pytest.approx([50.0])
        return float(found.drawn.std())

    # All four say the same, so that four languages tell no more than one: 50 points / sqrt(50), not / sqrt(200).
    assert spread(lambda _, n: str(n)) == pytest.approx(100 * 0.5 / 50**0.5, rel=0.1)
    assert spread(lambda language, n: f"{language} {n}") == pytest.approx(100 * 0.5 / 200**0.5, rel=0.1)


def test_tasks_may_count_the_same_and_are_resampled_by_themselves() -> None:
    names = [("large", str(item)) for item in range(90)] + [("small", str(item)) for item in range(90, 100)]
    index = pd.MultiIndex.from_tuples([(task, item, 0, item) for task, item in names], names=ITEM)
    columns = pd.MultiIndex.from_tuples([("base", "", "", "", 0.0)])
    matrix = pd.DataFrame([[1.0]] * 90 + [[0.0]] * 10, index=index, columns=columns)
    by_item, by_task = (bootstrap({"math": {"m": matrix}}, "b", {"m": kind}, 50) for kind in ("items", "tasks"))
    assert (by_item.point[0], by_task.point[0]) == (pytest.approx(90), pytest.approx(50))
    # Within tasks all scores are equal here, so no draw within tasks changes anything.
    assert np.allclose(by_item.drawn, 90)
    assert np.allclose(by_task.drawn, 50)


def test_the_peak_moves_with_size_or_it_is_undecided() -> None:
    moving = {f"b{at:g}": simulated.scores(5, peaking(at), items=400) for at in (0.5, 1.5, 5.0)}
    claimed = ("peak_rank_by_size", {"above": 0})
    assert verdict(moving, *claimed, method="ties") == "supported"
    assert verdict(dict(reversed(moving.items())), *claimed, method="ties") == "contradicted"
    still = {f"b{place}": simulated.scores(place, flat) for place in range(3)}
    assert verdict(still, *claimed, method="ties") == "undecided"
    assert verdict({"b": moving["b0.5"]}, *claimed, method="ties") == "not_testable"


def barriers(level: float, slope: float, spread: float, experts: int = 5) -> pd.DataFrame:
    return simulated.barriers(simulated.pairs(np.random.default_rng(0), level, slope, spread, experts=experts))


@pytest.mark.parametrize(
    ("slope", "spread", "wanted"),
    [(0.05, 0.005, "supported"), (-0.05, 0.005, "contradicted"), (0.0, 0.05, "undecided")],
)
def test_barriers_grow_by_their_experts(slope: float, spread: float, wanted: str) -> None:
    found = Evidence({"small": SCORES}, {"barriers": barriers(0.1, slope, spread)})
    assert judged(found, "barrier_slope", {"above": 0})["verdict"].tolist() == [wanted]


def test_the_barriers_level_is_that_of_the_longest_duration() -> None:
    found = Evidence({"small": SCORES}, {"barriers": barriers(0.1 + 0.05 * np.log2(20), 0.05, 0.002)})
    row = judged(found, "barrier_level", {"below": 0.35}).iloc[0]
    assert row["effect"] == pytest.approx(0.1 + 0.05 * np.log2(20), abs=0.02)
    assert row["verdict"] == "supported"
    assert judged(found, "barrier_level", {"below": 0.3})["verdict"].tolist() == ["contradicted"]
    few = Evidence(found.scores, {"barriers": barriers(0.3, 0.05, 0.0, experts=2)})
    assert "three experts or more; 2" in judged(few, "barrier_level", {"below": 0.35})["reason"].iloc[0]


def test_the_level_of_barriers_is_never_below_zero() -> None:
    low = barriers(0.01, 0.0, 0.02)
    row = judged(Evidence({"small": SCORES}, {"barriers": low}), "barrier_level", {"above": 0}).iloc[0]
    assert row["low"] == 0 < row["effect"] < row["high"]
    assert row["verdict"] == "undecided"
    # What growth is per doubling may be below 0.
    assert judged(Evidence({"small": SCORES}, {"barriers": low}), "barrier_slope", {"above": 0})["low"].iloc[0] < 0


def test_a_barrier_without_a_hump_says_what_it_is() -> None:
    frame = barriers(0.1, 0.05, 0.005)
    at_end = (frame["multiple"] == 5) & frame["first"].isin(["e0"])
    ends = Evidence({"small": SCORES}, {"barriers": frame.assign(alpha=frame["alpha"].mask(at_end, 1.0))})
    half = "paths have no hump, their loss is highest at an end: there the barrier is half the difference of the ends"
    level, slope = (judged(ends, name, {"above": 0}).iloc[0] for name in ("barrier_level", "barrier_slope"))
    assert (level["remark"], slope["remark"]) == (f"4 of the 10 {half}", f"4 of the 80 {half}")
    assert judge.words(level).comment == level["remark"]
    humps = Evidence({"small": SCORES}, {"barriers": frame})
    assert pd.isna(judged(humps, "barrier_level", {"above": 0})["remark"].iloc[0])


def test_terms_grow_beyond_their_errors_or_it_is_undecided() -> None:
    rows = [
        {"base": "small", "multiple": m, "seed": seed, "over": over, "domain": domain, "term": "variance"}
        | {"examples": 200, "slope": 0.004 if over == "experts" else -1.0, "slope_stderr": 0.001}
        for m in simulated.MULTIPLES
        for seed in (1, 2)
        for over in ("experts", "examples")
        for domain in ("math", "code", "all")
    ]
    frame = pd.DataFrame(rows)
    grown = judged(Evidence({"small": SCORES}, {"bias_variance": frame}), *GROWS, term="variance").iloc[0]
    assert grown["verdict"] == "supported"
    assert grown["effect"] == pytest.approx(0.004)
    # Two seeds are no second sample, two domains are: 0.001 / sqrt(2), with twice 199 degrees of freedom.
    assert grown["high"] - 0.004 == pytest.approx(stats.t.ppf(0.975, 398) * 0.001 / 2**0.5)
    noisy = Evidence({"small": SCORES}, {"bias_variance": frame.assign(slope_stderr=0.05)})
    assert judged(noisy, *GROWS, term="variance")["verdict"].tolist() == ["undecided"]
    assert "no bias_squared" in judged(noisy, *GROWS, term="bias_squared")["reason"].iloc[0]
    past = frame.assign(slope_past_t_star=-0.004, slope_past_t_star_stderr=0.001)
    turned = Evidence({"small": SCORES}, {"bias_variance": past})
    assert judged(turned, *GROWS, term="variance", past_t_star=True)["verdict"].tolist() == ["contradicted"]
    reason = judged(noisy, *GROWS, term="variance", past_t_star=True)["reason"].iloc[0]
    assert "no column slope_past_t_star; make it again" in reason
    single = Evidence({"small": SCORES}, {"bias_variance": frame.assign(slope=np.nan, slope_stderr=np.nan)})
    assert "needs at least two durations" in judged(single, *GROWS, term="variance")["reason"].iloc[0]


def test_a_mean_over_pairs_has_the_jackknifes_error() -> None:
    generator = np.random.default_rng(0)
    members = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    values = generator.random(6)
    found = over_pairs(members, values)
    assert found.value == pytest.approx(values.mean())
    assert found.freedom == 3
    pseudo = [4 * values.mean() - 3 * values[(members != expert).all(axis=1)].mean() for expert in range(4)]
    assert found.stderr == pytest.approx(stats.sem(pseudo))
    # Where every expert brings its own and pairs nothing, it is the error of twice the experts' mean.
    own = generator.random(4)
    assert over_pairs(members, own[members].sum(axis=1)).stderr == pytest.approx(2 * stats.sem(own))
    with pytest.raises(results.NotTestableError, match="pairs without each of the experts"):
        over_pairs(members[:3], values[:3])


def test_interference_grows() -> None:
    generator = np.random.default_rng(0)
    frame = simulated.interference(simulated.pairs(generator, 0.3, 0.02, 0.001))
    found = Evidence({"small": SCORES}, {"interference": frame})
    assert judged(found, "interference_slope", {"above": 0}, metric="sign_conflict")["verdict"].tolist() == [
        "supported"
    ]


@pytest.mark.parametrize(
    ("rule", "low", "high", "wanted"),
    [
        ({"above": 0}, 0.1, 2, "supported"),
        ({"above": 0}, 0, 2, "undecided"),
        ({"above": 0}, -1, 0, "undecided"),
        ({"above": 0}, -2, -0.1, "contradicted"),
        ({"at_least": 1.5}, 1.5, 3, "supported"),
        ({"at_least": 1.5}, 1, 1.5, "undecided"),
        ({"below": 0.35}, 0.35, 0.5, "undecided"),
        ({"at_most": 0.75}, 1, 3, "contradicted"),
        ({"between": [-3, 3]}, -2, 3, "supported"),
        ({"between": [-3, 3]}, -4, 4, "undecided"),
        ({"between": [-3, 3]}, 3.5, 4, "contradicted"),
    ],
)
def test_rules_decide_on_whole_intervals(rule: dict[str, Any], low: float, high: float, wanted: str) -> None:
    assert DecisionRule.model_validate(rule).decide(low, high) == wanted


@pytest.mark.parametrize(
    ("rule", "candidates", "wanted"),
    [
        ({"at_most": 0.75}, [0.25, 0.5, 0.75], "supported"),
        ({"at_most": 0.75}, [0.5, 1.0], "undecided"),
        ({"at_most": 0.75}, [1.0, 3.0], "contradicted"),
        ({"between": [0.75, 2]}, [0.5, 3.0], "contradicted"),
        ({"above": 0}, [0.0], "contradicted"),
    ],
)
def test_rules_decide_on_whole_sets(rule: dict[str, Any], candidates: list[float], wanted: str) -> None:
    assert DecisionRule.model_validate(rule).decide_among(candidates) == wanted


@pytest.mark.parametrize(("differing", "few"), [(5, True), (6, False)])
def test_a_peak_that_few_items_tell_says_so(differing: int, few: bool) -> None:
    index = pd.MultiIndex.from_tuples([("t", str(item), 0, str(item)) for item in range(60)], names=ITEM)
    subjects = [("merged", "", "ties", "delta", at) for at in (0.5, 1.0)]
    matrix = pd.DataFrame(0.0, index=index, columns=pd.MultiIndex.from_tuples(subjects))
    matrix.iloc[:20] = 1.0
    matrix.iloc[20 : 20 + differing, 1] = 1.0
    found = Evidence({"b": bootstrap({"math": {"m": matrix}}, "b")}, {})
    row = judged(found, "peak", {"at_least": 1.0}, method="ties").iloc[0]
    assert pd.notna(row["remark"]) == few
    assert not few or row["remark"].endswith("a handful of items (‡ in tables)")


def test_scores_that_are_none_are_refused(tmp_path: Path) -> None:
    rows = sample_rows(score=lambda generator, multiple: True, draw=1)
    rows.loc[rows.index[-1], "score"] = np.nan
    rows.to_parquet(tmp_path / "samples.parquet")
    for read in (lambda file: resampling.read(file, "qwen3.5-demo"), lambda file: read_input("samples", file)):
        with pytest.raises(ValueError, match=r"samples.parquet: column score .* has an empty cell or NaN"):
            read(tmp_path / "samples.parquet")


@pytest.mark.parametrize("seed", range(4))
def test_no_verdict_on_a_peak_contradicts_the_table_of_best_durations(seed: int) -> None:
    samples = sample_rows(score=lambda generator, multiple: generator.random() < 0.3 + 0.2 * multiple, draw=seed)
    base, domains = "qwen3.5-demo", ["multilingual", "code"]
    inputs = Inputs({"results": results_of(samples), "samples": samples})
    study = Evidence({base: resampling.resampled(samples, base, replicates=20)}, {})
    judged_sets = 0
    for row in optimal_durations(inputs, base, domains).itertuples():
        best_set = [float(name.removesuffix("x")) for name in str(row.best_set).split()]
        method = str(row.method).removesuffix("_adapter")
        for rule in ({"at_least": 1.0}, {"at_least": 2.0}, {"at_most": 0.5}, {"at_most": 1.0}):
            judgements = judged(study, "peak", rule, method=method, domain=row.domain)
            about = judgements[judgements["space"] == row.space].iloc[0]
            assert about["effect"] == row.multiple
            assert [float(duration) for duration in about["candidates"].split()] == best_set
            assert pd.notna(about["remark"]) == row.few_items
            satisfied = [DecisionRule.model_validate(rule).holds(duration) for duration in best_set]
            assert (about["verdict"] == "supported") == all(satisfied)
            assert (about["verdict"] == "contradicted") == (not any(satisfied))
            judged_sets += len(best_set) < 3
    assert judged_sets, "some durations must be told apart"


@pytest.mark.parametrize(("items", "wanted"), [(5, "not_testable"), (6, "undecided")])
def test_a_handful_of_items_tells_nothing(items: int, wanted: str) -> None:
    study = Evidence({"small": simulated.scores(1, flat, items=items, domains=["math"])}, {})
    row = judged(study, "slope", {"above": 0}, method="ties").iloc[0]
    assert row["verdict"] == wanted
    assert wanted == "undecided" or row["reason"] == (
        "needs at least 6 test items, translations counted once; there are 5"
    )


@pytest.mark.parametrize("rule", [{"at_least": 9}, {"at_most": 5}])
def test_what_the_durations_decide_is_not_testable(rule: dict[str, Any]) -> None:
    row = judged(Evidence({"small": simulated.scores(7, apart)}, {}), "peak", rule, method="ties").iloc[0]
    listed = "0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5"
    reason = f"the durations that the study keeps decide it: the effect can be {listed} alone"
    assert (row["verdict"], row["reason"]) == ("not_testable", reason)


@pytest.mark.parametrize("statistic", ["gain_over_t_star", "loss_to_longest"])
def test_a_maximum_never_loses_to_what_it_is_taken_of(statistic: str) -> None:
    for seed in range(20):
        scores = simulated.scores(seed, flat, items=30, domains=["math"])
        row = judged(Evidence({"b": scores}, {}), statistic, {"at_least": 0}, method="ties").iloc[0]
        assert 0 <= row["low"] <= row["effect"] <= row["high"]


def test_a_margin_is_no_wider_than_scores_can_differ() -> None:
    scores = simulated.scores(0, flat, items=3, domains=["math"])
    compared = {"first": "ties", "second": "simple_average"}
    row = judged(Evidence({"b": scores}, {}), "best_margin", {"above": 0}, **compared, factor=2.5).iloc[0]
    assert -250 - 1e-6 <= row["low"] < row["high"] <= 100


def test_a_gain_past_t_star_is_that_of_later_durations() -> None:
    scores = simulated.scores(1, peaking(0.25), items=400)
    claimed = ("gain_over_t_star", {"at_least": 2.5})
    assert verdict(scores, *claimed, method="ties") == "supported"
    assert verdict(scores, *claimed, method="ties", shortest=1.0) == "contradicted"


def test_the_best_of_some_durations_is_compared_with_all_other_merges() -> None:
    def early(method: str, multiple: float) -> float:
        return {0.25: 0.9, 3.0: 0.6}.get(multiple, 0.3) if method == "ties" else 0.3

    scores = simulated.scores(1, early, 400)
    claimed = ("best_of", {"above": 0})
    assert verdict(scores, *claimed, methods=["ties"]) == "supported"
    # At 3x it is better than all other methods, and worse than itself at 0.25x.
    assert verdict(scores, *claimed, methods=["ties"], shortest=2.0, longest=5.0) == "contradicted"
    assert verdict(scores, *claimed, methods=["ties"], shortest=7.0) == "not_testable"


def test_half_of_the_gap_is_asked_of_the_durations_of_the_claim() -> None:
    scores = simulated.scores(1, lambda method, multiple: 0.9 if method == "ties" and multiple < 1 else 0.3, 400)
    claimed = ("halfway_margin", {"above": 0})
    assert verdict(scores, *claimed, method="ties") == "supported"
    assert verdict(scores, *claimed, method="ties", shortest=2.0, longest=5.0) == "undecided"


def test_a_claim_that_cannot_be_met_says_so() -> None:
    scores = simulated.scores(2, lambda method, _: 0.7 if method == "simple_average" else 0.9, items=400)
    study = Evidence({"b": scores}, {})
    compared = {"first": "ties", "second": "simple_average", "domain": "safety"}
    row = judged(study, "best_margin", {"above": 0}, **compared, factor=2.5).iloc[0]
    assert row["unit"] == "points above 2.5 times the other's best"
    assert row["verdict"] == "contradicted"
    assert re.fullmatch(
        r"cannot be met: 2.5 times the highest of simple_average is 1\d\d\.\d %, and no score exceeds 100 %",
        row["remark"],
    )
    assert pd.isna(judged(study, "best_margin", {"above": 0}, **compared, factor=1.1).iloc[0]["remark"])
    few = simulated.scores(2, lambda method, _: 0.4 if method == "simple_average" else 0.95, items=30)
    unsure = judged(Evidence({"b": few}, {}), "best_margin", {"above": 0}, **compared, factor=2.5).iloc[0]
    assert unsure["effect"] < -5
    assert (unsure["verdict"], unsure["remark"]) == ("undecided", None)
    low = Evidence({"b": simulated.scores(2, lambda _, multiple: 0.05 + 0.01 * multiple, items=400)}, {})
    lost = judged(low, "loss_to_longest", {"at_least": 14}, method="ties").iloc[0]
    assert lost["remark"].endswith(", and no score is below 0 %")
    assert pd.isna(judged(low, "loss_to_longest", {"at_least": 1}, method="ties").iloc[0]["remark"])


def test_best_durations_are_printed_one_by_one() -> None:
    scores = simulated.scores(1, peaking(1.0), items=100, domains=["math"])
    row = judged(Evidence({"b": scores}, {}), "peak", {"at_least": 1}, method="ties").iloc[0]
    durations = [float(duration) for duration in row["candidates"].split()]
    assert 1 < len(durations) < len(simulated.MULTIPLES)
    assert judge.words(row).interval == ", ".join(f"{duration:.2f}" for duration in durations)
    many = judge.words(pd.Series({**row, "candidates": "0 1 2 3 4 5 6 7 8", "low": 0.0, "high": 8.0}))
    assert many.interval == "0.00 to 8.00"


def test_what_is_ours_is_printed_beside_the_rule() -> None:
    claims = claim.load(CLAIMS)
    similar = next(each for each in claims.claims if each.id == "soup_refuses_like_averaging")
    assert "three points" in str(similar.ours)
    frame = judge.judged(claims, Evidence({"small": SCORES}, {}))
    assert f"between -3 and 3 (ours: {similar.ours})" in judge.markdown(frame, claims, "s")


@pytest.mark.parametrize(
    ("statistic", "parameters", "reason"),
    [
        ("peak", {"method": "slerp"}, "the study does not merge with slerp"),
        ("peak", {"method": "ties", "domain": "law"}, "no score of merges with ties in law"),
        ("over_base", {"method": "ties", "multiple": 4.0}, "the study keeps no duration of 4x"),
        ("best_of", {"methods": ["ties", "simple_average"]}, "another method in one space"),
        ("barrier_level", {}, "no analysis/barriers.parquet"),
        ("term_slope", {"term": "variance"}, "no analysis/bias_variance.parquet"),
    ],
)
def test_what_was_not_measured_is_not_testable(statistic: str, parameters: dict[str, Any], reason: str) -> None:
    row = judged(Evidence({"small": SCORES}, {}), statistic, {"above": 0}, **parameters).iloc[0]
    assert row["verdict"] == "not_testable"
    assert reason in row["reason"]


def test_durations_that_no_item_tells_apart_have_no_peak() -> None:
    scores = simulated.scores(0, lambda _, __: 1 - 1e-12)
    row = judged(Evidence({"small": scores}, {}), "peak", {"at_most": 0.75}, method="ties").iloc[0]
    assert (row["verdict"], row["reason"]) == ("not_testable", "no item tells the durations apart")


@pytest.mark.parametrize("at", [0.25, 4.0])
def test_a_single_item_of_four_proves_no_peak(at: float) -> None:
    multiples = [0.25, 1.0, 4.0]
    index = pd.MultiIndex.from_tuples([("t", str(item), 0, str(item)) for item in range(4)], names=ITEM)
    columns = pd.MultiIndex.from_tuples([("merged", "", "ties", "delta", multiple) for multiple in multiples])
    matrix = pd.DataFrame(0.0, index=index, columns=columns)
    matrix.iloc[0, multiples.index(at)] = 1.0
    scores = bootstrap({"math": {"m": matrix}}, "b")
    found = judge.interval(statistics.peak(statistics.Context(Evidence({"b": scores}, {}), "b", "delta"), "ties"))
    assert (found.effect, found.low, found.high) == (at, 0.25, 4.0)


def test_models_that_no_item_tells_apart_prove_nothing() -> None:
    scores = simulated.scores(0, lambda _, __: 1 - 1e-12)
    row = judged(Evidence({"small": scores}, {}), "over_base", {"between": [-1, 1]}, method="ties").iloc[0]
    assert (row["verdict"], row["reason"]) == ("not_testable", "no item tells the models apart")


def test_models_that_every_item_tells_apart_have_no_error() -> None:
    subjects = [("base", "", "", "", 0.0)]
    subjects += [("merged", "", name, "delta", at) for name in ("ties", "simple_average") for at in (0.5, 1.0)]
    index = pd.MultiIndex.from_tuples([("t", str(item), 0, str(item)) for item in range(20)], names=ITEM)
    matrix = pd.DataFrame(0.0, index=index, columns=pd.MultiIndex.from_tuples(subjects))
    matrix.loc[:, [subject for subject in subjects if subject[2] == "ties" and subject[4] == 1.0]] = 1.0
    found = Evidence({"b": bootstrap({"math": {"m": matrix}}, "b")}, {})
    row = judged(found, "slope", {"above": 0}, method="ties").iloc[0]
    reason = "every item shows the same difference, so that its error is not known"
    assert (row["verdict"], row["reason"]) == ("not_testable", reason)
    # A margin has the error that it would have at its ends.
    row = judged(found, "best_margin", {"above": 0}, first="ties", second="simple_average").iloc[0]
    assert (row["verdict"], row["effect"]) == ("supported", 100)
    assert 60 < row["low"] < 90
    assert row["high"] == pytest.approx(100, abs=1e-6)


def test_without_a_gap_none_is_recovered() -> None:
    scores = simulated.scores(3, apart, items=100)
    flipped = scores.point.copy()
    for place, cell in enumerate(scores.cells):
        flipped[place] = {"base": 60.0, "expert": 30.0}.get(cell.kind, 55.0)
    found = Evidence({"b": replace(scores, point=flipped)}, {})
    row = judged(found, "halfway_margin", {"above": 0}, method="ties").iloc[0]
    assert row["verdict"] == "not_testable"
    assert "the experts at T* are below the base" in row["reason"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistic": "peek"}, "'peek' is unknown; did you mean"),
        ({"parameters": {"methd": "ties"}}, "peak: missing a required argument: 'method'"),
        ({"rule": {}}, "exactly one of"),
        ({"rule": {"between": [2, 1]}}, "is empty"),
        ({"paper": "q"}, "paper 'q' is not under papers"),
        ({"extra": 1}, r"claims.0.extra: unknown key; known: claim, id"),
    ],
)
def test_malformed_claims_get_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    one = {"id": "c", "paper": "p", "section": "1", "claim": "so", "statistic": "peak", "rule": {"above": 1}}
    content = {"papers": {"p": "A paper"}, "claims": [one | {"parameters": {"method": "ties"}} | change]}
    (tmp_path / "claims.yaml").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        claim.load(tmp_path / "claims.yaml")
    assert "\n" not in str(error.value)


def test_the_file_has_claims_of_three_papers() -> None:
    claims = claim.load(CLAIMS).claims
    count = pd.Series([one.paper for one in claims]).value_counts()
    assert count["000"] >= 12
    assert count["001"] >= 2 and count["002"] >= 2


def sample_rows(
    seeds: tuple[int, ...] = (1,),
    score: Callable[[np.random.Generator, float], bool] = lambda generator, _: generator.random() < 0.5,
    draw: int = 0,
) -> pd.DataFrame:
    """samples.parquet of a small study in two spaces, with a document that occurs twice.

    Args:
        seeds: of training.
        score: draws the score of an item at a multiple of T*; 0 for the base.
        draw: seeds the scores.
    """
    generator = np.random.default_rng(draw)
    found: list[dict[str, Any]] = []
    nothing = dict.fromkeys(["expert", "pool", "method", "space", "duration", "multiple", "seed", "chosen"])
    same = {
        "study": "s",
        "base": "qwen3.5-demo",
        "base_revision": "0",
        "t_star_at_boundary": False,
        "split": "test",
    } | {"group": "test"}
    named: list[tuple[str, dict[str, Any]]] = [("base", {})]
    for seed in seeds:
        for m in (0.5, 1.0, 2.0):
            at = {"duration": f"{m:g}x", "multiple": m, "seed": seed}
            named += [("expert", {"expert": "multilingual", **at})]
            for method, space in (("ties", "delta"), ("ties_adapter", "adapter"), ("simple_average", "delta")):
                of_pool = {"pool": f"same_duration_{m:g}x", "pool_family": "same_duration", "recipe": "default"}
                algorithm = "ties" if "ties" in method else method
                named += [
                    ("merged", {**of_pool, "method": method, "algorithm": algorithm, "space": space, **at}),
                ]
    for kind, of in named:
        for domain, benchmark in (("multilingual", "locales"), ("code", "functions")):
            for place in range(30):
                own = {"subject_kind": kind, "subject": f"{kind}/{sorted(of.items(), key=str)}", "domain": domain}
                item = {"benchmark": benchmark, "task": benchmark, "metric": "acc", "primary": True}
                item |= {
                    "item": str(min(place, 28)),
                    "stem": str(min(place, 28)),
                    "score": float(score(generator, of.get("multiple", 0.0))),
                }
                found.append({**same, **nothing, **of, **own, **item})
    return pd.DataFrame(found).reindex(columns=list(tidy.SAMPLES))


def results_of(samples: pd.DataFrame) -> pd.DataFrame:
    """results.parquet of the same study: means over items."""
    of = [
        "study",
        "base",
        "subject_kind",
        "subject",
        "expert",
        "pool",
        "pool_family",
        "recipe",
        "method",
        "algorithm",
        "space",
    ]
    of += ["duration", "multiple", "seed", "split", "domain", "benchmark", "metric", "primary", "t_star_at_boundary"]
    means = samples.groupby(of, dropna=False)["score"].agg(value="mean", stderr="sem", items="size").reset_index()
    return means.reindex(columns=list(tidy.RESULTS))


def test_samples_become_scores_item_by_item() -> None:
    samples = sample_rows(seeds=(1, 2))
    scores = resampling.resampled(samples, "qwen3.5-demo", replicates=20)
    assert scores.items == {"multilingual": 29, "code": 29}, "the document that occurs twice is drawn once"
    assert scores.spaces == {"ties": ["delta", "adapter"], "simple_average": ["delta"]}
    curve = scores.merged("ties", "adapter", "code")
    rows = samples[(samples["method"] == "ties_adapter") & (samples["domain"] == "code")]
    assert curve.point == pytest.approx(100 * rows.groupby("multiple")["score"].mean().to_numpy())
    assert curve.drawn.shape == (20, 3)
    by_seed = rows.groupby(["multiple", "seed"])["score"].mean().unstack().to_numpy()
    assert curve.weights @ scores.by_seed == pytest.approx(100 * by_seed)
    assert np.ptp(scores.base("code").weights @ scores.by_seed) == 0, "a base has no seed"
    unseeded = samples.drop(samples.index[(samples["method"] == "ties") & (samples["seed"] == 2)])
    with pytest.raises(ValueError, match=r"merged ties delta 0\.5x lacks a seed of locales"):
        resampling.resampled(unseeded, "qwen3.5-demo", replicates=20)
    fewer = samples.drop(samples.index[(samples["method"] == "ties") & (samples["item"] == "3")])
    with pytest.raises(ValueError, match="different items of locales"):
        resampling.resampled(fewer, "qwen3.5-demo")
    once = samples.drop(
        samples.index[(samples["method"] == "ties") & (samples["item"] == "3") & (samples["seed"] == 2)]
    )
    with pytest.raises(ValueError, match="different items of locales"):
        resampling.resampled(once, "qwen3.5-demo")
    gap = samples["score"].where((samples["method"] != "ties") | (samples["item"] != "3") | (samples["seed"] != 2))
    with pytest.raises(ValueError, match="different items of locales"):
        resampling.resampled(samples.assign(score=gap), "qwen3.5-demo")
    other = samples.assign(
        pool_family=samples["pool_family"].str.replace("same", "other"), subject=samples["subject"] + "/other"
    )
    twice = pd.concat([samples, other[other["subject_kind"] == "merged"]])
    with pytest.raises(ValueError, match=r"several pools \(other_duration, same_duration\)"):
        resampling.resampled(twice, "qwen3.5-demo")
    named = resampling.resampled(twice, "qwen3.5-demo", "same_duration", replicates=20)
    assert np.array_equal(named.drawn, scores.drawn)
    swept = samples[samples["subject_kind"] == "merged"].assign(axis="density", axis_value=0.1, score=1.0)
    with_sweep = pd.concat([samples, swept.assign(subject=swept["subject"] + "/swept")])
    assert np.array_equal(resampling.resampled(with_sweep, "qwen3.5-demo", replicates=20).drawn, scores.drawn)


def test_the_scores_of_single_seeds_weigh_tasks_as_their_mean_does() -> None:
    samples = sample_rows(seeds=(1, 2))
    samples.loc[samples["item"].astype(int) < 9, "task"] = "other"
    for weights in ({}, {"locales": "tasks", "functions": "tasks"}):
        scores = resampling.resampled(samples, "qwen3.5-demo", weights=weights, replicates=20)
        assert scores.by_seed.mean(axis=1) == pytest.approx(scores.point)


def test_methods_are_called_by_their_algorithm_whatever_their_id() -> None:
    samples = sample_rows()
    ids = {"ties": "adapter_like", "ties_adapter": "factors"}
    renamed = samples.assign(method=samples["method"].replace(ids))
    first, second = (resampling.resampled(one, "qwen3.5-demo", replicates=20) for one in (samples, renamed))
    assert second.spaces == first.spaces
    assert np.array_equal(second.drawn, first.drawn)


def test_the_script_writes_parquet_and_markdown(tmp_path: Path) -> None:
    tables.write(sample_rows(), tidy.SAMPLES, tmp_path / "samples.parquet")
    study = reading.load(ROOT / "config/smoke.yaml")
    (tmp_path / "study.json").write_text(study.model_dump_json())
    options: list[str | Path] = [
        "--samples",
        tmp_path / "samples.parquet",
        "--study",
        tmp_path / "study.json",
        "--pool",
        "same_duration",
    ]
    command: list[str | Path] = [sys.executable, ROOT / "scripts/judge_claims.py", *options, "--claims", CLAIMS]
    command += ["--out-stem", tmp_path / "claims", "--replicates", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frame = tables.read(tmp_path / "claims.parquet", judge.COLUMNS)
    claims = claim.load(CLAIMS).claims
    assert list(dict.fromkeys(frame["claim"])) == [one.id for one in claims]
    assert set(frame[frame["claim"] == "ties_peaks_late"]["space"]) == {"delta", "adapter"}
    assert frame[frame["claim"] == "ties_later_than_averaging"]["space"].tolist() == ["delta"]
    assert (frame["reason"].notna() == (frame["verdict"] == "not_testable")).all()
    assert "## 001: Less Is More" in (tmp_path / "claims.md").read_text()
