"""The tidy files: columns, and what is refused."""

from pathlib import Path

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
    assert pd.isna(found.loc[0, "train_loss"])
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


def test_what_shares_no_source_is_its_own_stem() -> None:
    frame = pd.DataFrame({"item": ["a", "b", "c"], "stem": ["q1", "q1", None]})
    assert collection.with_stems(frame)["stem"].tolist() == ["q1", "q1", "c"]
    assert collection.with_stems(frame[["item"]])["stem"].tolist() == ["a", "b", "c"]
