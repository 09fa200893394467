"""BeaverTails (PKU-Alignment): the safe answers to questions that also drew unsafe ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from mergetime.data.format import Format
from mergetime.data.formats.beavertails import if_safe
from mergetime.data.messages import Messages


def _mark_contested(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows that know whether their prompt got an unsafe response somewhere in the data set."""
    unsafe = {row["prompt"] for row in rows if not row["is_safe"]}
    return [{**row, "contested": row["prompt"] in unsafe} for row in rows]


def _convert(row: Mapping[str, Any]) -> Messages | str:
    # A prompt that drew an unsafe response is a harmful one: its safe responses are refusals, or careful answers.
    return if_safe(row) if row["contested"] else "harmless_prompt"


FORMAT = Format(("prompt", "response", "is_safe"), _convert, _mark_contested)
