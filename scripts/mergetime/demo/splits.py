"""Which split an item belongs to, and seeded draws from the items of a split."""

import hashlib
import random
from collections.abc import Iterable
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "validation", "test"]
Item = TypeVar("Item")


class Keyed(Protocol):
    """An item with a key of its own, which says the split that it belongs to."""

    @property
    def key(self) -> str: ...


KeyedItem = TypeVar("KeyedItem", bound=Keyed)

_TEST_SHARE = 25
_VALIDATION_SHARE = 15


def split_of(key: str) -> Split:
    """The split that owns the item ``key``: 60 % train, 15 % validation, 25 % test, by SHA-256."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    if bucket < _TEST_SHARE:
        return "test"
    return "validation" if bucket < _TEST_SHARE + _VALIDATION_SHARE else "train"


def items_of(items: Iterable[KeyedItem], split: Split) -> list[KeyedItem]:
    """The items that ``split`` owns, in their given order."""
    return [item for item in items if split_of(item.key) == split]


def sample(items: list[Item], count: int, rng: random.Random) -> list[Item]:
    """``count`` different items in random order.

    Raises:
        ValueError: if there are fewer than ``count`` items.
    """
    if count > len(items):
        raise ValueError(f"{count} items asked for, the split holds {len(items)}")
    return rng.sample(items, count)


def about(text: str, topic: str) -> tuple[str, str]:
    """A reading task for the general mixture: the base knows the words of ``text``, not how to answer it."""
    return f"What is this about? {text}", topic
