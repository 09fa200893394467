"""How the columns of each training set become chat messages.

A format is a function from a row to its messages (user and assistant in turns, the last one the response), or to
the reason why the row is not used. Adding one is a function here and its name in ``config.DatasetFormat``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergetime.data.messages import Messages


@dataclass(frozen=True)
class Format:
    """The columns that a format reads, the function that reads them, and what it has to know of all rows first."""

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Messages | str]
    survey: Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]] = lambda rows: rows


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


def _mark_contested(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows that know whether their prompt got an unsafe response somewhere in the data set."""
    unsafe = {row["prompt"] for row in rows if not row["is_safe"]}
    return [{**row, "contested": row["prompt"] in unsafe} for row in rows]


def _beavertails_contrast(row: Mapping[str, Any]) -> Messages | str:
    # A prompt that drew an unsafe response is a harmful one: its safe responses are refusals, or careful answers.
    return _beavertails(row) if row["contested"] else "harmless_prompt"


FORMATS = {
    "dart_math": Format(("query", "response"), lambda row: chat(row["query"], row["response"])),
    "magicoder": Format(("problem", "solution"), lambda row: chat(row["problem"], row["solution"])),
    "tulu_persona_if": Format(("messages",), _tulu),
    "magicoder_evol": Format(("instruction", "response"), lambda row: chat(row["instruction"], row["response"])),
    "aya": Format(("inputs", "targets"), lambda row: chat(row["inputs"], row["targets"])),
    "beavertails": Format(("prompt", "response", "is_safe"), _beavertails),
    "beavertails_contrast": Format(("prompt", "response", "is_safe"), _beavertails_contrast, _mark_contested),
}


def survey(rows: Sequence[Mapping[str, Any]], name: str, source: str) -> Sequence[Mapping[str, Any]]:
    """The rows with what their format has to know of all of them.

    Raises:
        ValueError: naming ``source``, the missing column and the ones that are there.
    """
    for row in rows[:1]:
        _check_columns(row, name, source)
    return FORMATS[name].survey(rows)


def to_messages(row: Mapping[str, Any], name: str, source: str) -> Messages | str:
    """The messages of one row, or the reason why it is dropped.

    Raises:
        ValueError: naming ``source``, the missing column and the ones that are there.
    """
    _check_columns(row, name, source)
    messages = FORMATS[name].convert(row)
    if isinstance(messages, list) and not all(message["content"] for message in messages):
        return "empty_text"
    return messages


def _check_columns(row: Mapping[str, Any], name: str, source: str) -> None:
    missing = [column for column in FORMATS[name].columns if column not in row]
    if missing:
        raise ValueError(
            f"{source}: column {', '.join(missing)} is missing, which format {name} reads; it has: {', '.join(row)}"
        )
