"""How the columns of each training set become chat messages.

A format is a function from a row to its messages (user and assistant in turns, the last one the response), or to
the reason why the row is not used. Adding one is a function here and its name in ``config.DatasetFormat``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Format:
    """The columns that a format reads, and the function that reads them."""

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Messages | str]


def chat(prompt: str, response: str) -> Messages:
    """One turn of user and assistant, outer white space removed."""
    return [{"role": "user", "content": prompt.strip()}, {"role": "assistant", "content": response.strip()}]


def _tulu(row: Mapping[str, Any]) -> Messages | str:
    messages = [{"role": m["role"], "content": m["content"].strip()} for m in row["messages"]]
    if not messages or messages[-1]["role"] != "assistant":
        return "no_response"
    return messages


def _beavertails(row: Mapping[str, Any]) -> Messages | str:
    # is_safe judges question and answer together: unsafe rows would teach what safety is to prevent.
    return chat(row["prompt"], row["response"]) if row["is_safe"] else "unsafe"


FORMATS = {
    "dart_math": Format(("query", "response"), lambda row: chat(row["query"], row["response"])),
    "magicoder": Format(("problem", "solution"), lambda row: chat(row["problem"], row["solution"])),
    "tulu_persona_if": Format(("messages",), _tulu),
    "aya": Format(("inputs", "targets"), lambda row: chat(row["inputs"], row["targets"])),
    "beavertails": Format(("prompt", "response", "is_safe"), _beavertails),
}


def to_messages(row: Mapping[str, Any], name: str, source: str) -> Messages | str:
    """The messages of one row, or the reason why it is dropped.

    Raises:
        ValueError: naming ``source``, the missing column and the ones that are there.
    """
    wanted = FORMATS[name]
    missing = [column for column in wanted.columns if column not in row]
    if missing:
        raise ValueError(
            f"{source}: column {', '.join(missing)} is missing, which format {name} reads; it has: {', '.join(row)}"
        )
    messages = wanted.convert(row)
    if isinstance(messages, list) and not all(message["content"] for message in messages):
        return "empty_text"
    return messages
