"""Chats, rendered by a template that may be anybody's.

A template is a program of whoever published the model. Jinja's sandbox keeps it from files and from Python's insides,
but not from looping for ever or from filling the memory.
"""

from functools import partial
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from mergetime.core.errors import UserError, one_line
from mergetime.core.limits import limited_memory, limited_time

SECONDS = 30
"""Of a processor, that rendering a chat may take; a tenth of a millisecond is usual."""
MEMORY = 1 << 30
"""Bytes that it may take beside those that the process has."""
_GROWTH, _ADDED = 16, 100_000
"""A rendered chat has at most so many times the characters of its messages, and so many more."""
_MEND = "correct the template, or choose another model"


class UnrenderedError(UserError, TemplateError):
    """A template fails on a chat, or refuses it. On errors of Jinja, lm-eval tries again without system messages."""


def bounded(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, made to render chats within limits.

    Its ``apply_chat_template`` then renders alone (``tokenize=False``). It raises a :class:`UserError` where it meets a
    limit, and an :class:`UnrenderedError` where the template fails; both name the model and the file.

    Args:
        tokenizer: as loaded from ``folder``.
        folder: the model's.
    """
    owner = f"model {folder}: {_file(folder)}"
    tokenizer.apply_chat_template = partial(_rendered, tokenizer.apply_chat_template, owner)
    return tokenizer


def _file(folder: Path) -> str:
    """The file that the template comes from."""
    return next((file.name for file in sorted(folder.glob("chat_template.*"))), "tokenizer_config.json")


def _rendered(render: Any, owner: str, conversation: Any, *, tokenize: bool, **options: Any) -> str:
    """The chat as ``render`` renders it."""
    if tokenize:
        raise ValueError("a chat is rendered first, and tokenised then")
    try:
        with limited_memory(MEMORY), limited_time(SECONDS):
            text = str(render(conversation, tokenize=False, **options))
    except TimeoutError as error:
        raise UserError(f"{owner} takes over {SECONDS} s of computing to render a chat; {_MEND}") from error
    except MemoryError as error:
        raise UserError(f"{owner} takes over {MEMORY >> 30} GiB of memory to render a chat; {_MEND}") from error
    # Jinja's errors, Python's of any expression in a template, and transformers' have no kind in common.
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}"[:300]
        raise UnrenderedError(f"{owner} renders no chat ({said}); {_MEND}") from error
    given = len(str(conversation))
    if len(text) > _GROWTH * given + _ADDED:
        raise UserError(f"{owner} makes {len(text)} characters of a chat of {given}; {_MEND}")
    return text
