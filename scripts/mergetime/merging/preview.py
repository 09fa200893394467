"""What a merge would do, by the sizes of its tensors: nothing is merged, and nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergetime.artifacts.files import BYTES, DTYPES
from mergetime.merging.pool import BLOCK
from mergetime.merging.targets import Target
from mergetime.merging.vocabularies import changed_rows, in_words, written_shapes
from mergetime.merging.work import Work

_PROGRAM = 180_000_000
"""Bytes of Python, torch and what a merge keeps beside its blocks: tests/benchmarks/merge."""


@dataclass(frozen=True)
class Preview:
    """A merge before it is one.

    Attributes:
        tensors: by role, how many tensors experts have changed.
        entries: by role, the entries of one expert.
        members: how many experts there are.
        form: what would be written.
        written: about how many bytes that takes.
        memory: about how many bytes of memory, without the files that are mapped into it.
        decomposes: whether whole matrices are decomposed, which takes longer than all else, and how long is not known.
        vocabulary: what becomes of rows of experts' vocabularies that are not as the base's.
        tokenizers: by expert, what of its tokenizer is not as in the checkpoint.
        left_aside: by expert, the files of weights that are not read.
    """

    tensors: dict[str, int]
    entries: dict[str, int]
    members: int
    form: str
    written: int
    memory: int
    decomposes: bool
    vocabulary: dict[str, dict[str, int]] = field(default_factory=dict)
    tokenizers: dict[str, str] = field(default_factory=dict)
    left_aside: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, seconds: float) -> list[str]:
        """In words, with the seconds that it may take, where these are known."""
        roles = [
            f"{role}: {count} tensor{'s' if count > 1 else ''}, {self.entries[role]:,} entries"
            for role, count in self.tensors.items()
        ]
        time = "the time that singular values take" if self.decomposes else f"{seconds:,.0f} s on one core"
        sizes = f"about {self.written / 1e6:,.1f} MB, {self.memory / 1e6:,.0f} MB of memory, {time}"
        said = [*in_words(self.vocabulary), *notes(self.tokenizers, self.left_aside)]
        return [*roles, *said, f"would be written as {self.form}: {sizes}; nothing was written"]


def notes(tokenizers: Mapping[str, str], left_aside: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines on what of experts does not enter a merge: tokenizers that differ, and files that are not read."""
    return [
        *(
            f"warning: the {part} of expert {name} is not the one written; --tokenizer-from {name} takes it"
            for name, part in tokenizers.items()
        ),
        *(f"left aside of {name}: {', '.join(files)}" for name, files in left_aside.items()),
    ]


def preview(work: Work, target: Target, threads: int, tokenizers: dict[str, str]) -> Preview:
    """What a merge would do.

    Args:
        work: the pool and what is done with it.
        target: where the merge would be written.
        threads: tensors that are merged at a time.
        tokenizers: by expert, what of its tokenizer is not as in the checkpoint.
    """
    pool = work.pool
    tensors: Counter[str] = Counter()
    entries: Counter[str] = Counter()
    for name, shape in pool.shapes.items():
        role = pool.architecture.role(name, shape)
        tensors[role] += 1
        entries[role] += math.prod(shape)
    return Preview(
        dict(tensors),
        dict(entries),
        len(pool.names),
        target.form,
        _written(work, target),
        _memory(work, threads),
        decomposes=_decomposes(work),
        vocabulary=changed_rows(pool),
        tokenizers=tokenizers,
        left_aside=pool.left_aside,
    )


def _written(work: Work, target: Target) -> int:
    """The bytes of tensors; an adapter's rank is at most what is exact."""
    pool, size = work.pool, BYTES[DTYPES[target.dtype]]
    if target.form == "adapter":
        total = 0
        for name, (rows, columns) in pool.shapes.items():
            ranks = [pair.shape[1] for adapter in pool.adapters if (pair := adapter.pairs.get(name[: -len(".weight")]))]
            rank = max(ranks) if work.space == "adapter" else min(sum(ranks), rows, columns)
            total += min(rank, target.rank or rank) * (rows + columns) * size
        return total
    shapes = written_shapes(pool) if target.form == "checkpoint" else pool.shapes
    return sum(math.prod(shape) for shape in shapes.values()) * size


def _memory(work: Work, threads: int) -> int:
    """Blocks of all experts, their base and the result by thread, or whole matrices where the method takes these."""
    pool, method = work.pool, work.method
    rows = len(pool.names) + 3
    block = 4 * rows * BLOCK[pool.device.split(":")[0]]
    whole = method.whole or _decomposes(work)
    largest = max((math.prod(shape) for shape in pool.shapes.values() if len(shape) > 1), default=0)
    # Singular values are taken in float64, with two copies of a matrix beside it.
    return _PROGRAM + threads * max(block, 8 * 3 * rows * largest if whole else 0)


def _decomposes(work: Work) -> bool:
    """Whether singular values of whole matrices are taken; those of adapters are of small ones."""
    return work.method.finish is not None or (work.method.level == "spectrum" and not work.pool.adapters)
