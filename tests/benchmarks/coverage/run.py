"""How often intervals, verdicts and best sets hold a truth that is known, as they were and as they are: Markdown tables.

Right and wrong answers are drawn as in ``tests/unit/test_coverage.py``: what is hard about an item is hard for all.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from mergetime.publishing.markdown import pipes
from mergetime.uncertainty.comparisons import best_set
from mergetime.uncertainty.estimates import Codes, Vector, estimate, with_training
from mergetime.uncertainty.proportions import NORMAL_95, design_effect, intervals
from tests.unit.test_coverage import answers

DURATIONS = [f"{multiple:g}x" for multiple in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5)]
QUANTILE_DRAWS = 1_000
NOISE = 0.03
Rows = list[list[str]]
Generator = np.random.Generator


def scores(generator: Generator, studies: int) -> Rows:
    """Whether 95 % intervals of four models of one truth, among eight, hold it: 1.96 errors, and Wilson's."""
    benchmarks = {"100 items": np.arange(100), "400 items": np.arange(400), "100 questions in 4 languages": _asked(100)}
    rows = []
    for share in (0.01, 0.03, 0.1, 0.5, 0.97, 0.99):
        for name, sources in benchmarks.items():
            truth = np.array([share] * 4 + [0.4] * 4)
            held = []
            for _ in range(studies):
                means = estimate(DURATIONS, answers(generator, truth[:, None], sources), clusters=sources)
                ends = intervals(means.values, means.stderr, np.full(8, float(len(sources))))
                before = np.abs(means.values - truth) <= NORMAL_95 * means.stderr
                held.append(np.array([before, (ends.low <= truth) & (truth <= ends.high)])[:, :4])
            rows.append([f"{share:.0%}", name, *_percent(np.mean(held, axis=(0, 2)))])
    return rows


def verdicts(generator: Generator, studies: int) -> Rows:
    """Whether a printed optimum is the same as ours: by two independent scores, and by the best set; 400 items."""
    rows = []
    for shared, below in itertools.product((0.4, 0.8), (0.0, 0.03, 0.06, 0.09)):
        truth = np.full(8, 0.44)
        truth[[6, 2]] = 0.52, 0.52 - below
        same = []
        for _ in range(studies):
            hard, rest = generator.standard_normal(400), generator.standard_normal((8, 400))
            right = np.sqrt(shared) * hard + np.sqrt(1 - shared) * rest < ndtri(truth)[:, None]
            means = estimate(DURATIONS, right.astype(float)[:, None])
            best, printed = int(means.values.argmax()), 2
            alone = NORMAL_95 * np.hypot(means.stderr[best], means.stderr[printed])
            kept = best_set(means, draws=QUANTILE_DRAWS)
            same.append([means.values[best] - means.values[printed] <= alone, DURATIONS[printed] in kept])
        rows.append([f"{shared:g}", f"{100 * below:.0f}", *_percent(np.mean(same, axis=0))])
    return rows


def printed_scores(generator: Generator, studies: int) -> Rows:
    """Whether a printed score of the same truth, on other questions of the kind, differs from ours."""
    rows = []
    for questions, languages in ((100, 4), (400, 4), (400, 1)):
        sources, truth = _asked(questions, languages), np.full(8, 0.45)
        items, differ = np.full(8, float(len(sources))), []
        for _ in range(studies):
            ours = estimate(DURATIONS, answers(generator, truth[:, None], sources), clusters=sources)
            printed = answers(generator, truth[:, None], sources).mean(axis=(1, 2))
            binomial = printed * (1 - printed) / items
            effects = 1.0, design_effect(ours.values, ours.stderr, items)
            gap = np.abs(ours.values - printed)
            differ.append([gap > NORMAL_95 * np.sqrt(ours.stderr**2 + effect * binomial) for effect in effects])
        rows.append([str(questions), str(languages), *_percent(np.mean(differ, axis=(0, 2)))])
    return rows


def seeds(generator: Generator, studies: int) -> Rows:
    """Whether best sets hold the first of eight durations that are equally good, and how many they hold; 1,319 items."""
    rows = []
    for count in (1, 2, 3, 5):
        for kind in ("none", "of each model", "growing with duration", "along the run"):
            held, sizes = [], []
            for _ in range(studies):
                trained = np.clip(0.5 + NOISE * _training(generator, kind, count), 0.01, 0.99)
                drawn = answers(generator, trained.reshape(-1, 1), np.arange(1319))
                means = estimate(DURATIONS, drawn.reshape(8, count, -1))
                sets = [best_set(which, draws=QUANTILE_DRAWS) for which in (means, with_training(means))]
                held.append([[name in kept for name in (DURATIONS[0], DURATIONS[-1])] for kept in sets])
                sizes.append([len(kept) for kept in sets])
            first, last = np.mean(held, axis=0).T
            size = (f"{mean:.1f}" for mean in np.mean(sizes, axis=0))
            rows.append([str(count), kind, *_percent(first), *_percent(last), *size])
    return rows


def _training(generator: Generator, kind: str, count: int) -> Vector:
    """What training adds to eight durations with each seed; standard deviation 1 on average."""
    noise: Vector = generator.standard_normal((8, count))
    if kind == "none":
        return np.zeros_like(noise)
    if kind == "growing with duration":
        growth = np.linspace(0.3, 1.5, 8)
        return noise * (growth / np.sqrt((growth**2).mean()))[:, None]
    return noise.cumsum(axis=0) / np.sqrt(4.5) if kind == "along the run" else noise


def _asked(questions: int, languages: int = 4) -> Codes:
    return np.repeat(np.arange(questions), languages)


def _percent(shares: Sequence[float] | Vector) -> Iterator[str]:
    return (f"{100 * share:.1f}" for share in shares)


PARTS = {
    "scores": (scores, ["truth", "benchmark", "before", "now"]),
    "verdicts": (verdicts, ["correlation", "points below the best", "before", "now"]),
    "printed": (printed_scores, ["questions", "languages", "before", "now"]),
    "seeds": (
        seeds,
        ["seeds", "training noise", "0.25x before", "0.25x now", "5x before", "5x now", "size before", "size now"],
    ),
}


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per row; default: 1000")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    options = parser.parse_args()
    error = 100 * math.sqrt(0.95 * 0.05 / options.studies)
    print(f"{options.studies} studies per row; 95 % is known to {error:.1f} points (one standard error)")
    for number, name in enumerate(PARTS):
        if name in options.only:
            simulate, header = PARTS[name]
            print("\n".join(["", name, "", *pipes(header, simulate(np.random.default_rng(number), options.studies))]))


if __name__ == "__main__":
    run()
