"""Chats, encoded by the base's tokenizer."""

from pathlib import Path
from typing import Any

from mergetime.artifacts.companions import tokenizer_files
from mergetime.artifacts.files import check_size
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.core.errors import UserError, one_line
from mergetime.modalities.causal_lm.encoding import Encoded, encode_chat
from mergetime.modalities.causal_lm.rendering import bounded
from mergetime.modalities.reading import Row

COLUMNS: tuple[str, ...] = ("messages",)
UNIT = "response token"


def reader(folder: Path) -> Any:
    """The tokenizer of the base in ``folder``, which renders chats within limits.

    Raises:
        UserError: where a file of it is too large, or where no tokenizer can be made of them.
    """
    from transformers import AutoTokenizer

    owner = f"model {folder}"
    for file in (folder / MODEL_CONFIG, *tokenizer_files(folder)):
        if file.is_file():
            check_size(file, owner)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # The tokenizers library raises no narrower one.
    except Exception as error:
        raise UserError(
            f"{owner}: its tokenizer cannot be loaded ({one_line(error)[:300]}); fetch it again or choose another"
        ) from error
    return bounded(tokenizer, folder)


def encode(reader: Any, row: Row) -> Encoded:
    """A row's chat: see :func:`mergetime.modalities.causal_lm.encoding.encode_chat`."""
    return encode_chat(reader, row["messages"])
