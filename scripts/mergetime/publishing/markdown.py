"""Pipe tables in Markdown, for reports that are lists of rows."""

from collections.abc import Iterable, Sequence


def pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [_line(header), _line(["---"] * len(header)), *[_line([_escaped(text) for text in row]) for row in rows]]


def number(value: float | None, digits: int = 1) -> str:
    """A number for a cell; a dash where there is none."""
    return "—" if value is None or value != value else f"{value:.{digits}f}"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "|*<>`" else character for character in text)
