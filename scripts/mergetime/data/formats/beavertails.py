"""BeaverTails (PKU-Alignment): the pairs of question and answer that are judged safe."""

from collections.abc import Mapping
from typing import Any

from mergetime.data.format import Format, chat
from mergetime.data.messages import Messages


def if_safe(row: Mapping[str, Any]) -> Messages | str:
    """The question with its answer, where they are safe."""
    # is_safe judges question and answer together: unsafe rows would teach what safety is to prevent.
    return chat(row["prompt"], row["response"]) if row["is_safe"] else "unsafe"


FORMAT = Format(("prompt", "response", "is_safe"), if_safe)
