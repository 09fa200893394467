"""All data formats by name: the files of data/formats/. Importing it imports none of them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergetime.core.registries import Registry
from mergetime.data.format import Format
from mergetime.data.messages import Messages

FORMATS = Registry("mergetime.data.formats", "data format")


def names() -> tuple[str, ...]:
    """The names of all formats, sorted."""
    return FORMATS.names()


@functools.cache
def get(name: str) -> Format:
    """The format with this name.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    data_format: Format = FORMATS.load(name).FORMAT
    return data_format


def file_of(name: str) -> Path:
    """The module of a format, for digests; errors as of :func:`get`."""
    return FORMATS.file(name)


def survey(rows: Sequence[Mapping[str, Any]], name: str, source: str) -> Sequence[Mapping[str, Any]]:
    """The rows with what their format has to know of all of them.

    Raises:
        ValueError: naming ``source``, the missing column and the ones that are there.
    """
    for row in rows[:1]:
        _check_columns(row, name, source)
    return get(name).survey(rows)


def to_messages(row: Mapping[str, Any], name: str, source: str) -> Messages | str:
    """The messages of one row, or the reason why it is dropped.

    Raises:
        ValueError: naming ``source``, the missing column and the ones that are there.
    """
    _check_columns(row, name, source)
    messages = get(name).convert(row)
    if isinstance(messages, list) and not all(message["content"] for message in messages):
        return "empty_text"
    return messages


def _check_columns(row: Mapping[str, Any], name: str, source: str) -> None:
    missing = [column for column in get(name).columns if column not in row]
    if missing:
        raise ValueError(
            f"{source}: column {', '.join(missing)} is missing, which format {name} reads; it has: {', '.join(row)}"
        )
