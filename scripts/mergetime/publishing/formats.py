"""One table as Parquet, CSV, Markdown and LaTeX."""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa

from mergetime.core.tables import arrow_schema
from mergetime.publishing import files
from mergetime.publishing.markdown import escape as escape_markdown
from mergetime.publishing.markdown import one_line, paragraph
from mergetime.publishing.markdown import row as markdown_row
from mergetime.publishing.table import CELLS, DAGGER, DOUBLE_DAGGER, Table, cell_text

Rows = list[tuple[str, list[pd.Series]]]

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "–": "--",
    "—": "---",
    DAGGER: r"$^{\dagger}$",
    DOUBLE_DAGGER: r"$^{\ddagger}$",
}

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What a spreadsheet may take for a formula begins with one of these."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)

# Shrinks what is wider than the text to its width, and leaves the rest as it is.
_SHRINK = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
_WORDS = ">{\\raggedright\\arraybackslash}X"


def write_table(table: Table, stem: Path) -> list[Path]:
    """Write ``stem``.parquet (tidy numbers), .csv, .md and .tex, and name them."""
    rendered: dict[str, str | bytes] = {
        "parquet": _table_parquet(table),
        "csv": _csv(table),
        "md": markdown(table),
        "tex": latex(table),
    }
    return files.write(stem, rendered)


def markdown(table: Table) -> str:
    """The table in Markdown: bold best, a dagger where a T* is at the boundary, footnotes below."""
    lines = [f"**{table.name}.** {escape_markdown(table.caption)}", ""]
    for columns, panels in _sections(table):
        lines.append(markdown_row(["", *[escape_markdown(column) for column in columns]]))
        lines.append(markdown_row(["---", *["---" if words else "---:" for words in _are_words(columns, panels)]]))
        for panel, rows in panels:
            lines.append(markdown_row([f"*{escape_markdown(panel)}*", *[""] * len(columns)]))
            for row, row_cells in rows:
                lines.append(markdown_row([escape_markdown(row), *[_markdown_cell(cell) for cell in row_cells]]))
        lines.append("")
    for note in table.notes:
        lines += [paragraph(note), ""]
    return "\n".join(lines)


def latex(table: Table) -> str:
    """The table as LaTeX floats, one for each set of columns; they need what the first line names."""
    sections = list(_sections(table))
    lines = ["% needs \\usepackage{array,booktabs,graphicx,tabularx}"]
    for place, (columns, panels) in enumerate(sections):
        continued = " (continued)" if place else ""
        lines += ["\\begin{table}", "\\centering\\small\\setlength{\\tabcolsep}{3.5pt}"]
        lines += ["\\addtocounter{table}{-1}"] if place else []
        lines.append(f"\\caption{{{escape(table.caption)}{continued}}}")
        lines += [] if place else [f"\\label{{tab:{table.name}}}"]
        lines += ["", "\\medskip", *_tabular(columns, panels)]
        if table.notes and place == len(sections) - 1:
            notes = " ".join(escape(note) for note in table.notes)
            lines += ["", "\\medskip", f"\\parbox{{\\linewidth}}{{\\footnotesize {notes}}}"]
        lines += ["\\end{table}", ""]
    return "\n".join(lines)


def _tabular(columns: list[str], panels: list[tuple[str, Rows]]) -> list[str]:
    """The lines of a tabular: words are broken to fit the width of the text, numbers shrunk where they do not fit."""
    words = _are_words(columns, panels)
    aligned = "".join(_WORDS if is_words else "r" for is_words in words)
    if any(words):
        start, end = f"\\begin{{tabularx}}{{\\linewidth}}{{l{aligned}}}", "\\end{tabularx}"
    else:
        start, end = f"{_SHRINK}\n\\begin{{tabular}}{{l{aligned}}}", "\\end{tabular}}"
    lines = [start, "\\toprule"]
    lines.append(_ampersands(["", *[escape(c) if w else _stacked(c) for c, w in zip(columns, words, strict=True)]]))
    for panel, rows in panels:
        lines += ["\\midrule", f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{\\textit{{{escape(panel)}}}}} \\\\"]
        for row, row_cells in rows:
            lines.append(_ampersands([escape(row), *[_latex_cell(cell) for cell in row_cells]]))
    return [*lines, "\\bottomrule", end]


def _stacked(column: str) -> str:
    """A header over numbers; of several words in two lines, or it would be what makes the column wide."""
    column = one_line(column)
    words = column.split(" ")
    if len(words) == 1:
        return escape(column)
    upper = min(range(1, len(words)), key=lambda place: abs(len(column) - 2 * len(" ".join(words[:place])) - 1))
    lines = f"{escape(' '.join(words[:upper]))}\\\\{_after_break(escape(' '.join(words[upper:])))}"
    return f"\\begin{{tabular}}[b]{{@{{}}r@{{}}}}{lines}\\end{{tabular}}"


