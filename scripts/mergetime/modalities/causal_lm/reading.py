"""Chats, encoded by the base's tokenizer."""

from pathlib import Path
from typing import Any

from mergetime.modalities.causal_lm.encoding import Encoded, encode_chat
from mergetime.modalities.reading import Row

COLUMNS: tuple[str, ...] = ("messages",)
UNIT = "response token"


def reader(folder: Path) -> Any:
    """The tokenizer of the base in ``folder``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def encode(reader: Any, row: Row) -> Encoded:
    """A row's chat: see :func:`mergetime.modalities.causal_lm.encoding.encode_chat`."""
    return encode_chat(reader, row["messages"])
