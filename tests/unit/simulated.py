"""Studies whose truth is known: scores by item of all models, and what analyses measure of pairs and examples."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from types import MappingProxyType

import numpy as np
import pandas as pd
from scipy.special import ndtri

from mergetime.analysis.bias_variance import Decomposition, Term, slopes, table
from mergetime.claims.evidence import Scores
from mergetime.claims.resampling import bootstrap

MULTIPLES = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0]
ITEM = ["task", "item", "copy", "stem"]
DOMAINS = ["math", "code", "safety"]
Levels = Callable[[str, float], float]
"""The true score, as a share, of a method ("base" and "expert" too) at a duration."""
_NOTHING: Mapping[str, float] = MappingProxyType({})


def flat(_: str, __: float) -> float:
    """No effect of anything."""
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


def peaking(at: float) -> Levels:
    """TIES is best at one duration; all else is flat."""
    return lambda method, multiple: 0.6 - 0.1 * abs(np.log2((multiple or 1) / at)) if method == "ties" else 0.3


def scores(
    seed: int,
    level: Levels,
    items: int = 100,
    methods: tuple[str, ...] = ("ties", "simple_average"),
    alike: Mapping[str, float] = _NOTHING,
    domains: Sequence[str] = DOMAINS,
) -> Scores:
    """One base's scores on a benchmark a domain, resampled: items differ in difficulty, which all models share.

    Args:
        seed: of the draw of items and answers.
        level: the truth.
        items: of each benchmark.
        methods: the merge methods.
        alike: by method, the share of what is its own in its answers that is the same at all durations; 0 if not given.
        domains: one benchmark each.
    """
    generator = np.random.default_rng(seed)
    columns, index = _axes(methods, tuple(domains), items)
    truth = np.array([level(method or kind, multiple) for kind, _, method, _, multiple in columns])
    share = np.array([alike.get(method, 0.0) for _, _, method, _, _ in columns])
    codes = pd.factorize(columns.get_level_values(2))[0]
    matrices = {}
    for domain in domains:
        hard = generator.standard_normal((items, 1))
        kept = generator.standard_normal((items, codes.max() + 1))[:, codes]
        fresh = generator.standard_normal((items, len(columns)))
        latent = np.sqrt(0.3) * hard + np.sqrt(0.7 * share) * kept + np.sqrt(0.7 * (1 - share)) * fresh
        right = (latent < ndtri(truth)).astype(float)
        matrices[domain] = {domain: pd.DataFrame(right, index=index, columns=columns)}
    return bootstrap(matrices, "simulated", replicates=300, refusals=("safety",))


def pairs(
    generator: np.random.Generator, level: float, slope: float, spread: float, own: float = 0.0, experts: int = 5
) -> pd.DataFrame:
    """A measure of pairs of experts: ``level`` at the longest duration, growing by ``slope`` a doubling.

    Each expert brings half of both, more or less by a standard deviation of ``spread``; ``own`` is that of what is a
    pair's alone. Columns first, second, multiple, value.
    """
    members = np.array(list(combinations(range(experts), 2)))
    values = pair_values(generator, members, level, spread, own)[:, None]
    growth = pair_values(generator, members, slope, spread, own)[:, None]
    names = np.array([f"e{number}" for number in range(experts)])[members].repeat(len(MULTIPLES), axis=0)
    found = (values + growth * (np.log2(MULTIPLES) - np.log2(MULTIPLES[-1]))).ravel()
    columns = {"first": names[:, 0], "second": names[:, 1], "multiple": MULTIPLES * len(members), "value": found}
    return pd.DataFrame(columns)


def pair_values(
    generator: np.random.Generator, members: np.ndarray, mean: float, spread: float, own: float
) -> np.ndarray:
    """One value a pair, as in :func:`pairs`; ``members`` [pairs, 2] are the experts' numbers."""
    of_expert = generator.normal(0, spread, members.max() + 1)
    return mean + of_expert[members].sum(axis=1) + generator.normal(0, own, len(members))


def barriers(values: pd.DataFrame) -> pd.DataFrame:
    """Pairs as analysis/barriers.parquet has them, with their mean and with another space beside them."""
    found = values.rename(columns={"value": "barrier"})
    found = found.assign(base="small", space="delta", domain="all", seed=1, alpha=0.5)
    mean = found.groupby("multiple", as_index=False)["barrier"].mean().assign(base="small", space="delta", domain="all")
    return pd.concat([found, mean.assign(seed=1), found.assign(space="adapter", barrier=99.0)], ignore_index=True)


def interference(values: pd.DataFrame) -> pd.DataFrame:
    """Pairs as analysis/interference.parquet has them."""
    found = values.rename(columns={"first": "expert_a", "second": "expert_b"})
    return found.assign(base="small", scope="model", metric="sign_conflict")


VARIANCE = Term(1, "experts", None, "variance")


def diversity(
    generator: np.random.Generator, slope: float, examples: Mapping[str, int], multiples: list[float] = MULTIPLES
) -> dict[float, Decomposition]:
    """The variance between experts, example by example, by duration.

    An example's variance is skewed, 0.02 on average, and grows by the share ``slope`` a doubling, more or less.
    """
    doublings = np.log2(multiples)[:, None]
    found: dict[str, np.ndarray] = {}
    for domain, count in examples.items():
        level, growth = generator.gamma(1.0, 0.02, count), generator.normal(slope, 0.15, count)
        found[domain] = level * (1 + growth * doublings) + generator.normal(0, 0.005, (len(multiples), count))
    return {
        multiple: Decomposition(5, {VARIANCE: {domain: own[place] for domain, own in found.items()}})
        for place, multiple in enumerate(multiples)
    }


def bias_variance(pools: Mapping[float, Decomposition]) -> pd.DataFrame:
    """Decompositions by duration as analysis/bias_variance.parquet has them."""
    growing, past = slopes(pools), slopes(pools, shortest=1.0)
    frames = [table(pool, growing, past).assign(multiple=multiple) for multiple, pool in pools.items()]
    return pd.concat(frames, ignore_index=True).assign(base="small")


@cache
def _axes(methods: tuple[str, ...], domains: tuple[str, ...], items: int) -> tuple[pd.MultiIndex, pd.MultiIndex]:
    """Columns and index of score matrices, which take longer than drawing the scores."""
    index = pd.MultiIndex.from_arrays([[0] * items, range(items), [0] * items, range(items)], names=ITEM)
    return pd.MultiIndex.from_tuples(_subjects(methods, domains)), index


def _subjects(methods: tuple[str, ...], domains: Sequence[str]) -> list[tuple[str, str, str, str, float]]:
    """Columns of score matrices: kind, expert, method, space, multiple."""
    merged = [("merged", "", method, "delta", multiple) for method in methods for multiple in MULTIPLES]
    experts = [("expert", domain, "", "", multiple) for domain in domains for multiple in MULTIPLES]
    return [("base", "", "", "", 0.0), *experts, *merged]
