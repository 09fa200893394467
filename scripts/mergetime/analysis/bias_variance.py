"""Where the error of merged models comes from: bias, variance and covariance of the experts that are merged.

The decomposition is that of DiWA: Rame et al. 2022, Diverse weight averaging for out-of-distribution generalization
(arXiv 2205.09739), Proposition 1, equation (BVCL), which takes over Ueda and Nakano 1996 for functional ensembles. With
p_k(x) the probability that expert k gives the reference response of example x
(:mod:`mergetime.measuring.probabilities`), the target 1, and pbar(x) = 1/K sum_k p_k(x) the mean of K predictions,

    E[(1 - pbar)^2] = bias^2 + variance / K + (1 - 1/K) covariance
    bias^2     = (1 - 1/K sum_k E p_k)^2
    variance   = 1/K sum_k Var p_k
    covariance = 1/(K (K - 1)) sum_{k != l} Cov(p_k, p_l)

holds exactly for any distribution that E, Var and Cov are taken over, if all three are of the same one. The error of a
merged model, E[(1 - p_merged)^2], differs from it by a remainder: in DiWA, where weights are averaged, one of second
order in the distance between the weights (its locality term); here also whatever a method does beyond averaging.

What is drawn at random is a choice, ``over`` in the tables; moments are the population's (divided by the number of
draws), because that is what makes the equation exact on a sample:

- ``experts``: within a seed, which experts of the pool are drawn, without repeats; for each example by itself. Then
  E p_k = pbar(x), the variance is 1/K sum_k (p_k - pbar)^2, and the covariance of two different experts is
  -variance / (K - 1): what one is above the mean, the others are below. The equation, with M in place of K, gives the
  expected error of the mean prediction of M <= K experts; variance and covariance cancel at M = K, since the whole pool
  is no longer random. Here the variance is news, how much experts differ, and the covariance follows from it.
- ``examples``: within a seed, which example of the domain is drawn. The bias is the mean error of all experts on the
  domain; the covariance says whether two experts err on the same examples.
- ``seeds``: which seed an expert was trained with, for each example by itself: the expectation over training runs
  that DiWA has, from as many runs as the study has seeds. Experts differ in their domains, so their means may differ.

Everything is kept example by example: contributions whose mean over the examples is the term, and whose standard
deviation by the root of their number its standard error. For ``examples``, where the terms are no means over examples
but functions of means, the contributions are the linearised ones (delta method). Standard errors are about other
examples, not about other seeds or experts. Over several domains the terms are means with every domain counting the
same, and their standard errors come from the spread between the domains, which are the clusters.

How a term moves with training is the least-squares slope of its values on log2 of the duration. A pool's durations are
measured on the same examples, so that their errors move together: the slope's standard error is that of the mean of the
examples' own slopes. Made from the terms' errors as if they were independent, it would be too small where examples
differ in their slopes, and too large where they differ in their level. There is a slope over all durations, and one
over those from T* on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mergetime.core.errors import UserError
from mergetime.core.tables import Column, Columns
from mergetime.measuring.columns import EXPERT, MERGED

Array = NDArray[np.float64]
ALL = "all"
"""In the column domain: the mean over all domains."""
TERMS = {
    "bias_squared": "squared distance of the experts' mean prediction from the target 1",
    "variance": "mean variance of an expert's prediction",
    "covariance": "mean covariance of two experts' predictions",
    "expected_error": "expected squared error of the mean prediction of the pool's K experts, which is bias_squared + "
    "variance / K + (1 - 1/K) covariance",
    "merged_error": "mean squared error of the method's merged model",
    "remainder": "merged_error less expected_error",
}
COLUMNS: Columns = {
    "over": Column(pa.string(), False, "what expectations are over: experts, examples or seeds"),
    "experts": Column(pa.int64(), False, "K, the number of experts in the pool"),
    "domain": Column(pa.string(), False, f"the domain of the examples; {ALL}: the mean over domains"),
    "method": Column(pa.string(), True, "of merged_error and remainder, the method's id; null for the decomposition"),
    "term": Column(pa.string(), False, "; ".join(f"{name}: {meaning}" for name, meaning in TERMS.items())),
    "value": Column(pa.float64(), False, "the term, a squared probability"),
    "stderr": Column(
        pa.float64(),
        True,
        f"its standard error: over examples, or for {ALL} over domains; null where there is only one",
    ),
    "examples": Column(pa.int64(), False, "number of examples behind it"),
    "slope": Column(
        pa.float64(),
        True,
        "the term's growth a doubling of training, over all durations of the pool, the same on the rows of each; null "
        "where there are no two multiples of T*",
    ),
    "slope_stderr": Column(pa.float64(), True, "standard error of the slope, over what stderr is over"),
    "slope_past_t_star": Column(
        pa.float64(), True, "as slope, over the pool's durations from T* on; null where there are no two of them"
    ),
    "slope_past_t_star_stderr": Column(pa.float64(), True, "standard error of slope_past_t_star"),
}


@dataclass(frozen=True)
class Terms:
    """What each example contributes to the terms: [examples] each, float64; the terms are the means."""

    bias_squared: Array
    variance: Array
    covariance: Array
    expected_error: Array


def over_experts(probabilities: Array) -> Terms:
    """The terms with the draw of experts from the pool as what is random; ``probabilities`` [experts, examples]."""
    _check(len(probabilities))
    mean = probabilities.mean(axis=0)
    variance = ((probabilities - mean) ** 2).mean(axis=0)
    error = (1 - mean) ** 2
    return Terms(error, variance, -variance / (len(probabilities) - 1), error)


def over_examples(probabilities: Array) -> Terms:
    """The terms with the draw of examples as what is random; ``probabilities`` [experts, examples] of one domain."""
    _check(len(probabilities))
    deviations = probabilities - probabilities.mean(axis=1, keepdims=True)
    errors = 1 - probabilities.mean(axis=0)
    bias = errors.mean()
    variance = (deviations**2).mean(axis=0)
    return Terms(
        bias**2 + 2 * bias * (errors - bias),
        variance,
        _covariance(deviations.mean(axis=0) ** 2, variance, len(probabilities)),
        errors**2,
    )


def over_seeds(probabilities: Array) -> Terms:
    """The terms with the draw of a seed as what is random; ``probabilities`` [seeds, experts, examples]."""
    count = probabilities.shape[1]
    _check(count)
    means = probabilities.mean(axis=0)
    deviations = probabilities - means
    variance = (deviations**2).mean(axis=(0, 1))
    return Terms(
        (1 - means.mean(axis=0)) ** 2,
        variance,
        _covariance((deviations.mean(axis=1) ** 2).mean(axis=0), variance, count),
        ((1 - probabilities.mean(axis=1)) ** 2).mean(axis=0),
    )


def _covariance(of_mean: Array, variance: Array, count: int) -> Array:
    """The mean covariance of two of ``count`` predictions, from the variance of their mean and their mean variance."""
    return (count * of_mean - variance) / (count - 1)


def _check(count: int) -> None:
    if count < 2:
        raise ValueError(f"covariance is between experts: two at least are needed, here are {count}")


@dataclass(frozen=True)
class _Predictions:
    """Probabilities by seed and domain: of the experts [experts, examples], of each merged model [examples]."""

    experts: dict[int, dict[str, Array]]
    merged: dict[int, dict[str, dict[str, Array]]]


@dataclass(frozen=True)
class Term:
    """A term of a table; ``seed`` is None over seeds, ``method`` for the decomposition itself."""

    seed: int | None
    over: str
    method: str | None
    term: str


Contributions = Mapping[Term, Mapping[str, Array]]
"""What each example contributes to a term, by domain: [examples]."""


@dataclass(frozen=True)
class Decomposition:
    """The terms of one pool of K ``experts``."""

    experts: int
    contributions: Contributions


def decomposed(measured: Mapping[int, pd.DataFrame]) -> Decomposition:
    """All terms of one pool.

    Args:
        measured: by seed, the pool's probabilities in the columns of :data:`mergetime.measuring.columns.PROBABILITIES`.

    Raises:
        UserError: where subjects or seeds were measured on different examples.
    """
    predictions = _Predictions(
        {seed: _by_domain(frame[frame["kind"] == EXPERT]) for seed, frame in measured.items()},
        {
            seed: {
                str(method): {domain: probabilities[0] for domain, probabilities in _by_domain(rows).items()}
                for method, rows in frame[frame["kind"] == MERGED].groupby("name", sort=False)
            }
            for seed, frame in measured.items()
        },
    )
    _check_examples(predictions)
    terms: dict[Term, Mapping[str, Array]] = {}
    for seed, experts in predictions.experts.items():
        errors = {method: _errors([by_domain]) for method, by_domain in predictions.merged[seed].items()}
        for over, decompose in (("experts", over_experts), ("examples", over_examples)):
            terms |= _terms(
                seed, over, {domain: decompose(probabilities) for domain, probabilities in experts.items()}, errors
            )
    first = next(iter(predictions.experts.values()))
    if len(predictions.experts) > 1:
        across_seeds = {
            domain: over_seeds(np.stack([by_domain[domain] for by_domain in predictions.experts.values()]))
            for domain in first
        }
        methods = next(iter(predictions.merged.values()))
        errors = {
            method: _errors([by_method[method] for by_method in predictions.merged.values()]) for method in methods
        }
        terms |= _terms(None, "seeds", across_seeds, errors)
    return Decomposition(len(next(iter(first.values()))), terms)


def slopes(durations: Mapping[float, Decomposition], shortest: float = 0.0) -> Contributions:
    """The examples' own slopes per doubling of training, of the terms that a pool has at all of these durations.

    Args:
        durations: the decompositions by multiple of T*; of fewer than two there are no slopes.
        shortest: the multiple of T* from which on durations count.

    Raises:
        UserError: where durations were measured on different examples.
    """
    durations = {multiple: pool for multiple, pool in durations.items() if multiple >= shortest - 1e-9}
    if len(durations) < 2:
        return {}
    line = slope_weights(np.array(list(durations)))
    several = [decomposition.contributions for decomposition in durations.values()]
    slopes_of = {}
    for term in several[0]:
        if all(term in contributions for contributions in several):
            try:
                slopes_of[term] = {
                    domain: line @ np.stack([contributions[term][domain] for contributions in several])
                    for domain in several[0][term]
                }
            except (KeyError, ValueError) as error:
                raise UserError(
                    "durations of a pool were measured on different examples; measure them again"
                ) from error
    return slopes_of


def slope_weights(multiples: Array) -> Array:
    """The weights whose sum of products with y is the least-squares slope of y on log2 of the durations."""
    centred = np.log2(multiples) - np.log2(multiples).mean()
    weights: Array = centred / (centred**2).sum()
    return weights


def table(
    pool: Decomposition, own_slopes: Contributions | None = None, past_t_star: Contributions | None = None
) -> pd.DataFrame:
    """The terms of one pool, with the columns :data:`COLUMNS` and ``seed`` (null over seeds).

    Args:
        pool: its decomposition.
        own_slopes: as :func:`slopes` gives them for the durations of the pool.
        past_t_star: the same from T* on.
    """
    rows = [
        asdict(term) | row | slope | past
        for term, contributions in pool.contributions.items()
        for row, slope, past in zip(
            estimates(contributions),
            _slope_rows("slope", (own_slopes or {}).get(term), len(contributions) + 1),
            _slope_rows("slope_past_t_star", (past_t_star or {}).get(term), len(contributions) + 1),
            strict=True,
        )
    ]
    frame = pd.DataFrame(rows).assign(experts=pool.experts)
    return frame.assign(seed=frame["seed"].astype("Int64"))[["seed", *COLUMNS]]


def _slope_rows(name: str, of_term: Mapping[str, Array] | None, count: int) -> list[dict[str, object]]:
    """The slopes beside the ``count`` rows of a term, as columns ``name`` and its stderr; null where there are none."""
    if of_term is None:
        return [{name: math.nan, f"{name}_stderr": math.nan}] * count
    return [{name: row["value"], f"{name}_stderr": row["stderr"]} for row in estimates(of_term)]


def _by_domain(frame: pd.DataFrame) -> dict[str, Array]:
    """Probabilities by domain: [subjects, examples], sorted by the names of the subjects."""
    arrays = {}
    for domain, rows in frame.groupby("domain", sort=False):
        wide = rows.pivot(index="name", columns="example", values="probability")
        if wide.isna().any(axis=None):
            raise UserError(f"domain {domain}: not all subjects were measured on the same examples; measure them again")
        arrays[str(domain)] = wide.to_numpy(np.float64)
    return arrays


def _check_examples(predictions: _Predictions) -> None:
    """Every subject at every seed must have been measured on as many examples of the same domains."""
    counted = [
        {domain: probabilities.shape[-1] for domain, probabilities in experts.items()}
        for experts in predictions.experts.values()
    ]
    counted += [
        {domain: probabilities.shape[-1] for domain, probabilities in by_domain.items()}
        for methods in predictions.merged.values()
        for by_domain in methods.values()
    ]
    if any(counts != counted[0] for counts in counted):
        raise UserError("experts and merged models were measured on different examples; measure them again")


def _errors(merged: list[dict[str, Array]]) -> dict[str, Array]:
    """Squared errors by domain [examples], the mean over the seeds."""
    return {domain: np.mean([(1 - by_domain[domain]) ** 2 for by_domain in merged], axis=0) for domain in merged[0]}


def _terms(
    seed: int | None, over: str, decompositions: Mapping[str, Terms], errors: Mapping[str, Mapping[str, Array]]
) -> dict[Term, Mapping[str, Array]]:
    """The terms of a decomposition by domain, and every method's error beside it."""
    terms: dict[Term, Mapping[str, Array]] = {
        Term(seed, over, None, field.name): {
            domain: getattr(decomposition, field.name) for domain, decomposition in decompositions.items()
        }
        for field in fields(Terms)
    }
    for method, error in errors.items():
        remainder = {
            domain: error[domain] - decomposition.expected_error for domain, decomposition in decompositions.items()
        }
        terms |= {Term(seed, over, method, "merged_error"): error, Term(seed, over, method, "remainder"): remainder}
    return terms


def estimates(contributions: Mapping[str, Array]) -> Iterator[dict[str, object]]:
    """Value, standard error and number of examples of a term, for each domain and over all of them.

    Args:
        contributions: by domain, what each example contributes [examples].
    """
    for domain, of_examples in contributions.items():
        yield {
            "domain": domain,
            "value": of_examples.mean(),
            "stderr": standard_error(of_examples),
            "examples": len(of_examples),
        }
    means = np.array([of_examples.mean() for of_examples in contributions.values()])
    count = sum(len(of_examples) for of_examples in contributions.values())
    yield {"domain": ALL, "value": means.mean(), "stderr": standard_error(means), "examples": count}


def standard_error(values: Array) -> float:
    """Of the mean of independent values: s / sqrt(n) with n - 1 degrees of freedom; NaN for one value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
