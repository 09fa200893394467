"""Claims judged on simulated studies, where what is true is known."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mergetime import config, results
from mergetime.claims import claim, evidence, judge, statistics
from mergetime.claims.claim import Claim, Claims, Rule
from mergetime.claims.evidence import Evidence, Scores, bootstrap
from mergetime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MULTIPLES = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0]
ITEM = ["task", "item", "copy", "stem"]
DOMAINS = ["math", "code", "safety"]
Levels = Callable[[str, float], float]
"""The true score, as a share, of a method ("base" and "expert" too) at a duration."""


def subjects(methods: list[str]) -> list[tuple[str, str, str, str, float]]:
    """Columns of score matrices: kind, expert, method, space, multiple."""
    merged = [("merged", "", method, "delta", multiple) for method in methods for multiple in MULTIPLES]
    experts = [("expert", domain, "", "", multiple) for domain in DOMAINS for multiple in MULTIPLES]
    return [("base", "", "", "", 0.0), *experts, *merged]


def simulated(
    seed: int, level: Levels, items: int = 100, methods: tuple[str, ...] = ("ties", "simple_average")
) -> Scores:
    """A study of three benchmarks with items of different difficulty, which all models share."""
    generator = np.random.default_rng(seed)
    columns = pd.MultiIndex.from_tuples(subjects(list(methods)))
    truth = np.array([level(method or kind, multiple) for kind, _, method, _, multiple in columns])
    index = pd.MultiIndex.from_tuples([("t", str(item), 0, str(item)) for item in range(items)], names=ITEM)
    matrices = {}
    for domain in DOMAINS:
        harder = generator.normal(0, 1, (items, 1))
        chance = 1 / (1 + np.exp(-(1.15 * np.log(truth / (1 - truth)) + harder)))
        scores = (generator.random(chance.shape) < chance).astype(float)
        matrices[domain] = {domain: pd.DataFrame(scores, index=index, columns=columns)}
    return bootstrap(matrices, "simulated", replicates=300)


def verdict(scores: Scores | Mapping[str, Scores], statistic: str, rule: dict[str, Any], **parameters: Any) -> str:
    """What is said of a claim about one base, or several."""
    found = scores if isinstance(scores, Mapping) else {"small": scores}
    return str(judged(Evidence(found, {}), statistic, rule, **parameters)["verdict"].iloc[0])


def judged(found: Evidence, statistic: str, rule: dict[str, Any], **parameters: Any) -> pd.DataFrame:
    about = {"id": "c", "paper": "p", "section": "1", "claim": "so it is", "statistic": statistic}
    one = Claim.model_validate({**about, "parameters": parameters, "rule": rule})
    return judge.judged(Claims(papers={"p": "A paper"}, claims=[one]), found)


def flat(_: str, __: float) -> float:
    return 0.4


def apart(method: str, multiple: float) -> float:
    """Averages collapse with training, TIES gains until 3x; experts gain throughout; the base is low."""
    if method == "simple_average":
        return 0.7 - 0.12 * abs(np.log2(multiple / 0.25))
    if method == "ties":
        return 0.3 + 0.13 * np.log2(multiple / 0.25) if multiple <= 3 else 0.6
    return 0.25 if method == "base" else 0.4 + 0.03 * multiple


def above(method: str, multiple: float) -> float:
    """TIES is far above averages at every duration, and varies less."""
    return 0.7 if method == "ties" else 0.15 + 0.1 * abs(np.log2(multiple or 1.0))


CLAIMS = {
    "peak": ({"at_least": 1.5}, {"method": "ties"}),
    "peak_gap": ({"above": 0}, {"later": "ties", "earlier": "simple_average"}),
    "loss_to_longest": ({"above": 0}, {"method": "simple_average"}),
    "gain_over_t_star": ({"above": 0}, {"method": "ties"}),
    "slope": ({"above": 0}, {"method": "ties"}),
    "slope_gap": ({"above": 0}, {"method": "simple_average"}),
    "difference": ({"above": 0}, {"first": "ties", "second": "simple_average"}),
    "best_margin": ({"above": 0}, {"first": "ties", "second": "simple_average"}),
    "best_of": ({"above": 0}, {"methods": ["ties"]}),
    "spread_gap": ({"above": 0}, {"wide": "simple_average", "narrow": "ties"}),
    "halfway_margin": ({"above": 0}, {"method": "ties"}),
    "over_base": ({"above": 0}, {"method": "ties"}),
    "over_best_expert": ({"above": 0}, {"method": "ties"}),
    "experts_over_base": ({"above": 0}, {}),
}


def test_without_an_effect_at_most_one_claim_in_twenty_is_decided() -> None:
    draws = 100
    decided = dict.fromkeys(CLAIMS, 0)
    for seed in range(draws):
        scores = simulated(seed, flat)
        for name, (rule, parameters) in CLAIMS.items():
            decided[name] += verdict(scores, name, rule, **parameters) != "undecided"
    assert sum(decided.values()) <= 0.05 * draws * len(CLAIMS), decided
    # Each by itself: no more than an error rate of 5 % gives in all but one of a thousand such tests.
    assert max(decided.values()) <= 12, decided


def test_large_effects_are_decided_rightly() -> None:
    draws = 20
    levels: dict[str, Levels] = dict.fromkeys(CLAIMS, apart)
    # Where the two methods' best differ little, there is nothing to be right about.
    levels |= dict.fromkeys(["spread_gap", "best_margin", "best_of", "difference"], above)
    right = dict.fromkeys(CLAIMS, 0)
    for seed in range(draws):
        studies = {level: simulated(1000 + seed, level, items=300) for level in (apart, above)}
        for name in CLAIMS:
            scores = studies[levels[name]]
            rule, parameters = CLAIMS[name]
            right[name] += verdict(scores, name, rule, **parameters) == "supported"
    assert min(right.values()) >= 0.95 * draws, right


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
    scores = simulated(7, apart, items=400, methods=("ties", "simple_average", "greedy_soup"))
    assert verdict(scores, statistic, rule, **parameters) == wanted


def test_effects_have_the_size_and_the_interval_that_items_give() -> None:
    scores = simulated(3, apart, items=400)
    found = judged(Evidence({"small": scores}, {}), "over_base", {"above": 0}, method="ties").iloc[0]
    values = dict(zip(scores.cells, scores.point, strict=True))
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
    assert 0 < found.low < found.high < 11


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
    assert (by_item.point[0], by_task.point[0]) == (90, 50)
    # Within tasks all scores are equal here, so no draw within tasks changes anything.
    assert np.allclose(by_item.drawn, 90)
    assert np.allclose(by_task.drawn, 50)


def test_the_peak_moves_with_size_or_it_is_undecided() -> None:
    def peaking(at: float) -> Levels:
        return lambda method, multiple: 0.6 - 0.1 * abs(np.log2((multiple or 1) / at)) if method == "ties" else 0.3

    moving = {f"b{at:g}": simulated(5, peaking(at), items=400) for at in (0.5, 1.5, 5.0)}
    claimed = ("peak_rank_by_size", {"above": 0})
    assert verdict(moving, *claimed, method="ties") == "supported"
    assert verdict(dict(reversed(moving.items())), *claimed, method="ties") == "contradicted"
    still = {f"b{place}": simulated(place, flat) for place in range(3)}
    assert verdict(still, *claimed, method="ties") == "undecided"
    assert verdict({"b": moving["b0.5"]}, *claimed, method="ties") == "not_testable"


def pairs(slope: float, spread: float, level: float = 0.1, experts: int = 5, **other: Any) -> pd.DataFrame:
    """Barriers between pairs of experts that grow by ``slope`` a doubling, each expert by a bit more or less."""
    generator = np.random.default_rng(0)
    own = generator.normal(0, spread, experts)
    rows = [
        {
            "first": f"e{a}",
            "second": f"e{b}",
            "multiple": m,
            "barrier": level + (slope + own[a] + own[b]) * np.log2(4 * m),
        }
        for a in range(experts)
        for b in range(a + 1, experts)
        for m in MULTIPLES
    ]
    found = pd.DataFrame(rows).assign(base="small", space="delta", domain="all", seed=1)
    mean = found.groupby("multiple", as_index=False)["barrier"].mean().assign(base="small", space="delta", domain="all")
    return pd.concat([found, mean.assign(seed=1), found.assign(space="adapter", barrier=99.0)], ignore_index=True)


@pytest.mark.parametrize(
    ("slope", "spread", "wanted"),
    [(0.05, 0.005, "supported"), (-0.05, 0.005, "contradicted"), (0.0, 0.05, "undecided")],
)
def test_barriers_grow_by_their_experts(slope: float, spread: float, wanted: str) -> None:
    found = Evidence({"small": simulated(0, flat)}, {"barriers": pairs(slope, spread)})
    assert judged(found, "barrier_slope", {"above": 0})["verdict"].tolist() == [wanted]


def test_the_barriers_level_is_that_of_the_longest_duration() -> None:
    found = Evidence({"small": simulated(0, flat)}, {"barriers": pairs(0.05, 0.002)})
    row = judged(found, "barrier_level", {"below": 0.35}).iloc[0]
    assert row["effect"] == pytest.approx(0.1 + 0.05 * np.log2(20), abs=0.02)
    assert row["verdict"] == "supported"
    assert judged(found, "barrier_level", {"below": 0.3})["verdict"].tolist() == ["contradicted"]
    few = Evidence(found.scores, {"barriers": pairs(0.05, 0.0, experts=2)})
    assert "three experts or more; 2" in judged(few, "barrier_level", {"below": 0.35})["reason"].iloc[0]


def test_diversity_grows_beyond_its_errors_or_it_is_undecided() -> None:
    rows = [
        {"base": "small", "multiple": m, "over": over, "domain": domain, "term": "variance", "examples": 200}
        | {"value": 0.02 + (0.004 * np.log2(4 * m) if over == "experts" else -1.0), "stderr": 0.001}
        for m in MULTIPLES
        for over in ("experts", "examples")
        for domain in ("math", "code", "all")
    ]
    frame = pd.DataFrame(rows)
    scores = {"small": simulated(0, flat)}
    grown = judged(Evidence(scores, {"bias_variance": frame}), "term_slope", {"above": 0}, term="variance").iloc[0]
    assert grown["verdict"] == "supported"
    assert grown["effect"] == pytest.approx(0.004)
    noisy = Evidence(scores, {"bias_variance": frame.assign(stderr=0.05)})
    assert judged(noisy, "term_slope", {"above": 0}, term="variance")["verdict"].tolist() == ["undecided"]
    assert "no bias_squared" in judged(noisy, "term_slope", {"below": 0}, term="bias_squared")["reason"].iloc[0]


def test_interference_grows() -> None:
    frame = pairs(0.02, 0.001).query("space == 'delta' and first.notna()")
    frame = frame.rename(columns={"first": "expert_a", "second": "expert_b", "barrier": "value"})
    frame = frame.assign(scope="model", metric="sign_conflict")
    found = Evidence({"small": simulated(0, flat)}, {"interference": frame})
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
    assert Rule.model_validate(rule).decide(low, high) == wanted


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
    row = judged(Evidence({"small": simulated(0, flat)}, {}), statistic, {"above": 0}, **parameters).iloc[0]
    assert row["verdict"] == "not_testable"
    assert reason in row["reason"]


def test_models_that_no_item_tells_apart_prove_nothing() -> None:
    scores = simulated(0, lambda _, __: 1 - 1e-12)
    row = judged(Evidence({"small": scores}, {}), "over_base", {"between": [-1, 1]}, method="ties").iloc[0]
    assert (row["verdict"], row["reason"]) == ("not_testable", "no item tells the models apart")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistic": "peek"}, "'peek' is unknown; did you mean"),
        ({"parameters": {"methd": "ties"}}, "peak: missing a required argument: 'method'"),
        ({"rule": {}}, "exactly one of"),
        ({"rule": {"between": [2, 1]}}, "is empty"),
        ({"paper": "q"}, "paper 'q' is not under papers"),
        ({"extra": 1}, "Extra inputs"),
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
    claims = claim.load(ROOT / "config/claims/duration.yaml").claims
    count = pd.Series([one.paper for one in claims]).value_counts()
    assert count["000"] >= 12
    assert count["001"] >= 2 and count["002"] >= 2


def sample_rows(seeds: tuple[int, ...] = (1,)) -> pd.DataFrame:
    """samples.parquet of a small study in two spaces, with a document that occurs twice."""
    generator = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    nothing = dict.fromkeys(["expert", "pool", "method", "space", "duration", "multiple", "seed", "chosen"])
    same = {"study": "s", "base": "qwen3.5-demo", "base_revision": "0", "t_star_at_boundary": False, "split": "test"}
    named = [("base", {})]
    for seed in seeds:
        for m in (0.5, 1.0, 2.0):
            at = {"duration": f"{m:g}x", "multiple": m, "seed": seed}
            named += [("expert", {"expert": "multilingual", **at})]
            for method, space in (("ties", "delta"), ("ties_adapter", "adapter"), ("simple_average", "delta")):
                named += [("merged", {"pool": f"same_duration_{m:g}x", "method": method, "space": space, **at})]
    for kind, of in named:
        for domain, benchmark in (("multilingual", "locales"), ("code", "functions")):
            scores = generator.random(30) < 0.5
            for place, score in enumerate(scores):
                own = {"subject_kind": kind, "subject": f"{kind}/{sorted(of.items(), key=str)}", "domain": domain}
                item = {"benchmark": benchmark, "task": benchmark, "metric": "acc", "primary": True}
                item |= {"item": str(min(place, 28)), "stem": str(min(place, 28)), "score": float(score)}
                found.append({**same, **nothing, **of, **own, **item})
    return pd.DataFrame(found)[list(results.SAMPLES)]


def test_samples_become_scores_item_by_item() -> None:
    samples = sample_rows(seeds=(1, 2))
    scores = evidence.resampled(samples, "qwen3.5-demo", replicates=20)
    assert scores.items == {"multilingual": 30, "code": 30}
    assert scores.spaces == {"ties": ["delta", "adapter"], "simple_average": ["delta"]}
    curve = scores.merged("ties", "adapter", "code")
    rows = samples[(samples["method"] == "ties_adapter") & (samples["domain"] == "code")]
    assert curve.point == pytest.approx(100 * rows.groupby("multiple")["score"].mean().to_numpy())
    assert curve.drawn.shape == (20, 3)
    fewer = samples.drop(samples.index[(samples["method"] == "ties") & (samples["item"] == "3")])
    with pytest.raises(ValueError, match="different items of locales"):
        evidence.resampled(fewer, "qwen3.5-demo")
    other = samples.assign(pool=samples["pool"].str.replace("same", "other"), subject=samples["subject"] + "/other")
    twice = pd.concat([samples, other[other["subject_kind"] == "merged"]])
    with pytest.raises(ValueError, match=r"several pools \(other_duration, same_duration\)"):
        evidence.resampled(twice, "qwen3.5-demo")
    named = evidence.resampled(twice, "qwen3.5-demo", "same_duration", replicates=20)
    assert np.array_equal(named.drawn, scores.drawn)


def test_the_script_writes_parquet_and_markdown(tmp_path: Path) -> None:
    results.write(sample_rows(), results.SAMPLES, tmp_path / "samples.parquet")
    study = config.load(ROOT / "config/smoke.yaml")
    (tmp_path / "study.json").write_text(study.model_dump_json())
    options = ["--samples", tmp_path / "samples.parquet", "--study", tmp_path / "study.json", "--pool", "same_duration"]
    command = [sys.executable, ROOT / "scripts/judge_claims.py", *options, "--claims", ROOT / study.claims]
    command += ["--out-stem", tmp_path / "claims", "--replicates", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frame = results.read(tmp_path / "claims.parquet", judge.COLUMNS)
    claims = claim.load(ROOT / study.claims).claims
    assert list(dict.fromkeys(frame["claim"])) == [one.id for one in claims]
    assert set(frame[frame["claim"] == "ties_peaks_late"]["space"]) == {"delta", "adapter"}
    assert frame[frame["claim"] == "ties_later_than_averaging"]["space"].tolist() == ["delta"]
    assert (frame["reason"].notna() == (frame["verdict"] == "not_testable")).all()
    assert "## 001: Less Is More" in (tmp_path / "claims.md").read_text()
