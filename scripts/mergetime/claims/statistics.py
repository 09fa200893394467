"""The statistics that claims may name: pure functions from evidence to a value with its replicates or standard error.

Scores are in percent, durations in multiples of T*. "average" as a domain is the mean over all measured domains but
those measured by refusals. A statistic raises NotTestableError where the study has not measured what it needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mergetime.analysis.bias_variance import ALL, slope_weights
from mergetime.claims.evidence import Curve, Draws, Estimate, Evidence, NotTestableError, Reals, Scores
from mergetime.claims.pairs import Pairs, of_rows, over_pairs
from mergetime.publishing.scores import AVERAGE, T_STAR

Indices = npt.NDArray[np.intp]


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


def peak(on: Context, method: str, domain: str = AVERAGE) -> Draws:
    """The duration of a method's highest score, a multiple of T*; the shortest of equals.

    Each replicate takes one of its equals at random: where few items tell durations apart, the interval holds them all.
    """
    curve = _several(on.merged(method, domain))
    if np.ptp(curve.drawn, axis=1).max() < 1e-9:
        raise NotTestableError("no item tells the durations apart")
    best = _highest(curve.drawn, f"{on.base} {on.space} {method}")
    return Draws(float(curve.multiples[curve.point.argmax()]), curve.multiples[best], curve.items)


def peak_gap(on: Context, later: str, earlier: str, domain: str = AVERAGE) -> Draws:
    """How much later one method peaks than another: log2 of the ratio of their peaks, doublings of training."""
    first, second = peak(on, later, domain), peak(on, earlier, domain)
    return Draws(
        float(np.log2(first.value / second.value)),
        np.log2(first.replicates / second.replicates),
        min(first.items, second.items),
    )


def peak_rank_by_size(on: Context, method: str, domain: str = AVERAGE) -> Draws:
    """Rank correlation of a method's peak with the size of the base (Spearman's rho over bases, smallest first).

    0 where all peaks are equal.
    """
    bases = list(on.evidence.scores)
    if len(bases) < 3:
        raise NotTestableError(f"needs at least three sizes of base; the study has {len(bases)}")
    peaks = [peak(Context(on.evidence, base, on.space), method, domain) for base in bases]
    replicates = np.stack([base_peak.replicates for base_peak in peaks], axis=1)
    value = np.array([[base_peak.value for base_peak in peaks]])
    return Draws(float(_spearman(value)[0]), _spearman(replicates), min(base_peak.items for base_peak in peaks))


def loss_to_longest(on: Context, method: str, domain: str = AVERAGE) -> Draws:
    """Points from a method's best duration down to its longest; the best is chosen on other items than scored on."""
    curve = _several(on.merged(method, domain))
    return _difference(_chosen(curve), _last(curve))


def gain_over_t_star(on: Context, method: str, domain: str = AVERAGE) -> Draws:
    """Points by which a method's best duration exceeds T*; the best is chosen on other items than scored on."""
    curve = _several(on.merged(method, domain))
    return _difference(_chosen(curve), _mean(curve.at(T_STAR)))


def slope(on: Context, method: str, domain: str = AVERAGE, shortest: float | None = None) -> Draws:
    """Points per doubling of training: the least-squares slope on log2 of the duration, from ``shortest`` on."""
    return _slope(on.merged(method, domain).within(shortest, None))


def slope_gap(on: Context, method: str, shortest: float | None = None) -> Draws:
    """Experts' slope on their own domains less that of their merges: points per doubling, from ``shortest`` on."""
    experts = _slope(on.scores.experts().within(shortest, None))
    return _difference(experts, _slope(on.merged(method, AVERAGE).within(shortest, None)))


def difference(on: Context, first: str, second: str, domain: str = AVERAGE) -> Draws:
    """Points by which one method exceeds another: the mean over the durations that both have."""
    first_curve, second_curve = on.merged(first, domain), on.merged(second, domain)
    shared = np.intersect1d(first_curve.multiples, second_curve.multiples)
    first_curve = first_curve.of(np.isin(first_curve.multiples, shared), f"both {first} and {second}")
    second_curve = second_curve.of(np.isin(second_curve.multiples, shared), f"both {first} and {second}")
    return _difference(_mean(first_curve), _mean(second_curve))


def best_margin(on: Context, first: str, second: str, domain: str = AVERAGE, factor: float = 1.0) -> Draws:
    """Points by which the best of one method exceeds ``factor`` times the best of another."""
    first_best, second_best = (_chosen(_several(on.merged(method, domain))) for method in (first, second))
    return Draws(
        first_best.value - factor * second_best.value,
        first_best.replicates - factor * second_best.replicates,
        first_best.items,
    )


def best_of(on: Context, methods: list[str], domain: str = AVERAGE) -> Draws:
    """Points by which the best merge of these methods exceeds the best of all other methods in the same space.

    Method and duration are both chosen on other items than they are scored on.
    """
    known = [method for method, spaces in on.scores.spaces.items() if on.space in spaces]
    ours, others = ([name for name in known if (name in methods) == chosen] for chosen in (True, False))
    if not ours or not others:
        raise NotTestableError(
            f"needs {' or '.join(methods)} and another method in one space; there is {', '.join(known)}"
        )
    return _difference(*(_chosen(_joined([on.merged(name, domain) for name in names])) for names in (ours, others)))


def spread_gap(on: Context, wide: str, narrow: str, domain: str = AVERAGE) -> Draws:
    """How much more one method varies over durations than another: difference of standard deviations, points."""
    return _difference(*(_spread(_several(on.merged(method, domain))) for method in (wide, narrow)))


