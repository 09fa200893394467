"""What an example of a modality is: how it is read from a prepared file, and encoded as its models take it.

Nothing heavy is imported here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from mergetime.modalities.parts import load_part

Row = Mapping[str, Any]
"""A row of a prepared file, with the columns :attr:`Reading.COLUMNS`."""


class Example(Protocol):
    """An encoded example."""

    @property
    def length(self) -> int:
        """Its positions in a batch, tokens for one: batches hold examples of similar lengths."""

    @property
    def items(self) -> int:
        """The predictions that its loss sums over: response tokens, or 1 where a whole example has one label."""


class Reading(Protocol):
    """The part ``reading`` of a modality."""

    COLUMNS: tuple[str, ...]
    """The columns of a prepared file that an example is made of."""
    UNIT: str
    """What a loss is a mean over, in words: ``response token``."""

    def reader(self, folder: Path) -> Any:
        """What encodes examples for the base in ``folder``: its tokenizer, or its image processor."""

    def encode(self, reader: Any, row: Row) -> Any:
        """The row as an :class:`Example`, which the modality's ``learning`` takes."""


def get(name: str) -> Reading:
    """The part of the modality ``name``; errors as of :func:`mergetime.modalities.load_part`."""
    return cast(Reading, load_part(name, "reading"))
