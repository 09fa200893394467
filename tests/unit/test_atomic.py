"""Files that are whole whenever they are there."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mergetime.core.atomic import completed, unfinished_of, write_atomically


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_appear_together_when_all_are_written(tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    with completed(first, second) as partial:
        for path in partial:
            path.write_text(path.name)
        assert not first.exists()
        assert not second.exists()
        # Nobody takes them for what they will be.
        assert not [*tmp_path.glob("*.parquet")]
    assert names(tmp_path) == {"a.parquet", "b.parquet"}
    assert "b.parquet" in second.read_text()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("old")

    def write() -> None:
        with completed(path) as (beside,):
            beside.write_text("half of what is n")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write()
    assert names(tmp_path) == {"a.parquet"}
    assert path.read_text() == "old"


def test_what_a_kill_left_is_not_written_into(tmp_path: Path) -> None:
    """A killed training may leave a link to the weights that it goes on from."""
    kept, path = tmp_path / "kept", tmp_path / "weights"
    kept.write_text("kept")
    with completed(path) as (beside,):
        beside.touch()
    os.link(kept, beside)
    with completed(path) as (beside,):
        beside.write_text("new")
    assert kept.read_text() == "kept"
    assert path.read_text() == "new"
    assert names(tmp_path) == {"kept", "weights"}


def test_what_a_kill_left_is_told_by_its_name(tmp_path: Path) -> None:
    for marked in ({}, {"mark": str(os.getpid())}):
        with completed(tmp_path / "a.json", **marked) as (beside,):
            assert unfinished_of(beside.name) == "a.json"
            beside.touch()
    for name in ("a.json", ".a.json", ".partial", "a.json.partial", ".a.json.9x", ".a.json.partial.old"):
        assert unfinished_of(name) is None


def write_often(path: Path, text: str) -> None:
    for _ in range(500):
        write_atomically(path, text)


def test_processes_may_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new/record.json"
    texts = ["a" * 10_000, "b" * 10_000]
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        for done in [processes.submit(write_often, path, text) for text in texts]:
            done.result()
    assert names(path.parent) == {path.name}
    assert path.read_text() in texts