def halfway_margin(on: Context, method: str) -> Draws:
    """Points by which a method's best exceeds the middle between the base and the experts at T*.

    Above 0, it recovers more than half of the gap; unlike the share itself, this stays finite where the gap is small.
    """
    best = _chosen(_several(on.merged(method, AVERAGE)))
    base, experts = _mean(on.scores.base()), _mean(on.scores.experts().at(T_STAR))
    return Draws(
        best.value - (base.value + experts.value) / 2,
        best.replicates - (base.replicates + experts.replicates) / 2,
        best.items,
    )


def over_base(on: Context, method: str, domain: str = AVERAGE, multiple: float = T_STAR) -> Draws:
    """Points by which a merge at one duration exceeds the untrained base."""
    return _difference(_mean(on.merged(method, domain).at(multiple)), _mean(on.scores.base(domain)))


def over_best_expert(on: Context, method: str, multiple: float = T_STAR) -> Draws:
    """Points by which a merge exceeds the best single expert of its duration, each averaged over all domains.

    The best expert is chosen on other items than it is scored on.
    """
    experts = _experts(on, multiple)
    return _difference(_mean(on.merged(method, AVERAGE).at(multiple)), _chosen(experts))


def experts_over_base(on: Context, multiple: float = T_STAR) -> Draws:
    """Points by which the mean expert exceeds the untrained base, both averaged over all domains."""
    experts = _experts(on, multiple)
    return _difference(_mean(experts), _mean(on.scores.base()))


def barrier_level(on: Context, interpolated: str = "delta") -> Estimate:
    """The mean loss barrier between pairs of experts at the longest duration, nats per response token."""
    pairs = _barriers(on, interpolated)
    return over_pairs(pairs.members, pairs.values[:, -1])


def barrier_slope(on: Context, interpolated: str = "delta") -> Estimate:
    """Growth of the mean loss barrier between pairs of experts: nats per response token and doubling of training."""
    return _pair_slope(_barriers(on, interpolated))


def interference_slope(on: Context, metric: str) -> Estimate:
    """Growth of a measure of interference between pairs of experts: its unit per doubling of training."""
    rows = on.evidence.analysis("interference", on.base)
    rows = rows[(rows["scope"] == "model") & (rows["metric"] == metric) & rows["expert_b"].notna()]
    return _pair_slope(of_rows(rows.rename(columns={"expert_a": "first", "expert_b": "second"}), metric))


def term_slope(on: Context, term: str, over: str = "experts") -> Estimate:
    """Growth of a term of the decomposition of error (mean over domains): squared probability per doubling.

    Each domain's slope has its error over examples, paired between durations: ``slope_stderr`` of
    :mod:`mergetime.analysis.bias_variance`. Seeds share the examples, so their mean is given the mean of their errors,
    its upper bound.
    """
    rows = on.evidence.analysis("bias_variance", on.base)
    rows = rows[(rows["term"] == term) & (rows["over"] == over) & (rows["domain"] != ALL)]
    if rows.empty:
        raise NotTestableError(f"analysis/bias_variance.parquet has no {term} over {over} of {on.base}")
    rows = rows[rows["slope_stderr"].notna()]
    if rows.empty:
        raise NotTestableError("needs at least two durations, and two examples of a domain")
    means = rows.groupby("domain")[["slope", "slope_stderr", "examples"]].mean()
    return over_domains(*(means[name].to_numpy(dtype=float) for name in ("slope", "slope_stderr", "examples")))


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
    """A statistic, what it is computed per, and the unit of its value."""

    function: Callable[..., Draws | Estimate]
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
    "best_margin": Statistic(best_margin, "points"),
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
    return _joined([on.scores.expert(name).at(multiple) for name in names])


def _several(curve: Curve) -> Curve:
    if len(curve.multiples) < 2:
        raise NotTestableError("needs at least two durations")
    return curve


def _chosen(curve: Curve) -> Draws:
    """The score of the best duration, chosen for each replicate on the items that it left out.

    The value is the mean over replicates: the data themselves leave nothing out.
    """
    replicates = np.take_along_axis(curve.drawn, _highest(curve.left_out)[:, None], axis=1)[:, 0]
    return Draws(float(replicates.mean()), replicates, curve.items)


def _highest(scores: Reals, seed: str = "") -> Indices:
    """The place of the highest score of each row, one of equals at random: the first would favour short durations."""
    tie_breaks = np.random.default_rng(list(seed.encode())).uniform(0, 1e-9, scores.shape)
    places: Indices = (scores + tie_breaks).argmax(axis=1)
    return places


def _last(curve: Curve) -> Draws:
    return Draws(float(curve.point[-1]), curve.drawn[:, -1], curve.items)


def _mean(curve: Curve) -> Draws:
    return Draws(float(curve.point.mean()), curve.drawn.mean(axis=1), curve.items)


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


def _joined(curves: Sequence[Curve]) -> Curve:
    """Several curves as one, to choose among all their points."""
    return Curve(
        np.concatenate([curve.multiples for curve in curves]),
        np.concatenate([curve.point for curve in curves]),
        np.concatenate([curve.drawn for curve in curves], axis=1),
        np.concatenate([curve.left_out for curve in curves], axis=1),
        min(curve.items for curve in curves),
    )


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


def _barriers(on: Context, interpolated: str) -> Pairs:
    rows = on.evidence.analysis("barriers", on.base)
    rows = rows[(rows["space"] == interpolated) & (rows["domain"] == ALL) & rows["first"].notna()]
    return of_rows(rows.rename(columns={"barrier": "value"}), f"barriers in {interpolated} space")
