"""How the experts of a pool interfere, measured on their task vectors alone: signs, overlap, magnitudes and angles.

Trimmed metrics: "Less is more: undertraining experts improves model upcycling", Appendix I, Equations 4 to 9. A task
vector keeps its largest entries over the whole model, all that reach the threshold (Equation 4, so that ties can keep
more than the share asked for). An entry of 0 is never kept; Equation 6 would count it if the threshold were 0.

Cosines: "A systematic study of in-the-wild model merging for large language models", Appendix D, of untrimmed task
vectors. A layer is a transformer block, named by its path with the block's index; a tensor outside of blocks (the
embedding, the last norm, the head) is a layer of its own. A layer counts as zero where the cosine is within rounding of
0, or where an expert does not move at all.

One pass after the search for the thresholds, block by block; all sums are in float64 or are counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergetime.core.errors import UserError
from mergetime.measuring.columns import INTERFERENCE, TENSORS
from mergetime.merging.layers import layer_of
from mergetime.merging.method import Parameter, Trim
from mergetime.merging.pool import OpenPool
from mergetime.merging.threads import one_thread_an_operation
from mergetime.merging.trimming import Cuts, NotFiniteError, chained, find

if TYPE_CHECKING:
    import torch

KEEP = Parameter("keep", 0.2, "share of an expert's entries that is kept, over the whole model", 0.0, 1.0, True)
SAMPLE = 1 << 19
"""Entries of an expert that are sampled to begin the search for its threshold."""
ZERO = 2.0**-23
"""Cosines up to this are rounding: an entry in fp32 is exact to 2^-24 of itself, and a cosine has two vectors."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Interference:
    """What was measured: one row per metric (INTERFERENCE), and the cosines tensor by tensor (TENSORS)."""

    metrics: pd.DataFrame
    tensors: pd.DataFrame


@dataclass
class _Sums:
    """Sums over trimmed entries for E experts, all float64.

    Attributes:
        kept: [E] entries kept.
        overlap: [E, E] entries kept of both.
        signs: [E, E] of those, the ones with equal signs less the ones with opposite signs.
        ratios: [E, E] larger by smaller magnitude, above the diagonal.
        active: [] entries kept of any.
        squares: [] squared entries, over all experts.
    """

    kept: torch.Tensor
    overlap: torch.Tensor
    signs: torch.Tensor
    ratios: torch.Tensor
    active: torch.Tensor
    squares: torch.Tensor

    def add(self, other: _Sums) -> None:
        """Take in the sums over other entries."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))


def measure(pool: OpenPool, *, keep: float = 0.2, threads: int = 1) -> Interference:
    """Measure a pool of two experts or more.

    Args:
        pool: the open pool.
        keep: share of an expert's entries that the trimmed metrics see, over the whole model.
        threads: tensors that are measured at a time; the result does not depend on it.

    Raises:
        UserError, ValueError: where there are fewer than two experts, ``keep`` is no share, or an entry is not finite.
    """
    import torch

    keep = KEEP.check(keep)
    if len(pool.names) < 2:
        raise UserError(f"interference is between experts: give two at least, here are {len(pool.names)}")
    with one_thread_an_operation():
        cuts = _cuts(pool, keep)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
            try:
                measured = list(executor.map(lambda name: _measured(pool, cuts, name), pool.shapes))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise
    grams = {name: gram for name, (gram, _) in zip(pool.shapes, measured, strict=True)}
    total = measured[0][1]
    for _, sums in measured[1:]:
        total.add(sums)
    layers: dict[str, torch.Tensor] = {}
    for name, gram in grams.items():
        layer = layer_of(name)
        layers[layer] = layers[layer] + gram if layer in layers else gram
    metrics = [*_model_rows(pool, total, layers), *_layer_rows(pool, layers)]
    return Interference(
        pd.DataFrame(metrics, columns=list(INTERFERENCE)),
        pd.DataFrame(_tensor_rows(pool, grams), columns=list(TENSORS)),
    )


def cosine(gram: torch.Tensor, a: int, b: int) -> float | None:
    """The cosine of two task vectors from their inner products [E, E]; None where one of them is 0."""
    norms = math.sqrt(gram[a, a]) * math.sqrt(gram[b, b])
    return max(-1.0, min(1.0, float(gram[a, b]) / norms)) if norms else None


def _cuts(pool: OpenPool, keep: float) -> Cuts:
    """The threshold of each expert over the whole model; what equals it is kept (Equation 4)."""
    import torch

    size = sum(math.prod(shape) for shape in pool.shapes.values())
    sample = torch.cat([pool.tensor(name).sample(size / SAMPLE) for name in pool.shapes], dim=1)
    streams = [(name, lambda name=name: pool.tensor(name).blocks()) for name in pool.shapes]
    try:
        return find(lambda: chained(streams), sample, size, Trim(keep, scope="model", tied="all"), pool.names)
    except NotFiniteError:
        for name in pool.shapes:
            for _, block in pool.tensor(name).blocks():
                _check_finite(pool, name, _products(block.reshape(len(pool.names), -1)))
        raise


def _measured(pool: OpenPool, cuts: Cuts, name: str) -> tuple[torch.Tensor, _Sums]:
    """The inner products [E, E] of one tensor's task vectors, and the sums over its trimmed entries."""
    import torch

    stack, count = pool.tensor(name), len(pool.names)
    gram = stack.gram(with_base=False) if stack.lefts else torch.zeros(count, count, dtype=torch.float64)
    total: _Sums | None = None
    for start, block in stack.blocks():
        entries = block.reshape(count, -1)
        if not stack.lefts:
            gram += _products(entries)
        sums = _sums(cuts.apply(entries, (name, start)))
        if total is None:
            total = sums
        else:
            total.add(sums)
    assert total is not None
    _check_finite(pool, name, gram)
    return gram, total


