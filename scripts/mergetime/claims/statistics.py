"""The statistics that claims may name: pure functions from evidence to a value and what is known of its error.

Where the best of several is concerned, the error is that of comparisons with the best, docs/claims.md says why.

Scores are in percent, durations in multiples of T*. "average" as a domain is the mean over all measured domains but
those measured by refusals. A statistic raises NotTestableError where the study has not measured what it needs.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from mergetime.analysis.barriers import hump_note, without_hump
from mergetime.analysis.bias_variance import ALL, slope_weights
from mergetime.claims.curves import Curve, joined
from mergetime.claims.evidence import Evidence, Scores
from mergetime.claims.margins import few_items, margin
from mergetime.claims.pairs import Pairs, of_rows, over_pairs
from mergetime.claims.results import (
    Bounds,
    Candidates,
    Draws,
    Estimate,
    Limit,
    NotTestableError,
    Reals,
    Result,
)
from mergetime.publishing.scores import AVERAGE, T_STAR
from mergetime.uncertainty.comparisons import best_set
from mergetime.uncertainty.estimates import LEVEL, ZERO, Estimates, with_training


@dataclass(frozen=True)
class Context:
    """What a statistic is computed on: the evidence, one base (the first, for statistics of the study), one space."""

    evidence: Evidence
    base: str
    space: str | None = None

    @property
    def scores(self) -> Scores:
        """The base's scores."""
        return self.evidence.scores[self.base]

    def merged(self, method: str, domain: str) -> Curve:
        """Merges of a method in this space, against duration."""
        return self.scores.merged(method, self.space, domain)


def peak(on: Context, method: str, domain: str = AVERAGE) -> Candidates:
    """The duration of a method's highest score, a multiple of T*, the shortest of equals; with its best set.

    The set is that of the tables of best durations, made by the same function on the same scores.
    """
    return _peak(on, method, domain, LEVEL)


def peak_gap(on: Context, later: str, earlier: str, domain: str = AVERAGE) -> Candidates:
    """How much later one method peaks than another: log2 of the ratio of their peaks, doublings of training.

    Candidates are all pairs from both best sets, each at 97.5 %, so that both hold their best with 95 %.
    """
    first, second = (_peak(on, method, domain, _each(2)) for method in (later, earlier))
    gaps, possible = (
        np.unique(np.log2(later_values)[:, None] - np.log2(earlier_values)[None, :])
        for later_values, earlier_values in ((first.values, second.values), (first.possible, second.possible))
    )
    return Candidates(float(np.log2(first.value / second.value)), gaps, possible)


def peak_rank_by_size(on: Context, method: str, domain: str = AVERAGE) -> Candidates:
    """Rank correlation of a method's peak with the size of the base (Spearman's rho over bases, smallest first).

    0 where all peaks are equal. Candidates are all choices from the bases' best sets, which together hold the best of
    all bases with 95 %.
    """
    bases = list(on.evidence.scores)
    if len(bases) < 3:
        raise NotTestableError(f"needs at least three sizes of base; the study has {len(bases)}")
    peaks = [_peak(Context(on.evidence, base, on.space), method, domain, _each(len(bases))) for base in bases]
    choices = np.array(list(itertools.product(*(base_peak.values for base_peak in peaks))))
    value = np.array([[base_peak.value for base_peak in peaks]])
    return Candidates(float(_spearman(value)[0]), np.unique(_spearman(choices)), np.array([-1.0, 0.0, 1.0]))


def loss_to_longest(on: Context, method: str, domain: str = AVERAGE) -> Bounds:
    """Points from a method's highest score over durations down to that of its longest; never negative."""
    curve = _several(on.merged(method, domain))
    best = float(curve.point.max())
    limit = Limit(best, f"the highest score is {best:.1f} %, and no score is below 0 %")
    return replace(margin(on.scores, curve, curve.at(curve.multiples[-1])), limit=limit)


def gain_over_t_star(on: Context, method: str, domain: str = AVERAGE, shortest: float | None = None) -> Bounds:
    """Points by which a method's highest score over durations, from ``shortest`` on, exceeds that of T*.

    Where T* is among these durations, it is never negative.
    """
    curve = on.merged(method, domain)
    return margin(on.scores, _several(curve.within(shortest, None)), curve.at(T_STAR), "the score at T*")


def slope(on: Context, method: str, domain: str = AVERAGE, shortest: float | None = None) -> Draws:
    """Points per doubling of training: the least-squares slope on log2 of the duration, from ``shortest`` on."""
    return _slope(on.merged(method, domain).within(shortest, None))


