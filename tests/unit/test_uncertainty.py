"""Errors, paired comparisons and sets of the best: by hand, against SciPy, and in simulations whose truth is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from mergetime.uncertainty.comparisons import best_set, holm, margin_of_best
from mergetime.uncertainty.estimates import Difference, Estimates, average, estimate, with_training
from mergetime.uncertainty.items import ItemScores, estimates_of

DRAWS = 1_000
"""Simulated studies; a coverage of 95 % is known to 0.7 points."""


def shaped(*scores: ArrayLike) -> np.ndarray:
    """Subjects with one seed each."""
    return np.asarray(scores, dtype=float)[:, None, :]


def correlated(generator: np.random.Generator, subjects: int, items: int, shares: list[float]) -> np.ndarray:
    """Right or wrong answers of subjects that find the same items hard."""
    hard = generator.standard_normal(items) * 0.8
    own = generator.standard_normal((subjects, items)) * 0.6
    return (hard + own < stats.norm.ppf(shares)[:, None]).astype(float)[:, None, :]


# By hand, and against SciPy


def test_a_mean_has_the_textbook_error() -> None:
    found = estimate(["a"], shaped([1, 0, 0, 1, 1]))
    assert found.values[0] == pytest.approx(0.6)
    assert found.stderr[0] == pytest.approx(stats.sem([1, 0, 0, 1, 1]))
    low, high = found.interval("a")
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, 0.6, stats.sem([1, 0, 0, 1, 1])))


def test_a_paired_difference_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.random((2, 30))
        found = estimate(["x", "y"], shaped(x, y)).difference("x", "y")
        oracle = stats.ttest_rel(x, y)
        assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
        assert found.interval(0.9) == pytest.approx(tuple(oracle.confidence_interval(0.9)))


def test_an_item_of_its_own_cluster_changes_nothing() -> None:
    scores = shaped([1, 0, 0.5, 1], [0, 0, 1, 1])
    plain, single = estimate(["a", "b"], scores), estimate(["a", "b"], scores, clusters=np.arange(4))
    assert single.covariance == pytest.approx(plain.covariance)
    assert single.freedom == plain.freedom


def test_a_cluster_counts_once() -> None:
    once = estimate(["a"], shaped([1, 0, 0, 1, 1]))
    thrice = estimate(["a"], shaped([1, 0, 0, 1, 1] * 3), clusters=np.tile(np.arange(5), 3))
    assert thrice.stderr == pytest.approx(once.stderr)
    assert estimate(["a"], shaped([1, 0, 0, 1, 1] * 3)).stderr[0] < 0.6 * once.stderr[0]


def test_tasks_that_count_the_same() -> None:
    scores, tasks = shaped([1, 0, 1, 1, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 1, 1, 1, 1])
    found = estimate(["a"], scores, strata=tasks)
    assert found.values[0] == pytest.approx((1 / 2 + 3 / 6) / 2)
    errors = [stats.sem(scores[0, 0, tasks == task]) for task in (0, 1)]
    assert found.stderr[0] == pytest.approx(np.hypot(*errors) / 2)


def test_seeds_are_beside_the_items() -> None:
    scores = np.array([[[1, 0, 1, 0], [1, 1, 1, 0]]], dtype=float)
    found = estimate(["a"], scores)
    assert found.values[0] == pytest.approx(0.625)
    assert found.seed_spread[0] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    assert found.stderr[0] == pytest.approx(stats.sem([1, 0.5, 1, 0]))
    assert np.isnan(estimate(["a"], scores[:, :1]).seed_spread[0])


def test_a_macro_average() -> None:
    first, second = estimate(["a"], shaped([1, 0, 0, 1])), estimate(["a"], shaped([1, 1, 0]))
    both = average([first, second])
    assert both.values[0] == pytest.approx((0.5 + 2 / 3) / 2)
    assert both.stderr[0] == pytest.approx(np.hypot(first.stderr[0], second.stderr[0]) / 2)
    assert both.freedom == 2
    with pytest.raises(ValueError, match="the same subjects"):
        average([first, estimate(["b"], shaped([1, 0]))])


def test_too_few_items_are_refused() -> None:
    with pytest.raises(ValueError, match="1 items are too few"):
        estimate(["a"], shaped([1]))
    with pytest.raises(ValueError, match="two in every task"):
        estimate(["a"], shaped([1, 0, 1]), strata=np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="all items are of one cluster"):
        estimate(["a"], shaped([1, 0, 1]), clusters=np.zeros(3, dtype=np.int64))


def test_differences_without_noise() -> None:
    assert Difference(0.0, 0.0, 9).p_value == 1
    assert Difference(0.1, 0.0, 9).p_value == 0


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


# In simulations


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_cover_the_truth(clustered: bool) -> None:
    generator = np.random.default_rng(1)
    sources, languages = 120, 4 if clustered else 1
    covered, naive = 0, 0
    clusters = np.tile(np.arange(sources), languages)
    for _ in range(DRAWS):
        ability = np.tile(generator.standard_normal(sources), languages)
        scores = (ability + generator.standard_normal(ability.size) * 0.5 < 0.4).astype(float)
        truth = stats.norm.cdf(0.4 / np.sqrt(1.25))
        low, high = estimate(["a"], shaped(scores), clusters=clusters if clustered else None).interval("a")
        covered += low <= truth <= high
        low, high = estimate(["a"], shaped(scores)).interval("a")
        naive += low <= truth <= high
    assert covered / DRAWS == pytest.approx(0.95, abs=0.02)
    assert (naive / DRAWS < 0.80) == clustered, "ignoring clusters must cost coverage"


def test_translations_of_the_same_questions_cover_the_truth() -> None:
    generator = np.random.default_rng(6)
    sources, languages, truth = 150, 4, 0.08
    languages_of, stems = np.repeat(np.arange(languages), sources), np.tile(np.arange(sources), languages)
    # Languages differ in how hard they are, and a question is as hard for both models in each; so is what only one
    # of the two knows, which no pairing takes out.
    shares = np.array([0.3, 0.45, 0.5, 0.6])[languages_of]
    covered, naive, wider = 0, 0, []
    for _ in range(DRAWS):
        hard, known = generator.standard_normal((2, sources)) * np.sqrt([[0.3], [0.6]])
        rest = generator.standard_normal((2, stems.size)) * np.sqrt([[0.1], [0.7]])
        first = hard[stems] + known[stems] + rest[0] < stats.norm.ppf(shares + truth)
        second = hard[stems] + rest[1] < stats.norm.ppf(shares)
        scores = shaped(first, second)
        found = estimate(["a", "b"], scores, languages_of, stems)
        plain = estimate(["a", "b"], scores, languages_of)
        low, high = found.difference("a", "b").interval()
        covered += low <= truth <= high
        low, high = plain.difference("a", "b").interval()
        naive += low <= truth <= high
        wider.append(found.stderr / plain.stderr)
    assert covered / DRAWS == pytest.approx(0.95, abs=0.02)
    assert naive / DRAWS < 0.90
    assert np.mean(wider) > 1.2


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.2, 0.3], [0.62, 0.58]])
def test_intervals_of_differences_cover_the_truth(shares: list[float]) -> None:
    generator = np.random.default_rng(2)
    covered, widths = 0, []
    for _ in range(DRAWS):
        scores = correlated(generator, 2, 150, shares)
        found = estimate(["a", "b"], scores).difference("a", "b")
        low, high = found.interval()
        covered += low <= shares[0] - shares[1] <= high
        apart = np.sqrt(scores[0].var() / 150 + scores[1].var() / 150)
        widths.append(found.stderr / apart)
    assert covered / DRAWS == pytest.approx(0.95, abs=0.02)
    assert np.mean(widths) < 0.85, "pairing must pay"


@pytest.mark.parametrize(
    "shares", [[0.5] * 8, [0.2, 0.3, 0.4, 0.5, 0.48, 0.45, 0.4, 0.3], [0.3, 0.55, 0.35, 0.3, 0.25, 0.2, 0.2, 0.1]]
)
def test_the_set_holds_the_best(shares: list[float]) -> None:
    generator = np.random.default_rng(3)
    names = [f"{number}x" for number in range(8)]
    best = names[int(np.argmax(shares))]
    held, sizes = 0, []
    for _ in range(DRAWS):
        found = best_set(estimate(names, correlated(generator, 8, 200, shares)), draws=1_000)
        held += best in found
        sizes.append(len(found))
    # Where all are equal, exactly 95 % is asked for, and 1.3 points are two standard errors of the simulation.
    assert held / DRAWS >= (0.937 if len(set(shares)) == 1 else 0.95)
    assert np.mean(sizes) <= {1: 8, 6: 5, 7: 1.5}[len(set(shares))], "the set must tell apart what can be told"


def test_any_false_rejection_is_rare() -> None:
    generator = np.random.default_rng(4)
    wrong, uncorrected = 0, 0
    for _ in range(DRAWS):
        found = estimate(list("abcdefgh"), correlated(generator, 8, 150, [0.4] * 8))
        raw = [found.difference(name, "a").p_value for name in "bcdefgh"]
        wrong += min(holm(raw)) < 0.05
        uncorrected += min(raw) < 0.05
    assert wrong / DRAWS <= 0.065
    assert uncorrected / DRAWS > 0.12


def test_the_margin_of_one_subject_over_another_is_their_paired_difference() -> None:
    pair = estimate(["a", "b"], correlated(np.random.default_rng(2), 2, 1000, [0.55, 0.5]))
    margin = margin_of_best(pair.values[:1], pair.values[1:], pair.covariance, pair.freedom)
    assert margin is not None
    expected = pair.difference("a", "b")
    assert margin.value == pytest.approx(expected.value)
    # Its ends have the error that the difference would have there, which is hardly another among so many items.
    assert (margin.low, margin.high) == pytest.approx(expected.interval(), abs=2e-3)


def test_beside_one_subject_the_best_has_plain_upper_bounds_and_corrected_lower_ones() -> None:
    several = estimate([*"abcd"], correlated(np.random.default_rng(3), 4, 200, [0.5, 0.52, 0.55, 0.5]))
    margin = margin_of_best(several.values[:3], several.values[3:], several.covariance, several.freedom)
    intervals = [several.difference(name, "d").interval() for name in "abc"]
    assert margin is not None
    assert margin.high == pytest.approx(max(high for _, high in intervals), abs=2e-3)
    # Bonferroni's bounds are lower still than those of the joint distribution.
    bonferroni = [several.difference(name, "d").interval(1 - 0.05 / 3)[0] for name in "abc"]
    assert max(bonferroni) < margin.low < max(low for low, _ in intervals)


def test_a_margin_changes_its_sign_with_its_sides() -> None:
    several = estimate([*"abcde"], correlated(np.random.default_rng(4), 5, 100, [0.5, 0.6, 0.55, 0.4, 0.45]))
    there = margin_of_best(several.values[:2], several.values[2:], several.covariance, several.freedom)
    order = [2, 3, 4, 0, 1]
    turned = several.covariance[np.ix_(order, order)]
    back = margin_of_best(several.values[2:], several.values[:2], turned, several.freedom)
    assert there is not None
    assert back is not None
    assert there.low < there.value < there.high
    assert (-back.value, -back.high, -back.low) == pytest.approx((there.value, there.low, there.high), rel=0.03)


def test_a_subject_on_both_sides_bounds_the_margin_by_0() -> None:
    several = estimate([*"ab"], correlated(np.random.default_rng(5), 2, 50, [0.2, 0.8]))
    both = several.covariance[np.ix_([0, 1, 1], [0, 1, 1])]
    same = np.array([[False], [True]])
    margin = margin_of_best(several.values, several.values[1:], both, several.freedom, same)
    assert margin is not None
    assert (margin.value, margin.low, margin.high) == (0, 0, 0)


def test_there_is_no_margin_where_nothing_differs() -> None:
    same = estimate([*"ab"], shaped([1, 0, 1], [1, 0, 1]))
    assert margin_of_best(same.values[:1], same.values[1:], same.covariance, same.freedom) is None


def test_rounding_tells_no_subjects_apart() -> None:
    almost = np.array([[1.0, 1 - 1e-13], [1 - 1e-13, 1.0]])
    assert margin_of_best(np.array([5.0]), np.array([5.0]), almost, 10) is None


def test_sets_without_noise() -> None:
    scores = shaped([0.2] * 4, [0.4] * 4, [0.4] * 4)
    assert best_set(estimate(["a", "b", "c"], scores)) == ["b", "c"]
    assert best_set(estimate(["a"], scores[:1])) == ["a"]


def test_a_set_is_the_same_again_and_holds_the_highest() -> None:
    found = estimate(list("abcd"), np.random.default_rng(5).random((4, 1, 50)))
    assert best_set(found) == best_set(found)
    assert found.names[int(np.argmax(found.values))] in best_set(found)


# Over training seeds


def seeded(by_seed: ArrayLike, items: int = 400) -> Estimates:
    """Means [subjects, seeds] of many right and wrong answers, the right ones first."""
    scores = (np.arange(items) + 0.5 < items * np.asarray(by_seed, dtype=float)[:, :, None]).astype(float)
    return estimate([f"{at}x" for at in range(len(scores))], scores)


BY_SEED = np.array([[0.50, 0.44, 0.53], [0.47, 0.49, 0.48], [0.40, 0.35, 0.41], [0.44, 0.41, 0.44]])


def test_training_noise_is_the_residual_of_subjects_by_seeds() -> None:
    plain = seeded(BY_SEED)
    found = with_training(plain)
    residuals = BY_SEED - BY_SEED.mean(axis=0) - BY_SEED.mean(axis=1)[:, None] + BY_SEED.mean()
    added = (residuals**2).sum() / (3 * 2) / 3
    assert found.covariance - plain.covariance == pytest.approx(added * np.eye(4))
    pairs = [plain.difference(a, b).stderr ** 2 for a in plain.names for b in plain.names if a < b]
    of_items = np.mean(pairs)
    expected = (of_items + 2 * added) ** 2 / (of_items**2 / 399 + (2 * added) ** 2 / 6)
    assert found.freedom == np.floor(expected)
    assert found.values.tolist() == plain.values.tolist()


def test_what_a_seed_does_to_all_is_no_training_noise() -> None:
    plain, shifted = seeded(BY_SEED), seeded(np.add(BY_SEED, [0.0, 0.1, 0.2]))
    added, expected = (with_training(means).covariance - means.covariance for means in (shifted, plain))
    assert added == pytest.approx(expected)
    alike = seeded(np.tile([[0.5], [0.4]], 3))
    assert with_training(alike) is alike


def test_two_seeds_or_one_subject_tell_nothing_of_training() -> None:
    for few in (seeded(BY_SEED[:, :2]), seeded(BY_SEED[:1])):
        assert with_training(few) is few


# From samples


def samples(scores: Mapping[str, Sequence[float]], **other: Any) -> pd.DataFrame:
    """Scores of subjects on items 0, 1, ... of one benchmark."""
    rows = [
        {"subject": name, "seed": 1, "domain": "math", "benchmark": "gsm8k", "metric": "em", "split": "test"}
        | {"item": f"hash{at}", "score": score}
        for name, found in scores.items()
        for at, score in enumerate(found)
    ]
    return pd.DataFrame(rows).assign(**other)


def difference(frame: pd.DataFrame) -> Difference:
    """Subject a minus subject b."""
    return estimates_of(frame, "subject", ["a", "b"]).difference("a", "b")


def test_items_are_joined_by_what_they_are_not_by_where_they_stand() -> None:
    frame = samples({"a": [1, 0, 1, 1], "b": [0, 0, 1, 0]})
    found = difference(frame.sample(frac=1, random_state=0))
    oracle = stats.ttest_rel([1, 0, 1, 1], [0, 0, 1, 0])
    assert found.value == pytest.approx(0.5)
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.freedom == 3


def test_items_are_joined_within_their_benchmark() -> None:
    first = samples({"a": [1, 0], "b": [0, 0]})
    second = samples({"a": [1, 1], "b": [0, 1]}, benchmark="math500", split="validation")
    both = difference(pd.concat([first, second]))
    assert both.value == pytest.approx(0.5)
    assert both.stderr == pytest.approx(np.hypot(difference(first).stderr, difference(second).stderr) / 2)
    with pytest.raises(ValueError, match="no samples of c"):
        estimates_of(first, "subject", ["c"])


def test_other_items_are_refused() -> None:
    frame = samples({"a": [1, 0, 1], "b": [0, 0]})
    with pytest.raises(ValueError, match="subject b lacks items of gsm8k that others were scored on"):
        difference(frame)


def test_tasks_and_sources_from_columns() -> None:
    frame = samples({"a": [1, 0, 1, 1, 0, 0]}, task=["de", "de", "fr", "fr", "fr", "fr"], stem=list("xyxyzz"))
    equal = estimates_of(frame, "subject", ["a"], equal_tasks=["gsm8k"])
    assert equal.values[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    by_item = frame.set_index("item").loc[[f"hash{at}" for at in range(6)]]
    scores, clusters = shaped(by_item["score"].tolist()), np.array([0, 1, 0, 1, 2, 2])
    oracle = estimate(["a"], scores, clusters=clusters)
    assert estimates_of(frame, "subject", ["a"]).covariance == pytest.approx(oracle.covariance)
    oracle = estimate(["a"], scores, np.array([0, 0, 1, 1, 1, 1]), clusters)
    assert equal.covariance == pytest.approx(oracle.covariance)
    assert equal.freedom == 2


def test_categories_say_what_texts_do() -> None:
    generator = np.random.default_rng(7)
    scores = {name: generator.random(6).tolist() for name in ("a", "b")}
    frame = samples(scores, task=["de", "fr", "de", "fr", "fr", "de"] * 2, stem=list("xyxyzz") * 2)
    frame = pd.concat([frame, frame.assign(benchmark="math500", seed=1, score=1 - frame["score"])])
    texts = ["subject", "domain", "benchmark", "metric", "split", "item", "task", "stem"]
    # Categories of rows that are not there, as after reading a part of a file.
    coded = frame.assign(**{name: pd.Categorical(frame[name], sorted({*frame[name], "all"})) for name in texts})
    found, oracle = (estimates_of(rows, "subject", ["b", "a"], ["gsm8k"]) for rows in (coded, frame))
    assert (found.values.tolist(), found.freedom) == (oracle.values.tolist(), oracle.freedom)
    assert found.covariance.tolist() == oracle.covariance.tolist()
    assert found.difference("a", "b") == oracle.difference("a", "b")


def test_stems_that_none_share_change_nothing() -> None:
    frame = samples({"a": [1, 0, 1, 1, 0], "b": [0, 0, 1, 1, 1]}, task=["de", "de", "fr", "fr", "fr"] * 2)
    plain = estimates_of(frame, "subject", ["a", "b"], equal_tasks=["gsm8k"])
    single = estimates_of(frame.assign(stem=frame["item"]), "subject", ["a", "b"], equal_tasks=["gsm8k"])
    assert single.covariance == pytest.approx(plain.covariance)
    assert single.freedom == plain.freedom == 3


def test_differences_are_clustered_by_stem() -> None:
    once: dict[str, list[float]] = {"a": [1, 0, 1, 1, 0, 1], "b": [0, 0, 1, 0, 0, 1]}
    frame = samples({name: found * 2 for name, found in once.items()}, task=(["de"] * 6 + ["fr"] * 6) * 2)
    shared = difference(frame.assign(stem=[f"question{at}" for at in range(6)] * 4))
    oracle = stats.ttest_rel(once["a"], once["b"])
    assert shared.p_value == pytest.approx(oracle.pvalue), "what both languages say is said once"
    assert shared.stderr > 1.3 * difference(frame).stderr


def test_a_document_that_stands_twice_is_two_items() -> None:
    frame = samples({"a": [1, 0, 1], "b": [0, 0, 1]}).replace({"item": {"hash2": "hash0"}})
    assert estimates_of(frame, "subject", ["a", "b"]).freedom == 2


def test_seeds_and_benchmarks_of_a_domain() -> None:
    first = pd.concat([samples({"1x": [1, 0]}), samples({"1x": [1, 1]}, seed=2)])
    found = estimates_of(pd.concat([first, first.assign(benchmark="math500", score=0.0)]), "subject", ["1x"])
    assert isinstance(found, Estimates)
    assert found.values[0] == pytest.approx(0.375)
    assert found.by_seed[0] == pytest.approx([0.25, 0.5])
    with pytest.raises(ValueError, match="no samples of 2x"):
        estimates_of(first, "subject", ["2x"])


def test_discordant_items_are_counted_by_source() -> None:
    scores = shaped([1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 1])
    items = ItemScores(scores, None, None).discordant()
    assert items.tolist() == [[0, 2, 6], [2, 0, 4], [6, 4, 0]]
    sources = ItemScores(scores, None, np.array([1, 0, 0, 0, 1, 2])).discordant()
    assert sources.tolist() == [[0, 1, 3], [1, 0, 3], [3, 3, 0]]
    seeds = ItemScores(scores.reshape(1, 3, 6).repeat(2, axis=0), None, None).discordant()
    assert seeds.tolist() == [[0, 0], [0, 0]]
