"""Tulu 3's persona-driven instruction following (allenai): whole conversations."""

from collections.abc import Mapping
from typing import Any

from mergetime.data.format import Format
from mergetime.data.messages import Messages


def _convert(row: Mapping[str, Any]) -> Messages | str:
    messages = [{"role": m["role"], "content": m["content"].strip()} for m in row["messages"]]
    if not messages or messages[-1]["role"] != "assistant":
        return "no_response"
    return messages


FORMAT = Format(("messages",), _convert)
