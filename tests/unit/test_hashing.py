"""Digests of large files that are taken while something else is done."""

import os
import time
from pathlib import Path

import pytest

from mergetime.core import hashing, provenance


def large(file: Path, content: bytes = b"x") -> Path:
    """A file that a thread of its own hashes, in more than one step."""
    file.write_bytes(content * (hashing._LARGE + 1))
    return file


def test_digests_taken_meanwhile_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_STEP", 1000)
    folder = tmp_path / "folder"
    folder.mkdir()
    files = [large(folder / "a", os.urandom(1)), large(folder / "b"), folder / "small", tmp_path / "not begun"]
    files[2].write_text("1")
    large(files[3])
    with hashing.digests(2) as digests:
        digests.begin([*files[:3], folder / "not there"])
        assert set(digests._begun) == set(files[:2])
        for path in (*files, folder):
            assert digests.of(path) == provenance.sha256(path)


def test_a_file_that_has_changed_since_is_hashed_again(tmp_path: Path) -> None:
    file = large(tmp_path / "file")
    with hashing.digests(1) as digests:
        digests.begin([file])
        before = digests.of(file)
        digests.begin([large(file, b"yy")])
        assert digests.of(file) == provenance.sha256(file) != before


def test_nothing_is_begun_with_twice(tmp_path: Path) -> None:
    file = large(tmp_path / "file")
    with hashing.digests(1) as digests:
        digests.begin([file])
        begun = digests._begun[file]
        digests.begin([file])
        assert digests._begun[file] is begun


def test_what_is_not_done_in_the_end_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # a quarter of an hour's work, of holes that take no space
    started = time.monotonic()
    with pytest.raises(KeyError), hashing.digests(1) as digests:
        digests.begin([file, large(tmp_path / "next")])
        raise KeyError
    assert time.monotonic() - started < 60