def slope_gap(on: Context, method: str, shortest: float | None = None) -> Draws:
    """Experts' slope on their own domains less that of their merges: points per doubling, from ``shortest`` on."""
    experts = _slope(on.scores.experts().within(shortest, None))
    return _difference(experts, _slope(on.merged(method, AVERAGE).within(shortest, None)))


def difference(on: Context, first: str, second: str, domain: str = AVERAGE) -> Bounds:
    """Points by which one method exceeds another: the mean over the durations that both have."""
    first_curve, second_curve = on.merged(first, domain), on.merged(second, domain)
    shared = np.intersect1d(first_curve.multiples, second_curve.multiples)
    first_curve = first_curve.of(np.isin(first_curve.multiples, shared), f"both {first} and {second}")
    second_curve = second_curve.of(np.isin(second_curve.multiples, shared), f"both {first} and {second}")
    return margin(on.scores, first_curve.mean(), second_curve.mean(), f"the mean of {second}")


def best_margin(on: Context, first: str, second: str, domain: str = AVERAGE, factor: float = 1.0) -> Bounds:
    """Points by which the highest score of one method over durations exceeds ``factor`` times that of another.

    Above 0, one duration of the first exceeds ``factor`` times every duration of the second.
    """
    first_curve, second_curve = (_several(on.merged(method, domain)) for method in (first, second))
    times = "" if factor == 1 else f"{factor:g} times "
    return margin(on.scores, first_curve, second_curve.times(factor), f"{times}the highest of {second}")


def best_of(
    on: Context,
    methods: list[str],
    domain: str = AVERAGE,
    shortest: float | None = None,
    longest: float | None = None,
) -> Bounds:
    """Points by which the best merge of these methods exceeds the best of all other merges in the same space.

    Where ``shortest`` or ``longest`` is given, their merges at other durations count among the others.
    """
    known = [method for method, spaces in on.scores.spaces.items() if on.space in spaces]
    ours, others = ([name for name in known if (name in methods) == chosen] for chosen in (True, False))
    if not ours or not others:
        raise NotTestableError(
            f"needs {' or '.join(methods)} and another method in one space; there is {', '.join(known)}"
        )
    first, second = (joined([on.merged(name, domain) for name in names]) for names in (ours, others))
    within = first.between(shortest, longest)
    rest = second if within.all() else joined([second, first.of(~within, "")])
    return margin(on.scores, first.within(shortest, longest), rest, "the highest of other merges")


def spread_gap(on: Context, wide: str, narrow: str, domain: str = AVERAGE) -> Draws:
    """How much more one method varies over durations than another: difference of standard deviations, points."""
    return _difference(*(_spread(_several(on.merged(method, domain))) for method in (wide, narrow)))


def halfway_margin(on: Context, method: str, shortest: float | None = None, longest: float | None = None) -> Bounds:
    """Points by which a method's highest score exceeds the middle between the base and the experts at T*.

    The highest of durations from ``shortest`` to ``longest``. Above 0, it recovers more than half of the gap; unlike
    the share itself, this stays finite where the gap is small. Experts that are below the base leave no gap.
    """
    base, experts = on.scores.base(), on.scores.experts().at(T_STAR)
    if margin(on.scores, experts, base).high <= 0:
        raise NotTestableError("the experts at T* are below the base, so that there is no gap to recover")
    middle = replace(
        experts,
        point=(base.point + experts.point) / 2,
        weights=(base.weights + experts.weights) / 2,
        answers=2 * experts.answers,
    )
    merged = _several(on.merged(method, AVERAGE)).within(shortest, longest)
    return margin(on.scores, merged, middle, "the middle between base and experts")


def over_base(on: Context, method: str, domain: str = AVERAGE, multiple: float = T_STAR) -> Bounds:
    """Points by which a merge at one duration exceeds the untrained base."""
    return margin(on.scores, on.merged(method, domain).at(multiple), on.scores.base(domain), "the base's score")


def over_best_expert(on: Context, method: str, multiple: float = T_STAR) -> Bounds:
    """Points by which a merge exceeds the best single expert of its duration, each averaged over all domains."""
    merged, experts = on.merged(method, AVERAGE).at(multiple), _experts(on, multiple)
    return margin(on.scores, merged, experts, "the highest of an expert")


def experts_over_base(on: Context, multiple: float = T_STAR) -> Bounds:
    """Points by which the mean expert exceeds the untrained base, both averaged over all domains."""
    return margin(on.scores, _experts(on, multiple).mean(), on.scores.base(), "the base's score")


