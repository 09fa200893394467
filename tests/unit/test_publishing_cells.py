"""Cells of tables mean the texts that they hold: in Markdown, CSV and LaTeX, whatever a config or a result says."""

import csv
import html
import io
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mergetime.papers import comparison, findings
from mergetime.publishing import formats
from mergetime.publishing.markdown import code, escape, one_line, paragraph, pipes
from mergetime.publishing.table import Table, cells, table

HOSTILE = [
    "a|b", "a\\|b", "**bold**", "__init__", "_edge_ of word", "`code`", "~~gone~~", "$x$", "<b>tag</b>", "<!-- no",
    "[text](https://evil.example)", "![picture](https://evil.example/p.png)", "[text][reference]", "https://evil.example",
    "www.evil.example", "&lt;script&gt;", "&#60;", "two\nlines", "three\r\n\r\nlines", "\u2028\x0b\x85 ends", "back\\slash\\",
    "\\", "a\x00b\x1b[31m",
]  # fmt: skip
ORDINARY = [
    "qwen3.5-demo",
    "task_arithmetic_1",
    "pass@1",
    "-3.1",
    "+71.0 ±4.0",
    "R&D",
    "0.5x–2x",
    "a: b",
    "#1",
    "—",
    "-",
]
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "-", "+1e3x", "-1_0"]
NUMBERS = ["-3", "+71.0", "-0.25", "1e-3", "-1E+5", "12."]
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class Rendered(HTMLParser):
    """The cells of a rendered table, and every tag that is none of a table's."""

    def __init__(self, markdown: str) -> None:
        super().__init__(convert_charrefs=True)
        self.cells: list[str] = []
        self.others: list[str] = []
        self.inside = False
        self.feed(RENDERER.render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th"):
            self.cells.append("")
            self.inside = True
        elif tag not in ("table", "thead", "tbody", "tr"):
            self.others.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def rendered(*texts: str) -> list[str]:
    """What a reader sees of a table with one row; there is nothing in it but its cells."""
    seen = Rendered("\n".join(pipes([f"h{place}" for place, _ in enumerate(texts)], [texts])))
    assert seen.others == []
    return seen.cells[len(texts) :]


@pytest.mark.parametrize("text", [*HOSTILE, *ORDINARY])
def test_a_cell_renders_as_its_text(text: str) -> None:
    assert rendered(text, "x") == [one_line(text).replace("\x00", "\ufffd"), "x"]


@given(st.lists(st.text(alphabet="ab_*`|\\<>[]()!~$&#;:/.-+= \n\r\t1w", max_size=12), min_size=1, max_size=4))
def test_whatever_characters_a_cell_has_it_renders_as_its_text(texts: list[str]) -> None:
    assert rendered(*texts, "x") == [*map(one_line, texts), "x"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("https://evil.example", r"https\://evil.example"), ("see WWW.evil.example", r"see WWW\.evil.example")],
)
def test_an_address_is_no_link_where_a_renderer_looks_for_them(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_stay_as_they_are(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "1. a", "12) a", "===", "---", "> a", "    a", "* a"])
def test_a_footnote_is_a_paragraph(text: str) -> None:
    assert RENDERER.render(paragraph(text)) == f"<p>{html.escape(text.strip())}</p>\n"


def test_names_of_files_are_code_where_they_are_plain() -> None:
    assert code("analysis/barriers.parquet") == "`analysis/barriers.parquet`"
    assert code("a`|b") == "a\\`\\|b"


def hostile(text: str) -> Table:
    """A table whose every text is ``text``: caption, panel, row, column, cell and footnote."""
    frame = pd.DataFrame([{"row": text, "column": text, "text": text}, {"row": "r", "column": text, "text": "t"}])
    return table("t", text, cells(frame, text, "text"), [text])


@pytest.mark.parametrize("text", HOSTILE)
def test_a_tables_texts_are_no_markup(text: str) -> None:
    seen = Rendered(formats.markdown(hostile(text)))
    shown = one_line(text)
    assert [cell.strip() for cell in seen.cells[:6]] == ["", shown, shown, "", shown, shown]
    assert seen.others == ["p", "strong", "em", "p"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_calculate_is_text(text: str) -> None:
    header, first, _ = csv.reader(io.StringIO(formats._csv(hostile(text)), newline=""))
    quoted = f"'{one_line(text)}"
    assert header == ["panel", "row", quoted, "note"]
    assert first == [quoted, quoted, quoted, ""]


@pytest.mark.parametrize("text", [*NUMBERS, *(text for text in HOSTILE if text[0] not in "=+-@")])
def test_numbers_and_other_texts_of_a_csv_stay_as_they_are(text: str) -> None:
    _, first, _ = csv.reader(io.StringIO(formats._csv(hostile(text)), newline=""))
    assert first[:3] == [one_line(text)] * 3


def test_numbers_with_a_sign_and_their_errors_are_no_formulas() -> None:
    rows = [{"row": "r", "column": "gain", "value": -3.0, "stderr": 1.0, "seed_spread": 0.5}]
    made = table("t", "c", cells(pd.DataFrame(rows), "p", "points"))
    assert formats._csv(made) == "panel,row,gain,note\np,r,-3.0 ±1.0 [0.5],\n"
    assert "| r | -3.0 ±1.0 [0.5] |" in formats.markdown(made)


@pytest.mark.parametrize("text", ["[1cm] row", "* row"])
def test_a_row_of_latex_is_no_argument_of_the_row_before(text: str) -> None:
    rows = [line for line in formats.latex(hostile(text)).splitlines() if line.endswith("\\\\")]
    assert not [line for line in rows if line.startswith(("[", "*"))]
    assert f"{{}}{text} & {text} \\\\" in rows


def test_texts_of_latex_and_of_a_terminal_have_one_line() -> None:
    made = hostile("a\n\nb\x1b[31m")
    assert "a b [31m" in formats.latex(made)
    assert "\n\n\\textit" not in formats.latex(made)
    assert "\x1b" not in formats.latex(made) + formats.plain(made)


def test_the_audit_and_the_comparison_of_a_paper_print_texts_as_they_are() -> None:
    text = "[a](b) | <c>\n# d"
    finding = findings.Finding(text, text, text, text, text, text)
    audit = Rendered(findings.markdown(findings.Audit(text, 1, 1, [finding])))
    assert audit.cells[7:] == [one_line(text), "", *[one_line(text)] * 5]
    row = dict.fromkeys(comparison.COLUMNS, text) | {"verdict": comparison.NOT_COMPARABLE}
    compared = Rendered(comparison.markdown(pd.DataFrame([row]), text, text))
    assert compared.cells[3:] == [one_line(text), one_line(text), "1"]
    assert audit.others == compared.others[:2] == ["h1", "p"]
