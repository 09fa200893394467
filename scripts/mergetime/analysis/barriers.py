"""How high the loss rises between two experts, from the losses along their path.

barrier = max over alpha of L(theta(alpha)) - (L(theta_A) + L(theta_B)) / 2

as in Kozodoi et al., Are we merging the right models?, Section 5.2. It is never negative, and half the difference of
the ends even where the loss falls all the way from one to the other. ``barrier_linear``, of Entezari et al. 2022, The
role of permutation invariance in linear mode connectivity (arXiv 2110.06296), compares with the straight line between
the ends instead, max over alpha of L(theta(alpha)) - alpha L(theta_A) - (1 - alpha) L(theta_B): 0 means that the loss
nowhere exceeds that line.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from mergetime.core.tables import Column, Columns
from mergetime.measuring.columns import DOMAIN, SPACE

COLUMNS: Columns = {
    "space": SPACE,
    "first": Column(pa.string(), True, "expert A of the pair; null for the mean over pairs"),
    "second": Column(pa.string(), True, "expert B of the pair; null for the mean over pairs"),
    "domain": DOMAIN,
    "barrier": Column(
        pa.float64(),
        False,
        "highest loss of the path less the mean of its ends, nats per response token: half the difference of the ends "
        "where the loss is highest at one of them (alpha 0 or 1)",
    ),
    "barrier_linear": Column(pa.float64(), False, "largest excess of the loss over the straight line between the ends"),
    "alpha": Column(pa.float64(), True, "share of expert A where the loss is highest, the smallest if several are"),
    "loss_first": Column(pa.float64(), False, "loss of expert A alone, nats per response token"),
    "loss_second": Column(pa.float64(), False, "loss of expert B alone, nats per response token"),
    "pairs": Column(pa.int64(), False, "number of pairs behind the row: 1 for a pair"),
    "stderr": Column(
        pa.float64(),
        True,
        "of the mean over pairs: standard deviation of the barrier by the root of their number, although pairs share "
        "experts; null for a pair",
    ),
}


_AVERAGED = ("barrier", "barrier_linear", "loss_first", "loss_second")


@dataclass(frozen=True)
class Barrier:
    """The barrier of one path; see :data:`COLUMNS`."""

    barrier: float
    barrier_linear: float
    alpha: float
    loss_first: float
    loss_second: float


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> Barrier:
    """The barrier of a path.

    Args:
        alphas: rising, from 0 (the second expert) to 1 (the first).
        losses: at each alpha.

    Raises:
        ValueError: where the ends are missing, or the lists differ in length.
    """
    if len(alphas) != len(losses) or not alphas or (alphas[0], alphas[-1]) != (0.0, 1.0):
        raise ValueError(f"a path has one loss for each alpha from 0 to 1, here are {len(losses)} for {list(alphas)}")
    second, first = losses[0], losses[-1]
    highest = max(range(len(losses)), key=losses.__getitem__)
    # The ends are on the line by definition: rounding in their own rows must not give less than 0.
    over = [loss - (a * first + (1 - a) * second) for a, loss in zip(alphas[1:-1], losses[1:-1], strict=True)]
    return Barrier(
        barrier=losses[highest] - (first + second) / 2,
        barrier_linear=max([0.0, *over]),
        alpha=alphas[highest],
        loss_first=first,
        loss_second=second,
    )


def without_hump(barriers: pd.DataFrame) -> pd.Series:
    """Which paths have their highest loss at an end, so that their barrier is half the difference of the ends.

    Args:
        barriers: rows of single pairs, with the column ``alpha``.
    """
    return barriers["alpha"].isin([0.0, 1.0])


def hump_note(count: int, paths: int) -> str | None:
    """In words, how many of so many paths are those of :func:`without_hump`; None if there are none."""
    if not count:
        return None
    return (
        f"{count} of the {paths} paths have no hump, their loss is highest at an end: there the barrier is half the "
        "difference of the ends"
    )


def table(paths: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    """A row for each pair, space and domain, and the mean over the pairs of each pool.

    Args:
        paths: losses in the columns :data:`~mergetime.measuring.columns.PATHS`, with the columns ``of``.
        of: columns that tell pools apart.
    """
    rows: list[dict[str, Any]] = []
    for keys, path in paths.groupby([*of, "space", "first", "second", "domain"], sort=False, dropna=False):
        path = path.sort_values("alpha")
        measured = barrier(path["alpha"].tolist(), path["loss"].tolist())
        named = dict(zip([*of, "space", "first", "second", "domain"], keys, strict=True))
        rows.append(named | asdict(measured) | {"pairs": 1, "stderr": None})
    pairs = pd.DataFrame(rows)
    return pd.concat([pairs, pd.DataFrame(_means(pairs, of))], ignore_index=True)[[*of, *COLUMNS]]


def _means(pairs: pd.DataFrame, of: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The mean over the pairs of a pool, for each space and domain."""
    for keys, of_pool in pairs.groupby([*of, "space", "domain"], sort=False, dropna=False):
        measured = {name: float(of_pool[name].mean()) for name in _AVERAGED}
        stderr = of_pool["barrier"].std(ddof=1) / math.sqrt(len(of_pool)) if len(of_pool) > 1 else None
        named: dict[str, Any] = dict(zip([*of, "space", "domain"], keys, strict=True))
        yield named | measured | {"first": None, "second": None, "alpha": None, "pairs": len(of_pool), "stderr": stderr}
