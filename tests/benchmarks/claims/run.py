"""Count wrong and right verdicts of every statistic of scores, on studies that are drawn from known truths."""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from mergetime.claims import judge, statistics
from mergetime.claims.claim import DecisionRule
from mergetime.claims.evidence import Evidence, Measured, Scores
from mergetime.claims.statistics import STATISTICS, Context

Reals = npt.NDArray[np.float64]

MULTIPLES = np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0])
SHAPES = ("flat", "spike", "hump", "tied second", "sparse")
ITEMS, REPLICATES, QUANTILE_DRAWS = 200, 400, 4_000
"""Test items of a study, replicates of its bootstrap, and draws behind the quantiles of comparisons with the best."""
SHARED = 0.3
"""Share of an answer's variance that is how hard the item is, for all models alike."""
FAR = {"sparse": 8.0}
"""Points between a threshold and the truth where the effect is large; 25 where nothing is given."""
EARLY, MIDDLE, LATE = 0.25, 1.0, 3.0
LOW = 0.02
"""How far a best duration is above the rest where it is hard to tell: less than the error of a difference."""
TALL = 0.35
"""How far a late best is above the rest where its gain is large."""


def level(shape: str, best: float, height: float) -> Reals:
    """True scores by duration, as shares.

    Args:
        shape: one of SHAPES.
        best: the duration of the highest score; of two that are tied, the first.
        height: how far the best is above the rest; of sparse scores three times that, of a hump what four times as
            much or a quarter of the training costs.
    """
    place = int(np.argmin(np.abs(MULTIPLES - best)))
    if shape == "flat":
        return np.full(len(MULTIPLES), 0.4)
    if shape == "hump":
        return 0.4 + height - height * np.abs(np.log2(MULTIPLES / best)) / 2
    highest = np.isin(np.arange(len(MULTIPLES)), [place, place + (1 if place == 0 else -1)])
    if shape == "tied second":
        return np.where(highest, 0.4 + height, 0.4)
    alone = best == MULTIPLES
    return np.where(alone, 0.02 + height / 3, 0.02) if shape == "sparse" else np.where(alone, 0.4 + height, 0.4)


@dataclass(frozen=True)
class Truth:
    """What is true of one base: scores by duration of two methods, of the experts on their own domain, and the base."""

    ties: Reals
    average: Reals
    expert: Reals
    base: float
    rivals: float
    """Of four further experts at T*."""

    @property
    def shares(self) -> Reals:
        """The scores of all models, in the order of :func:`cells`."""
        return np.clip(
            np.concatenate([self.ties, self.average, self.expert, [self.base], np.full(4, self.rivals)]), 0.005, 0.995
        )


def cells() -> list[Measured]:
    """What is measured of a base: all on one domain, so that it is the average."""
    merged = [Measured("merged", "", name, "delta", at, "math") for name in ("ties", "average") for at in MULTIPLES]
    experts = [Measured("expert", "math", "", "", at, "math") for at in MULTIPLES]
    rivals = [Measured("expert", f"rival{number}", "", "", MIDDLE, "math") for number in range(4)]
    return [*merged, *experts, Measured("base", "", "", "", 0.0, "math"), *rivals]


Study = tuple[list[Truth], float]
Rule = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """A claim by a statistic.

    Attributes:
        edge: the bases by shape, and the effect that follows from them.
        large: the same where the effect is large; None: as at the edge, with thresholds far from the effect.
        rules: rules at the edge, of a claim that is false there and of one that is true; None: above and at_least.
        decided: rules where the effect is large, of a claim that is true and of one that is false; None: above.
    """

    parameters: dict[str, Any]
    edge: Callable[[str], Study]
    large: Callable[[str], Study] | None = None
    rules: tuple[Rule, Rule] | None = None
    decided: tuple[Rule, Rule] | None = None


def curves(ties: Reals, average: Reals, **others: Any) -> Truth:
    return Truth(ties, average, **{"expert": ties, "base": 0.1, "rivals": 0.02, **others})


def late(shape: str, height: float = 0.12) -> Reals:
    return level(shape, LATE, height)


def alone(effect: Callable[[Reals], float], height: float = 0.12) -> Callable[[str], Study]:
    """A study of one curve, with an effect that is a function of it."""
    return lambda shape: ([curves(late(shape, height), late(shape, height))], 100 * effect(late(shape, height)))


def over_t_star(curve: Reals) -> float:
    return float(curve.max() - curve[3])


def over_longest(curve: Reals) -> float:
    return float(curve.max() - curve[-1])


def both(shape: str) -> Study:
    """Two methods with the same scores, so that the effect is 0."""
    return [curves(late(shape), late(shape))], 0.0


def multiple(shape: str) -> Study:
    """A method that is at every duration 2.5 times as good as the other at its best, so that the margin is 0."""
    return [curves(np.full(len(MULTIPLES), late(shape).max()), late(shape) / 2.5)], 0.0


