"""What a data format is: how the columns of a training set become chat messages.

Configs are checked through the registry of formats: nothing heavy is imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergetime.data.messages import Messages


@dataclass(frozen=True)
class Format:
    """The columns that a format reads, the function that reads them, and what it has to know of all rows first.

    Attributes:
        columns: the columns that every row must have.
        convert: from a row to its messages (user and assistant in turns, the last one the response), or to the reason
            why the row is not used.
        survey: from all rows to rows with what ``convert`` has to know besides.
    """

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Messages | str]
    survey: Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]] = lambda rows: rows


def chat(prompt: str, response: str) -> Messages:
    """One turn of user and assistant, outer white space removed."""
    return [{"role": "user", "content": prompt.strip()}, {"role": "assistant", "content": response.strip()}]