def _products(entries: torch.Tensor) -> torch.Tensor:
    """The inner products [E, E] of a block [E, n], in float64."""
    exact = entries.double()
    return exact @ exact.T


def _sums(trimmed: torch.Tensor) -> _Sums:
    """The sums over a block of trimmed entries [E, n]."""
    import torch

    present = trimmed != 0
    holders = present.sum(dim=0)
    shared = trimmed[:, holders > 1].double()  # what pairs are about: a small part of the block
    signs, magnitudes = shared.sign(), shared.abs()
    kept = signs.abs()
    inverses = torch.where(magnitudes == 0, 0.0, 1 / magnitudes)  # a ratio with what is not kept is then 0
    ratios = torch.zeros(len(trimmed), len(trimmed), dtype=torch.float64)
    for a, (magnitude, inverse) in enumerate(zip(magnitudes, inverses, strict=True)):
        larger = torch.maximum(magnitude * inverses[a + 1 :], magnitudes[a + 1 :] * inverse)
        ratios[a, a + 1 :] = larger.sum(dim=1)
    return _Sums(
        kept=present.sum(dim=1).double(),
        overlap=kept @ kept.T,
        signs=signs @ signs.T,
        ratios=ratios,
        active=holders.count_nonzero().double(),
        squares=torch.linalg.vector_norm(trimmed, dtype=torch.float64).square(),
    )


def _check_finite(pool: OpenPool, name: str, gram: torch.Tensor) -> None:
    for expert, square in zip(pool.names, gram.diagonal().tolist(), strict=True):
        if not math.isfinite(square):
            raise UserError(f"expert {expert}: {name} holds NaN or infinite values; its training diverged")


def _row(metric: str, value: float | None, a: str | None = None, b: str | None = None, layer: str | None = None) -> Row:
    scope = "layer" if layer else "model"
    return {"scope": scope, "layer": layer, "expert_a": a, "expert_b": b, "metric": metric, "value": value}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _pairs(pool: OpenPool) -> list[tuple[int, int, str, str]]:
    """Every pair of experts in the order of their names: positions, and names."""
    return [(a, b, pool.names[a], pool.names[b]) for a, b in itertools.combinations(range(len(pool.names)), 2)]


def _model_rows(pool: OpenPool, sums: _Sums, layers: dict[str, torch.Tensor]) -> Iterator[Row]:
    """What is measured over the whole model, from the sums and the inner products of each layer."""
    import torch

    gram = torch.stack(list(layers.values())).sum(dim=0)
    kept, overlap, signs, ratios = (x.tolist() for x in (sums.kept, sums.overlap, sums.signs, sums.ratios))
    for a, b, first, second in _pairs(pool):
        in_both = overlap[a][b]
        # overlap = equal + opposite, signs = equal - opposite
        yield _row("sign_conflict", _share((in_both - signs[a][b]) / 2, kept[a] + kept[b] - in_both), first, second)
        yield _row("overlap", _share(in_both, kept[a]), first, second)
        yield _row("overlap", _share(in_both, kept[b]), second, first)
        yield _row("magnitude_ratio", _share(ratios[a][b], in_both), first, second)
        yield _row("cosine", cosine(gram, a, b), first, second)
        cosines = [cosine(layer_gram, a, b) or 0.0 for layer_gram in layers.values()]
        positive, negative = sum(c > ZERO for c in cosines), sum(c < -ZERO for c in cosines)
        yield _row("layers_positive", positive, first, second)
        yield _row("layers_negative", negative, first, second)
        yield _row("layers_zero", len(cosines) - positive - negative, first, second)
    for place, name in enumerate(pool.names):
        yield _row("norm", math.sqrt(gram[place, place]), name)
        yield _row("kept_entries", kept[place], name)
    yield _row("variance", _share(float(sums.squares) / len(pool.names), float(sums.active)))
    yield _row("entries", sum(math.prod(shape) for shape in pool.shapes.values()))


def _layer_rows(pool: OpenPool, layers: dict[str, torch.Tensor]) -> Iterator[Row]:
    for layer, gram in layers.items():
        for a, b, first, second in _pairs(pool):
            yield _row("cosine", cosine(gram, a, b), first, second, layer)


def _tensor_rows(pool: OpenPool, grams: dict[str, torch.Tensor]) -> Iterator[Row]:
    for tensor, gram in grams.items():
        for a, b, first, second in _pairs(pool):
            yield {
                "layer": layer_of(tensor),
                "tensor": tensor,
                "expert_a": first,
                "expert_b": second,
                "cosine": cosine(gram, a, b),
            }