def halfway(shape: str) -> Study:
    ties = late(shape)
    truth = curves(ties, ties, expert=np.full(8, ties.max()), base=0.3 * ties.max())
    return [truth], 100 * (ties.max() - 0.65 * ties.max())


def beside_experts(shape: str) -> Study:
    ties = level(shape, MIDDLE, 0.12)
    return [curves(ties, ties, expert=ties, rivals=float(ties[3]))], 0.0


def against_base(shape: str) -> Study:
    ties = level(shape, MIDDLE, 0.12)
    return [curves(ties, ties, base=float(ties[3]), expert=ties, rivals=float(ties[3]))], 0.0


def narrower(shape: str) -> Study:
    ties = late(shape)
    average = ties.mean() + (ties - ties.mean()) / 2
    return [curves(ties, average)], 100 * float(ties.std(ddof=1)) / 2


def slope(curve: Reals) -> float:
    return float(np.polyfit(np.log2(MULTIPLES), curve, 1)[0])


def rising(shape: str) -> Study:
    ties = late(shape)
    return [curves(ties[::-1], ties[::-1], expert=ties)], 100 * (slope(ties) - slope(ties[::-1]))


def peaks(*bests: float) -> Callable[[str], Study]:
    """Bases whose best durations are these; the other method's is the shortest of all."""
    return lambda shape: ([curves(level(shape, best, 0.25), level(shape, EARLY, 0.25)) for best in bests], np.nan)


def same_peaks(bases: int) -> Callable[[str], Study]:
    return lambda shape: ([curves(level(shape, EARLY, LOW), level(shape, EARLY, LOW))] * bases, 0.0)


TIES = {"method": "ties"}
PAIR = {"first": "ties", "second": "average"}
EITHER = ({"above": 0.0}, {"below": 0.0})
CASES = {
    "peak": Case(
        TIES,
        same_peaks(1),
        peaks(EARLY),
        ({"at_least": 0.5}, {"at_most": 0.25}),
        ({"at_most": 0.75}, {"at_least": 1.5}),
    ),
    "peak_gap": Case({"later": "ties", "earlier": "average"}, same_peaks(1), peaks(5.0), decided=EITHER),
    "peak_rank_by_size": Case(TIES, same_peaks(3), peaks(0.25, 1.0, 5.0), decided=EITHER),
    "gain_over_t_star": Case(TIES, alone(over_t_star), alone(over_t_star, TALL)),
    "loss_to_longest": Case(TIES, alone(over_longest), alone(over_longest, TALL)),
    "best_margin": Case(PAIR | {"factor": 2.5}, multiple),
    "best_of": Case({"methods": ["ties"]}, both),
    "halfway_margin": Case(TIES, halfway),
    "over_best_expert": Case(TIES, beside_experts),
    "slope": Case(TIES, alone(slope)),
    "slope_gap": Case(TIES, rising),
    "difference": Case(PAIR, both),
    "spread_gap": Case({"wide": "ties", "narrow": "average"}, narrower),
    "over_base": Case(TIES, against_base),
    "experts_over_base": Case({}, against_base),
}


@dataclass(frozen=True)
class Draw:
    """Items of a bootstrap, the same for all studies: how often each is in a replicate, and whether it is left out."""

    counts: Reals
    left_out: Reals


def resampling(generator: np.random.Generator) -> Draw:
    counts = generator.multinomial(ITEMS, np.full(ITEMS, 1 / ITEMS), size=REPLICATES).astype(float)
    return Draw(counts / ITEMS, (counts == 0) / (counts == 0).sum(axis=1, keepdims=True))


def drawn(generator: np.random.Generator, truth: Truth, draw: Draw) -> Scores:
    """The scores of a base whose models answer right with the true probabilities, and are alike in what is hard."""
    shares = truth.shares
    hard, fresh = generator.standard_normal((ITEMS, 1)), generator.standard_normal((ITEMS, len(shares)))
    right = 100.0 * (np.sqrt(SHARED) * hard + np.sqrt(1 - SHARED) * fresh < ndtri(shares))
    offered = {
        "cells": cells(),
        "point": right.mean(axis=0),
        "drawn": draw.counts @ right,
        "left_out": draw.left_out @ right,
        "covariance": np.cov(right.T) / ITEMS,
        "by_seed": right.mean(axis=0)[:, None],
        "freedom": {"math": ITEMS - 1},
        "items": {"math": ITEMS},
    }
    # Of a checkout to compare with, scores may hold other arrays.
    return Scores(**{one.name: offered[one.name] for one in fields(Scores) if one.name in offered})


