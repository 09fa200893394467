"""The tidy files: columns, and what is refused."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mergetime.core import tables
from mergetime.results import collection
from mergetime.results import columns as tidy


def curve() -> pd.DataFrame:
    row = {
        "study": "s",
        "base": "b",
        "domain": "math",
        "seed": 1,
        "step": 0,
        "train_loss": None,
        "validation_loss": 2.0,
    }
    row |= dict.fromkeys(
        ["validation_accuracy", "gradient_norm", "learning_rate", "tokens_per_second", "gpu_memory_mb", "energy_j"]
    )
    return pd.DataFrame(
        [row | {"tokens": 0, "t_star": 8, "t_star_at_boundary": False, "last_step": 40, "recipe": "default"}]
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tables.write(curve(), tidy.CURVES, tmp_path / "curves.parquet")
    found = tables.read(tmp_path / "curves.parquet", tidy.CURVES)
    assert found.loc[0, "validation_loss"] == 2.0
    assert found["train_loss"].isna()[0]
    schema = pq.read_schema(tmp_path / "curves.parquet")
    assert schema.field("t_star").metadata[b"meaning"].startswith(b"T*")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (curve().drop(columns="step"), r"columns missing \['step'\]"),
        (curve().assign(stepp=1), r"unknown \['stepp'\]"),
        (curve().assign(domain=None), "column domain .* has an empty cell"),
        (curve().assign(seed="one"), "seed"),
    ],
)
def test_other_columns_are_refused(frame: pd.DataFrame, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tables.write(frame, tidy.CURVES, tmp_path / "curves.parquet")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    curve().drop(columns="step").to_parquet(tmp_path / "old.parquet")
    with pytest.raises(ValueError, match=r"old.parquet: columns differ from this version's: \['step'\]"):
        tables.read(tmp_path / "old.parquet", tidy.CURVES)


def test_a_cell_without_a_value_is_refused_where_there_must_be_one(tmp_path: Path) -> None:
    curve().assign(domain=None)[list(tidy.CURVES)].to_parquet(tmp_path / "old.parquet")
    with pytest.raises(ValueError, match=r"old.parquet: column domain .* has an empty cell or NaN; make it again"):
        tables.read(tmp_path / "old.parquet", tidy.CURVES)


def test_what_shares_no_source_is_its_own_stem() -> None:
    frame = pd.DataFrame({"item": ["a", "b", "c"], "stem": ["q1", "q1", None]})
    assert collection.with_stems(frame)["stem"].tolist() == ["q1", "q1", "c"]
    assert collection.with_stems(frame[["item"]])["stem"].tolist() == ["a", "b", "c"]


def test_pieces_are_written_as_the_whole_is(tmp_path: Path) -> None:
    whole = pd.concat([curve().assign(step=step, train_loss=loss) for step, loss in ((0, None), (8, 1.5), (16, 1.0))])
    tables.write(whole, tidy.CURVES, tmp_path / "whole.parquet")
    shared = {"study": "s", "base": "b", "domain": "math", "seed": 1, "energy_j": None}
    pieces = [tables.Piece(whole[at : at + 1].drop(columns=list(shared)), shared) for at in range(3)]
    assert tables.write_pieces(iter(pieces), tidy.CURVES, tmp_path / "pieces.parquet", group_rows=2) == 3
    found = pq.ParquetFile(tmp_path / "pieces.parquet")
    assert [found.metadata.row_group(at).num_rows for at in range(found.num_row_groups)] == [2, 1]
    expected = pq.read_table(tmp_path / "whole.parquet")
    assert found.read().equals(expected)
    assert found.schema_arrow.equals(expected.schema, check_metadata=True)


@pytest.mark.parametrize(
    ("frame", "same", "message"),
    [
        (curve().drop(columns="step"), {}, r"columns missing \['step'\]"),
        (curve().drop(columns="seed"), {"seed": None}, "column seed .* has an empty cell"),
        (curve().drop(columns="seed"), {"seed": "one"}, "one"),
        (curve().assign(domain=None), {}, "column domain .* has an empty cell"),
    ],
)
def test_a_piece_that_is_wrong_leaves_no_file(
    frame: pd.DataFrame, same: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pieces = [tables.Piece(curve()), tables.Piece(frame, same)]
    with pytest.raises(ValueError, match=message):
        tables.write_pieces(pieces, tidy.CURVES, tmp_path / "curves.parquet", group_rows=1)
    assert not list(tmp_path.iterdir())


def test_no_piece_is_a_file_without_rows(tmp_path: Path) -> None:
    assert tables.write_pieces([], tidy.CURVES, tmp_path / "curves.parquet") == 0
    assert tables.read(tmp_path / "curves.parquet", tidy.CURVES).empty