def barrier_level(on: Context, interpolated: str = "delta") -> Estimate:
    """The mean loss barrier between pairs of experts at the longest duration, nats per token; never below 0."""
    rows = _barriers(on, interpolated)
    pairs = of_rows(rows, f"barriers in {interpolated} space")
    level = over_pairs(pairs.members, pairs.values[:, -1])
    return replace(level, least=0.0, remark=_hump_remark(rows, pairs.multiples[-1:]))


def barrier_slope(on: Context, interpolated: str = "delta") -> Estimate:
    """Growth of the mean loss barrier between pairs of experts: nats per response token and doubling of training."""
    rows = _barriers(on, interpolated)
    pairs = of_rows(rows, f"barriers in {interpolated} space")
    return replace(_pair_slope(pairs), remark=_hump_remark(rows, pairs.multiples))


def interference_slope(on: Context, metric: str) -> Estimate:
    """Growth of a measure of interference between pairs of experts: its unit per doubling of training."""
    rows = on.evidence.analysis("interference", on.base)
    rows = rows[(rows["scope"] == "model") & (rows["metric"] == metric) & rows["expert_b"].notna()]
    return _pair_slope(of_rows(rows.rename(columns={"expert_a": "first", "expert_b": "second"}), metric))


def term_slope(on: Context, term: str, over: str = "experts", past_t_star: bool = False) -> Estimate:
    """Growth of a term of the decomposition of error (mean over domains): squared probability per doubling.

    Over all durations, or over those from T* on. Each domain's slope has its error over examples, paired between
    durations: ``slope_stderr`` of :mod:`mergetime.analysis.bias_variance`. Seeds share the examples, so their mean is
    given the mean of their errors, its upper bound.
    """
    rows = on.evidence.analysis("bias_variance", on.base)
    growth = "slope_past_t_star" if past_t_star else "slope"
    columns = [growth, f"{growth}_stderr", "examples"]
    if not set(columns) <= set(rows.columns):
        raise NotTestableError(f"analysis/bias_variance.parquet has no column {growth}; make it again")
    rows = rows[(rows["term"] == term) & (rows["over"] == over) & (rows["domain"] != ALL)]
    if rows.empty:
        raise NotTestableError(f"analysis/bias_variance.parquet has no {term} over {over} of {on.base}")
    rows = rows[rows[f"{growth}_stderr"].notna()]
    if rows.empty:
        since = " from T* on" if past_t_star else ""
        raise NotTestableError(f"needs at least two durations{since}, and two examples of a domain")
    means = rows.groupby("domain")[columns].mean()
    return over_domains(*(means[name].to_numpy(dtype=float) for name in columns))


def over_domains(values: Reals, stderrs: Reals, examples: Reals) -> Estimate:
    """The mean over k domains, which share no examples: its error is sqrt(sum of se^2) / k.

    Degrees of freedom are Satterthwaite's (1946): (sum of se^2)^2 / sum(se^4 / (n - 1)), for n examples each.
    """
    squares = stderrs**2
    uncertain = float((squares**2 / (examples - 1)).sum())
    freedom = float(squares.sum()) ** 2 / uncertain if uncertain else np.inf
    return Estimate(float(values.mean()), float(np.sqrt(squares.sum())) / len(values), freedom)


@dataclass(frozen=True)
class Statistic:
    """A statistic, what it is computed per, and the unit of its value, which may name parameters in braces."""

    function: Callable[..., Result]
    unit: str
    per: Literal["base", "study"] = "base"


STATISTICS = {
    "peak": Statistic(peak, "multiple of T*"),
    "peak_gap": Statistic(peak_gap, "doublings"),
    "peak_rank_by_size": Statistic(peak_rank_by_size, "rank correlation", "study"),
    "loss_to_longest": Statistic(loss_to_longest, "points"),
    "gain_over_t_star": Statistic(gain_over_t_star, "points"),
    "slope": Statistic(slope, "points a doubling"),
    "slope_gap": Statistic(slope_gap, "points a doubling"),
    "difference": Statistic(difference, "points"),
    "best_margin": Statistic(best_margin, "points above {factor:g} times the other's best"),
    "best_of": Statistic(best_of, "points"),
    "spread_gap": Statistic(spread_gap, "points"),
    "halfway_margin": Statistic(halfway_margin, "points"),
    "over_base": Statistic(over_base, "points"),
    "over_best_expert": Statistic(over_best_expert, "points"),
    "experts_over_base": Statistic(experts_over_base, "points"),
    "barrier_level": Statistic(barrier_level, "nats a token"),
    "barrier_slope": Statistic(barrier_slope, "nats a token a doubling"),
    "interference_slope": Statistic(interference_slope, "a doubling"),
    "term_slope": Statistic(term_slope, "a doubling"),
}
"""The statistics that a claim may name. A new one is a function and an entry here."""

