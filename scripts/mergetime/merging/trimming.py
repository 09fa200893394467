"""Exact trimming by magnitude over streams of blocks: a tensor, or a model, need not fit in memory.

The k-th largest magnitude is found by counting: a sample gives a band that should hold it, a pass over the stream
counts what lies above the band and collects what lies inside, until what is inside can be sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergetime.merging.method import Tied, Trim

if TYPE_CHECKING:
    import torch


class NotFiniteError(ValueError):
    """Magnitudes that cannot be ranked: NaN is among them."""


Block = tuple[Hashable, "torch.Tensor"]
COLLECTED = 1 << 20
"""Most entries that are collected of a band, per expert: 4 MB each."""


@dataclass(frozen=True)
class Cut:
    """The largest entries of an expert: those above the threshold, and some of those that equal it.

    ``tied`` says for each block how many of the equal ones count, the first ones; a block that it lacks, or None: all.
    """

    threshold: float
    tied: Mapping[Hashable, int] | None


@dataclass(frozen=True)
class Cuts:
    """For each expert the cut behind which entries are too small, and the one before which they are too large."""

    kept: list[Cut]
    skipped: list[Cut | None]

    def apply(self, stack: torch.Tensor, block: Hashable) -> torch.Tensor:
        """A trimmed copy of the stack [experts, ...] that is this block of the stream."""
        import torch

        trimmed = torch.empty_like(stack)
        for place, row in enumerate(stack):
            _largest(row, self.kept[place], block, trimmed[place])
            if (skipped := self.skipped[place]) is not None:
                removed = torch.empty_like(row)
                _largest(row, skipped, block, removed)
                trimmed[place] -= removed
        return trimmed


def find(
    blocks: Callable[[], Iterable[Block]], sample: torch.Tensor, size: int, trim: Trim, experts: Sequence[str]
) -> Cuts:
    """The cuts of a stream of stacks [experts, ...] with ``size`` entries an expert.

    Args:
        blocks: gives the stream from its beginning, each time with the same blocks: (key, stack).
        sample: magnitudes' sample, [experts, some entries]; a poor one costs more passes, nothing else.
        size: entries of an expert in the stream.
        trim: what to keep; its scope is the stream.
        experts: names, in the order of the stacks.
    """
    queries = [
        [_Query(place, count, size) for count in ([kept + skipped, skipped] if skipped else [kept])]
        for place, (kept, skipped) in enumerate(trim.counts(size, experts))
    ]
    for of_expert, row in zip(queries, sample, strict=True):
        magnitudes = row.abs().flatten().cpu().numpy()
        magnitudes.sort()
        for query in of_expert:
            query.guess(magnitudes)
    while open_queries := [query for of_expert in queries for query in of_expert if query.cut is None]:
        for key, stack in blocks():
            for expert in sorted({query.expert for query in open_queries}):
                magnitudes = _magnitudes(stack[expert])
                for query in open_queries:
                    if query.expert == expert:
                        query.count(key, magnitudes)
        for query in open_queries:
            query.conclude()
    cuts = [[_with_ties(query.cut, trim.tied) for query in of_expert if query.cut] for of_expert in queries]
    return Cuts(
        [of_expert[0] for of_expert in cuts], [of_expert[1] if len(of_expert) > 1 else None for of_expert in cuts]
    )


def trim_stack(stack: torch.Tensor, trim: Trim, experts: Sequence[str]) -> torch.Tensor:
    """A trimmed copy of a whole stack [experts, ...] in memory; model scope means the stack."""
    if trim.scope == "row":
        return trim_rows(stack, trim, experts)
    size = stack[0].numel()
    if trim.keeps_all(size, experts):
        return stack
    return find(lambda: [(0, stack)], stack.flatten(1)[:, :: max(1, size >> 12)], size, trim, experts).apply(stack, 0)


def trim_rows(stack: torch.Tensor, trim: Trim, experts: Sequence[str]) -> torch.Tensor:
    """A trimmed copy of a stack [experts, ..., columns], each row ranked by itself; the first among equals."""
    import torch

    order = stack.abs().argsort(dim=-1, descending=True, stable=True)
    trimmed = torch.zeros_like(stack)
    for place, (kept, skipped) in enumerate(trim.counts(stack.shape[-1], experts)):
        chosen = order[place, ..., skipped : skipped + kept]
        trimmed[place].scatter_(-1, chosen, stack[place].gather(-1, chosen))
    return trimmed


@dataclass
class _Query:
    """The search for the ``wanted``-th largest magnitude of an expert, between ``low`` and ``high``, both included."""

    expert: int
    wanted: int
    size: int
    low: float = 0.0
    high: float = math.inf
    least: float = 0.0
    most: float = math.inf
    stride: int = 1
    above: int = 0
    inside: dict[Hashable, int] = field(default_factory=dict)
    collected: dict[Hashable, Any] = field(default_factory=dict)
    cut: Cut | None = None

    def guess(self, magnitudes: Any) -> None:
        """Set the band from a rising sample, at whose end NaN is: a band that ends there holds nothing.

        Raises:
            NotFiniteError: where it holds NaN.
        """
        if len(magnitudes) and magnitudes[-1] != magnitudes[-1]:
            raise NotFiniteError
        if len(magnitudes) < self.size:
            self._narrow(magnitudes, self.wanted / self.size, self.size, slack=0.005)

    def count(self, key: Hashable, magnitudes: Any) -> None:
        """Take in a block."""
        import numpy as np

        between, above = magnitudes >= self.low, magnitudes > self.high
        between &= ~above
        if isinstance(magnitudes, np.ndarray):
            self.above += int(np.count_nonzero(above))
            # Where little is inside, this is three times as fast as an index of booleans.
            inside = magnitudes[np.flatnonzero(between)]
        else:
            self.above += int(above.sum())
            inside = magnitudes[between]
        self.inside[key] = len(inside)
        if self.low < self.high:
            thinned = inside[:: self.stride]
            self.collected[key] = thinned if isinstance(thinned, np.ndarray) else thinned.cpu().numpy()

    def conclude(self) -> None:
        """After a pass: the cut, or a better band for the next."""
        import numpy as np

        inside = sum(self.inside.values())
        rank = self.wanted - self.above
        if rank <= 0:
            self.least = _beside(self.high, math.inf)
            self._restart(self.least, self.most, self.above)
        elif rank > inside and self.low == 0.0:
            raise NotFiniteError
        elif rank > inside:
            self.most = _beside(self.low, -math.inf)
            self._restart(self.least, self.most, self.size - self.above - inside)
        elif self.low == self.high:
            self.cut = Cut(self.low, self._shares(self.inside, rank, inside))
        elif self.stride == 1:
            everything = np.concatenate(list(self.collected.values()))
            threshold = float(np.partition(everything, len(everything) - rank)[len(everything) - rank])
            equal = {key: int(np.count_nonzero(values == threshold)) for key, values in self.collected.items()}
            rank -= int(np.count_nonzero(everything > threshold))
            self.cut = Cut(threshold, self._shares(equal, rank, sum(equal.values())))
        else:
            thinned = np.sort(np.concatenate(list(self.collected.values())))
            self.least, self.most = self.low, self.high
            band = (self.low, self.high)
            self._narrow(thinned, rank / inside, inside, slack=0.0)
            if (self.low, self.high) == band:
                middle = float(thinned[int(len(thinned) * (1 - rank / inside))])
                self._restart(middle, middle, 0)

    def _narrow(self, rising: Any, share: float, size: int, slack: float) -> None:
        """The band around the entry with this share of ``size`` entries above it, four deviations to either side."""
        count = len(rising)
        place = count * (1 - share)
        margin = 4 * math.sqrt(count * share * (1 - share)) + slack * count + 2
        first, last = math.floor(place - margin), math.ceil(place + margin)
        low = float(rising[first]) if first >= 0 else self.least
        high = float(rising[last]) if last < count else self.most
        self._restart(low, high, (min(last, count) - max(first, 0)) / count * size)

    def _restart(self, low: float, high: float, expected: float) -> None:
        self.low, self.high = low, high
        self.stride = max(1, math.ceil(expected / COLLECTED))
        self.above, self.inside, self.collected = 0, {}, {}

    @staticmethod
    def _shares(equal: Mapping[Hashable, int], count: int, total: int) -> dict[Hashable, int] | None:
        """How many of the equal entries stay in each block, ``count`` in all, the first ones; None: all stay."""
        if count >= total:
            return None
        shares = {}
        for key, here in equal.items():
            if here > count:
                shares[key] = count
            count = max(0, count - here)
        return shares


def _with_ties(cut: Cut, tied: Tied) -> Cut:
    """The cut with all entries that equal its threshold, or none of them, where that is asked for."""
    if tied == "first":
        return cut
    return Cut(_beside(cut.threshold, math.inf) if tied == "none" else cut.threshold, None)


def _largest(row: torch.Tensor, cut: Cut, block: Hashable, out: torch.Tensor) -> None:
    """Fill ``out`` with the row, with zeros where an entry is not among the largest."""
    import numpy as np
    import torch

    tied = cut.tied.get(block) if cut.tied else None
    if cut.threshold == 0.0:
        out.copy_(row)
    elif tied == 0:
        torch.hardshrink(row, cut.threshold, out=out)
    else:
        torch.hardshrink(row, _beside(cut.threshold, -math.inf), out=out)
        if tied is not None:
            equal = (row.reshape(-1).abs() == cut.threshold).cpu().numpy()
            out.view(-1)[torch.from_numpy(np.flatnonzero(equal)[tied:]).to(out.device)] = 0.0


def _magnitudes(row: torch.Tensor) -> Any:
    """The magnitudes of a row, flat: a NumPy array on the CPU, where NumPy counts faster, else a tensor."""
    magnitudes = row.abs().flatten()
    return magnitudes.numpy() if magnitudes.device.type == "cpu" else magnitudes


def _beside(value: float, towards: float) -> float:
    """The fp32 number next to ``value``."""
    import numpy as np

    return float(np.nextafter(np.float32(value), np.float32(towards)))


def chained(streams: Sequence[tuple[str, Callable[[], Iterator[tuple[int, torch.Tensor]]]]]) -> Iterator[Block]:
    """The blocks of several tensors one after another, with (tensor, start) as keys."""
    for tensor, blocks in streams:
        for start, stack in blocks():
            yield (tensor, start), stack
