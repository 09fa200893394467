"""Pipe tables in Markdown, and texts in them that mean themselves: what a config or a result says is no markup.

A text is escaped only where a renderer would take it for more: underscores inside words, lone ampersands and numbers
with a sign stay as they are.
"""

import re
from collections.abc import Iterable, Sequence

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""What ends a line somewhere, or is no character at all: a cell has one line."""
_MARKUP = re.compile(
    r"""
    [\\`*|<>\[\]~$]      # escapes, code, emphasis, cells, tags, links, strikethrough, formulas
    | (?<![^\W_])_       # emphasis by underscores, which begins at the start of a word
    | &(?=\#?\w+;)       # an entity
    | (?<=\w):(?=//)     # an address
    | (?<=\bwww)\.
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BLOCK = re.compile(r"[-+](?=\s|$)|[-=](?=[-=])|#(?=[#\s]|$)|\d+[.)](?=\s|$)")
"""What begins an item of a list, a rule or a heading where it begins a line."""
_PLAIN = re.compile(r"[\w./@+\-]+")


def pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, every cell of which renders as the text that it is."""
    return [row(map(escape, header)), row(["---"] * len(header)), *[row(map(escape, texts)) for texts in rows]]


def row(cells: Iterable[str]) -> str:
    """A row of a Markdown table, of cells that are Markdown already."""
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, digits: int = 1) -> str:
    """A number for a cell; a dash where there is none."""
    return "—" if value is None or value != value else f"{value:.{digits}f}"


def escape(text: str) -> str:
    """``text`` in one line of Markdown that renders as the text itself: no markup, no link, no tag and no cell more."""
    return _MARKUP.sub(lambda mark: f"\\{mark[0]}", one_line(text))


def paragraph(text: str) -> str:
    """:func:`escape`, for a text that stands by itself: neither a list nor a heading."""
    escaped = escape(text)
    block = _BLOCK.match(escaped)
    return f"{escaped[: block.end() - 1]}\\{escaped[block.end() - 1 :]}" if block else escaped


def code(text: str) -> str:
    """``text`` as code where a pair of backticks in a cell can hold it, and escaped where not."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else escape(text)


def one_line(text: str) -> str:
    """``text`` without ends of lines and other control characters, each run of which becomes a space."""
    return _BREAKS.sub(" ", text).strip()