METHOD_PARAMETERS = ("method", "methods", "first", "second", "later", "earlier", "wide", "narrow")
"""The parameters that name merge methods: a claim with one is judged in each space that these merge in."""


def _experts(on: Context, multiple: float) -> Curve:
    """The experts of one duration, each averaged over all domains."""
    names = on.scores.experts_trained
    if not names:
        raise NotTestableError("the study has no experts of its own")
    return joined([on.scores.expert(name).at(multiple) for name in names])


def _several(curve: Curve) -> Curve:
    if len(curve.multiples) < 2:
        raise NotTestableError("needs at least two durations")
    return curve


def _peak(on: Context, method: str, domain: str, level: float) -> Candidates:
    """A method's best duration, and its best set at a level: over items, and over training seeds of three or more."""
    curve = _several(on.merged(method, domain))
    # As shares, as tables have them: rounded alike, equal scores are equal in both.
    point = (curve.point / 100).round(9)
    covariance = curve.weights @ on.scores.covariance @ curve.weights.T / 100**2
    spread = np.diag(covariance)[:, None] + np.diag(covariance)[None, :] - 2 * covariance
    if np.ptp(point) <= ZERO and spread.max() <= ZERO:
        raise NotTestableError("no item tells the durations apart")
    names = tuple(str(place) for place in range(len(point)))
    by_seed = curve.weights @ on.scores.by_seed / 100
    kept = best_set(with_training(Estimates(names, point, covariance, curve.freedom, by_seed)), level)
    best = int(point.argmax())
    held = np.isin(names, kept)
    return Candidates(
        float(curve.multiples[best]), curve.multiples[held], curve.multiples, few_items(on.scores, curve, best, held)
    )


def _each(sets: int) -> float:
    """The level of each of several sets that hold what they should together at :data:`LEVEL` (Bonferroni)."""
    return 1 - (1 - LEVEL) / sets


def _spread(curve: Curve) -> Draws:
    """The standard deviation over durations, without what the noise of items adds to it.

    A method that answers differently at every duration would else seem to vary more than one that always errs on the
    same items. The variance over durations of scores with noise is v + e, that of a replicate, which has the noise
    twice, v + 2 e: the bootstrap's estimate of the bias (Efron and Tibshirani 1993, An introduction to the bootstrap,
    section 10.2) is e = mean over replicates - variance on the data. A negative rest of a variance keeps its sign in
    its root, so that curves without any variation scatter about 0.
    """
    point, drawn = curve.point.var(ddof=1), curve.drawn.var(axis=1, ddof=1)
    noise = drawn.mean() - point
    return Draws(float(_signed_root(point - noise)), _signed_root(drawn - 2 * noise), curve.items)


def _signed_root(values: Reals) -> Reals:
    root: Reals = np.sign(values) * np.sqrt(np.abs(values))
    return root


def _slope(curve: Curve) -> Draws:
    line = slope_weights(_several(curve).multiples)
    return Draws(float(curve.point @ line), curve.drawn @ line, curve.items)


def _difference(first: Draws, second: Draws) -> Draws:
    return Draws(first.value - second.value, first.replicates - second.replicates, min(first.items, second.items))


def _spearman(peaks: Reals) -> Reals:
    """Spearman's rho of each row with 1, 2, 3, ...; 0 for rows of equals."""
    ranks = pd.DataFrame(peaks).rank(axis=1).to_numpy()
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    size = np.arange(peaks.shape[1]) - (peaks.shape[1] - 1) / 2
    norm = np.sqrt((ranks**2).sum(axis=1) * (size**2).sum())
    rho: Reals = np.divide(ranks @ size, norm, out=np.zeros(len(ranks)), where=norm > 0)
    return rho


def _pair_slope(pairs: Pairs) -> Estimate:
    if len(pairs.multiples) < 2:
        raise NotTestableError("needs at least two durations")
    return over_pairs(pairs.members, pairs.values @ slope_weights(pairs.multiples))


def _barriers(on: Context, interpolated: str) -> pd.DataFrame:
    """The barriers of single pairs of experts on all domains together."""
    rows = on.evidence.analysis("barriers", on.base)
    rows = rows[(rows["space"] == interpolated) & (rows["domain"] == ALL) & rows["first"].notna()]
    return rows.rename(columns={"barrier": "value"})


def _hump_remark(rows: pd.DataFrame, multiples: Reals) -> str | None:
    """What is said of the barriers at these durations that are half a difference of ends; None if there are none."""
    paths = rows[rows["multiple"].isin(multiples)]
    return hump_note(int(without_hump(paths).sum()), len(paths))
