"""Whether intervals of averages, and sets of the best, hold the truth as often as they say."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from mergetime.claims import judge
from mergetime.claims.resampling import bootstrap
from mergetime.claims.results import Draws
from mergetime.uncertainty.comparisons import best_set
from mergetime.uncertainty.estimates import Codes, Estimates, Vector, average, estimate, with_training
from tests.unit import simulated

DRAWS = 1_000
"""Simulated studies; a coverage of 95 % is known to 0.7 points."""


def answers(generator: np.random.Generator, shares: Vector, sources: Codes) -> Vector:
    """Right or wrong answers [subjects, 1, items] to items of which those of one source are hard for all alike.

    Args:
        generator: of the draw of sources and answers.
        shares: the truth, [subjects, items] or [subjects, 1].
        sources: of each item, a code from 0.
    """
    hard = generator.standard_normal(sources.max() + 1)[sources]
    own = generator.standard_normal((len(shares), sources.max() + 1))[:, sources]
    rest = generator.standard_normal((len(shares), len(sources)))
    right = np.sqrt(0.4) * hard + np.sqrt(0.3) * own + np.sqrt(0.3) * rest < ndtri(shares)
    return right.astype(float)[:, None, :]


def held(found: Estimates, truth: list[float]) -> tuple[bool, bool]:
    """Whether the intervals of the first subject, and of its difference from the second, hold the truth."""
    low, high = found.interval(found.names[0])
    apart = found.difference(*found.names).interval()
    return low <= truth[0] <= high, apart[0] <= truth[0] - truth[1] <= apart[1]


# Domains as the paper's benchmarks have them, smaller: a large one, a middling one, and one of translations.
BY_SOURCE = np.random.default_rng(0).integers(1, 7, 50)
DOMAINS = {
    "of different sizes": [np.arange(400), np.arange(80), np.arange(160), np.repeat(np.arange(60), 4)],
    "of sources of different sizes": [np.arange(400), np.arange(80), np.repeat(np.arange(50), BY_SOURCE)],
    "with few sources": [np.arange(400), np.arange(160), np.repeat(np.arange(12), 5)],
}


@pytest.mark.parametrize("domains", DOMAINS.values(), ids=DOMAINS)
def test_macro_averages_cover_the_truth(domains: list[Codes]) -> None:
    generator = np.random.default_rng(1)
    shares = np.array([[0.35, 0.6, 0.45, 0.5], [0.3, 0.65, 0.45, 0.4]])[:, : len(domains)]
    truth = shares.mean(axis=1).tolist()
    covered = []
    for _ in range(DRAWS):
        parts = [
            estimate(["a", "b"], answers(generator, shares[:, [place]], sources), clusters=sources)
            for place, sources in enumerate(domains)
        ]
        covered.append(held(average(parts), truth))
    assert np.mean(covered, axis=0) == pytest.approx([0.95, 0.95], abs=0.02)


def multilingual(sizes: list[int], shared: bool) -> tuple[Codes, Codes]:
    """Languages and sources of items: each language has so many of the questions, its own or translations of one set."""
    languages = np.repeat(np.arange(len(sizes)), sizes)
    sources = np.concatenate([np.arange(size) for size in sizes]) if shared else np.arange(sum(sizes))
    return languages, sources


@pytest.mark.parametrize(
    ("sizes", "shared"), [([100] * 4, True), ([150, 120, 60, 30], True), ([150, 80, 40, 30], False)]
)
def test_averages_over_languages_cover_the_truth(sizes: list[int], shared: bool) -> None:
    generator = np.random.default_rng(2)
    languages, sources = multilingual(sizes, shared)
    shares = np.array([[0.3, 0.45, 0.5, 0.65], [0.3, 0.4, 0.55, 0.5]])
    truth = shares.mean(axis=1).tolist()
    covered = []
    for _ in range(DRAWS):
        scores = answers(generator, shares[:, languages], sources)
        covered.append(held(estimate(["a", "b"], scores, languages, sources if shared else None), truth))
    assert np.mean(covered, axis=0) == pytest.approx([0.95, 0.95], abs=0.02)


@pytest.mark.parametrize("shared", [True, False])
def test_resampled_averages_over_languages_cover_the_truth(shared: bool) -> None:
    draws = 500
    generator = np.random.default_rng(3)
    sizes, shares = [60, 50, 40], np.array([[0.3, 0.5, 0.65]])
    languages, sources = multilingual(sizes, shared)
    rows = [(f"l{language}", str(at), 0, str(sources[at])) for at, language in enumerate(languages)]
    index = pd.MultiIndex.from_tuples(rows, names=simulated.ITEM)
    columns = pd.MultiIndex.from_tuples([("base", "", "", "", 0.0)])
    covered = 0
    for draw in range(draws):
        scores = answers(generator, shares[:, languages], sources)[:, 0].T
        matrix = pd.DataFrame(scores, index=index, columns=columns)
        found = bootstrap({"multilingual": {"arc": matrix}}, f"{draw}", {"arc": "tasks"}, replicates=500)
        interval = judge.interval(Draws(float(found.point[0]), found.drawn[:, 0], found.items["multilingual"]))
        covered += interval.low <= 100 * shares.mean() <= interval.high
    assert covered / draws == pytest.approx(0.95, abs=0.02)


TIED = [0.3, 0.4, 0.5, 0.5, 0.45, 0.4]


@pytest.mark.parametrize("sources", [np.arange(200), np.repeat(np.arange(60), 4)], ids=["items", "translations"])
def test_sets_hold_each_of_two_that_are_best(sources: Codes) -> None:
    generator = np.random.default_rng(4)
    names = [f"{number}x" for number in range(len(TIED))]
    kept, sizes = np.zeros(2), 0
    for _ in range(DRAWS):
        scores = answers(generator, np.array(TIED)[:, None], sources)
        found = best_set(estimate(names, scores, clusters=sources), draws=1_000)
        kept += [name in found for name in ("2x", "3x")]
        sizes += len(found)
    assert (kept / DRAWS >= 0.93).all(), kept
    assert sizes / DRAWS < 5.5, "the set must tell apart what can be told"


def test_sets_by_averages_over_domains_hold_the_best() -> None:
    generator = np.random.default_rng(5)
    names = [f"{number}x" for number in range(len(TIED))]
    shares = np.array([TIED, TIED[::-1], [0.4, 0.4, 0.5, 0.45, 0.4, 0.4]])
    domains = [np.arange(200), np.arange(60), np.repeat(np.arange(40), 4)]
    best = names[int(shares.mean(axis=0).argmax())]
    held_best = 0
    for _ in range(DRAWS):
        parts = [
            estimate(names, answers(generator, own[:, None], sources), clusters=sources)
            for own, sources in zip(shares, domains, strict=True)
        ]
        held_best += best in best_set(average(parts), draws=1_000)
    assert held_best / DRAWS >= 0.93


def test_sets_over_training_seeds_hold_each_that_is_best() -> None:
    """Five durations of one truth, three seeds; each model is 3 points better or worse (standard deviation)."""
    draws, names = 400, list("abcde")
    generator = np.random.default_rng(6)
    kept = []
    for _ in range(draws):
        trained = 0.5 + 0.03 * generator.standard_normal((5, 3))
        scores = answers(generator, trained.reshape(-1, 1), np.arange(1000)).reshape(5, 3, 1000)
        means = estimate(names, scores)
        kept.append([["a" in best_set(which, draws=500)] for which in (means, with_training(means))])
    of_items, of_both = np.mean(kept, axis=0)[:, 0]
    # Known to 1.1 points where it is 95 %.
    assert of_items < 0.8
    assert 0.92 <= of_both <= 0.99