def plain(table: Table) -> str:
    """The table in aligned plain text, for a terminal."""
    lines = [one_line(table.caption)]
    for columns, panels in _sections(table):
        body = [["", *map(one_line, columns)]]
        for panel, rows in panels:
            body.append([f"[{one_line(panel)}]"])
            body += [[one_line(row), *[_joined(cell, one_line) for cell in row_cells]] for row, row_cells in rows]
        full_lines = [line for line in body if len(line) > 1]
        widths = [max(len(line[place]) for line in full_lines) for place in range(len(columns) + 1)]
        lines.append("")
        for line in body:
            texts = [line[0].ljust(widths[0])] + [t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=False)]
            lines.append("  ".join(texts).rstrip())
    return "\n".join([*lines, "", *map(one_line, table.notes), ""])


def escape(text: str) -> str:
    """``text`` in one line, with every character that LaTeX gives a meaning to escaped."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def _sections(table: Table) -> Iterator[tuple[list[str], list[tuple[str, Rows]]]]:
    """Runs of panels that share their columns: (columns, [(panel, [(row, cells)])])."""
    panels = []
    for panel, frame in table.cells.groupby("panel", sort=False):
        columns = list(dict.fromkeys(frame["column"]))
        rows = [
            (str(row), [cell for _, cell in row_cells.set_index("column").loc[columns].iterrows()])
            for row, row_cells in frame.groupby("row", sort=False)
        ]
        panels.append((columns, (str(panel), rows)))
    for columns, run in itertools.groupby(panels, key=lambda section: section[0]):
        yield columns, [panel for _, panel in run]


def _are_words(columns: list[str], panels: list[tuple[str, Rows]]) -> list[bool]:
    """Of each column, whether it holds words, which are aligned to the left, and no numbers."""
    cells = [row_cells for _, rows in panels for _, row_cells in rows]
    return [any(row[place]["unit"] == "text" for row in cells) for place in range(len(columns))]


def _joined(cell: pd.Series, written: Callable[[str], str]) -> str:
    """What a cell prints; ``written`` makes of its number or text what the format needs."""
    number, errors = cell_text(cell)
    return " ".join(part for part in (written(number), errors) if part) + (f" {DAGGER}" if cell["boundary"] else "")


def _as_text(text: str) -> str:
    """``text`` behind an apostrophe where a spreadsheet would calculate instead of showing it; numbers as they are."""
    line = one_line(text)
    return f"'{line}" if line.startswith(_FORMULA) and not _NUMBER.fullmatch(line) else line


def _csv(table: Table) -> str:
    """The printed table, one line per row; the last column holds the footnotes of the row's cells."""
    columns = list(dict.fromkeys(table.cells["column"]))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["panel", "row", *map(_as_text, columns), "note"])
    for (panel, row), row_cells in table.cells.groupby(["panel", "row"], sort=False):
        texts = {cell["column"]: _joined(cell, _as_text) for _, cell in row_cells.iterrows()}
        notes = " ".join(dict.fromkeys(row_cells["note"].dropna()))
        labels = [_as_text(str(panel)), _as_text(str(row))]
        writer.writerow([*labels, *[texts.get(column, "") for column in columns], _as_text(notes)])
    return stream.getvalue()


def _table_parquet(table: Table) -> bytes:
    cells = pa.Table.from_pandas(table.cells, schema=arrow_schema(CELLS), preserve_index=False)
    return files.parquet(cells, {"caption": table.caption, "notes": " ".join(table.notes)})


def _markdown_cell(cell: pd.Series) -> str:
    text = _joined(cell, escape_markdown)
    return f"**{text}**" if cell["best"] else text


def _ampersands(texts: list[str]) -> str:
    return _after_break(" & ".join(texts)) + " \\\\"


def _after_break(text: str) -> str:
    """``text`` behind the end of a row: a bracket or an asterisk would be an argument of the row before."""
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def _latex_cell(cell: pd.Series) -> str:
    number, errors = cell_text(cell)
    text = escape(number)
    if cell["unit"] == "text":
        # Names on the hub are long, and nothing else in them may be broken.
        text = text.replace("/", "/\\allowbreak{}").replace("\\_", "\\_\\allowbreak{}")
    text = f"\\textbf{{{text}}}" if cell["best"] else text
    if errors:
        text += f"{{\\scriptsize\\,{escape(errors)}}}"
    return text + (escape(DAGGER) if cell["boundary"] else "")
