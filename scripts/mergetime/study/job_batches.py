"""Batches: which members one job takes. A new member changes the batch that it joins, and no other.

Consecutive groups would shift with every member inserted before them, and their jobs would run again. So the members
are kept in a binary trie over the SHA-256 of their ids (extendible hashing: Fagin, Nievergelt, Pippenger, Strong 1979):
a leaf is a batch, and splits on the next bit where it would overflow. Where a member is depends on the other members
only through how deep its leaf is.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

_BITS = 256


@dataclass(frozen=True)
class Batch:
    """What one job takes, at most as many members as a job may have.

    ``number`` is that of the trie's node, counted level by level from 0, the root: another batch never gets it.
    """

    number: int
    members: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.members)


def batches(ids: Sequence[str], size: int) -> list[Batch]:
    """The batches of ``ids``, by number; those without a member are left out.

    Args:
        ids: members, each once; a batch keeps their order.
        size: the most members of a batch.

    Raises:
        ValueError: where an id is there twice, or ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"batches of {size} members: take one at least")
    if len(set(ids)) < len(ids):
        raise ValueError(f"batches of {', '.join(ids)}: a member is there twice")
    bits = {name: f"{int.from_bytes(hashlib.sha256(name.encode()).digest()):0{_BITS}b}" for name in ids}
    return sorted(_leaves(tuple(ids), bits, size, ""), key=lambda batch: batch.number)


def _leaves(ids: tuple[str, ...], bits: dict[str, str], size: int, path: str) -> list[Batch]:
    """The batches below the trie's node at ``path``, a string of bits."""
    if len(ids) <= size:
        return [Batch(int("1" + path, 2) - 1, ids)] if ids else []
    children = [path + bit for bit in "01"]
    return [
        leaf
        for child in children
        for leaf in _leaves(tuple(name for name in ids if bits[name].startswith(child)), bits, size, child)
    ]
