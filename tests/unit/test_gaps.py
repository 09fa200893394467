"""What is loaded of a merge is the base plus exact updates, for every kind of input that docs/exactness.md lists."""

from pathlib import Path

import pytest

from tests.unit import gaps

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("words", gaps.KINDS)
def test_what_is_loaded_is_what_was_merged(words: str, tmp_path: Path) -> None:
    measured = gaps.gaps(gaps.KINDS[words], tmp_path)
    moved = measured.pop("base")
    assert moved > 0.1
    assert max(measured.values()) <= gaps.LIMIT, measured


def test_the_table_has_every_kind() -> None:
    rows = (ROOT / "docs/exactness.md").read_text().removeprefix(gaps.HEAD).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(gaps.KINDS)
    for row, kind in zip(rows, gaps.KINDS.values(), strict=True):
        *cells, _ = (cell.strip() for cell in row.strip("|").split("|")[1:])
        assert [form for form, cell in zip(gaps.ALL, cells, strict=True) if cell != "-"] == [
            form for form in gaps.ALL if form in kind.outputs
        ]
        assert all(float(cell) <= gaps.LIMIT for cell in cells if cell != "-")