def verdict(name: str, scores: list[Scores], rules: Sequence[Rule]) -> list[str]:
    """What the rules say of a statistic."""
    evidence = Evidence({f"base{number}": of_base for number, of_base in enumerate(scores)}, {})
    result = STATISTICS[name].function(Context(evidence, "base0", "delta"), **CASES[name].parameters)
    decide = [DecisionRule.model_validate(rule) for rule in rules]
    if not hasattr(judge, "decided"):
        return [rule.decide(*(getattr(judge.interval(result), end) for end in ("low", "high"))) for rule in decide]
    return [judge.decided(rule, result) for rule in decide]


@dataclass
class Counts:
    """How many studies ended in each verdict, of those where the rule is at the effect and of those where it is far."""

    edge: Counter[str] = field(default_factory=Counter)
    large: Counter[str] = field(default_factory=Counter)


def outcomes(studies: int, names: list[str]) -> Iterator[tuple[str, str, Counts]]:
    """The verdicts on every statistic, in every shape: wrong ones at the edge of the rule, right ones far from it."""
    draw = resampling(np.random.default_rng(1))
    for name in names:
        case = CASES[name]
        for shape in SHAPES:
            counts, far = Counts(), FAR.get(shape, 25.0)
            truths, effect = case.edge(shape)
            at_edge = list(case.rules or ({"above": effect + 1e-6}, {"at_least": effect - 1e-6}))
            large, large_effect = case.large(shape) if case.large else (truths, effect)
            # A highest score that has another among those that it is the highest of is never below that.
            least = max(large_effect - far, 0.0) if case.large else large_effect - far
            decided = list(case.decided or ({"above": least}, {"above": large_effect + far}))
            generator = np.random.default_rng([SHAPES.index(shape), *name.encode()])
            for _ in range(studies):
                study = [drawn(generator, truth, draw) for truth in truths]
                if not case.large:
                    at, further = np.split(np.array(verdict(name, study, at_edge + decided)), 2)
                    count(counts.edge, *at)
                    count(counts.large, *further)
                    continue
                count(counts.edge, *verdict(name, study, at_edge))
                if shape != "flat":
                    study = [drawn(generator, truth, draw) for truth in large]
                    count(counts.large, *verdict(name, study, decided))
            yield name, shape, counts


def count(counts: Counter[str], first: str, second: str) -> None:
    """Whether the first of two rules is said to be satisfied, and the second to be violated."""
    counts["supported"] += first == "supported"
    counts["contradicted"] += second == "contradicted"


def measured(checkout: Path, studies: int, names: list[str]) -> dict[str, Any]:
    """The counts with the package of a checkout, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "scripts")}
    command = [sys.executable, __file__, "--json", "--studies", str(studies), "--statistics", *names]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def own(studies: int, names: list[str]) -> dict[str, Any]:
    """The counts with the package that is imported."""
    # A checkout to compare with may have no such module.
    modules = (statistics, sys.modules.get("mergetime.claims.margins"))
    for module, comparison in itertools.product(modules, ("best_set", "margin_of_best")):
        if hasattr(module, comparison):
            # 20,000 draws know a quantile better than a thousand studies can tell.
            setattr(module, comparison, functools.partial(getattr(module, comparison), draws=QUANTILE_DRAWS))
    counts: dict[str, Any] = {}
    for name, shape, of_shape in outcomes(studies, names):
        print(name, shape, dict(of_shape.edge), dict(of_shape.large), file=sys.stderr, flush=True)
        counts.setdefault(name, {})[shape] = {"edge": of_shape.edge, "large": of_shape.large}
    return counts


def tables(versions: list[dict[str, Any]], studies: int) -> Iterator[str]:
    """A table of each kind of verdict: percent of studies, before and after where there are two versions."""
    titles = {
        ("edge", "supported"): "Supported, though false: the effect is exactly the threshold",
        ("edge", "contradicted"): "Contradicted, though true: the effect is exactly the threshold",
        ("large", "supported"): "Supported, and true: the effect is large",
        ("large", "contradicted"): "Contradicted, and false: the effect is large",
    }
    for (where, what), title in titles.items():
        yield f"\n{title}\n"
        yield f"| statistic | {' | '.join(SHAPES)} |\n|---|{'---:|' * len(SHAPES)}"
        for name, by_shape in versions[-1].items():
            row = []
            for shape in SHAPES:
                shares = [
                    100 * version[name][shape][where].get(what, np.nan) / studies
                    for version in versions
                    if name in version
                ]
                row.append("—" if not by_shape[shape][where] else " → ".join(f"{share:.1f}" for share in shares))
            yield f"| `{name}` | {' | '.join(row)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1_000, help="of each statistic and shape (%(default)s)")
    parser.add_argument("--statistics", nargs="+", default=list(CASES), choices=CASES, help="all unless given")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--json", action="store_true", help="counts instead of tables")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(own(options.studies, options.statistics)))
        return
    before = [measured(options.before, options.studies, options.statistics)] if options.before else []
    for line in tables([*before, own(options.studies, options.statistics)], options.studies):
        print(line)


if __name__ == "__main__":
    main()
