"""Files that a wrong clock has dated ahead."""

import os
import time
from pathlib import Path

import pytest

from mergetime.workflow.faults import date_to_present


def test_files_from_the_future_are_dated_to_the_present(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ahead, past, missing = (tmp_path / name for name in ("ahead", "past", "missing"))
    ahead.touch()
    past.touch()
    os.utime(ahead, (time.time() + 1e5,) * 2)
    os.utime(past, (1e9, 1e9))
    date_to_present([str(ahead), past, missing, ahead])
    assert ahead.stat().st_mtime <= time.time()
    assert past.stat().st_mtime == 1e9
    assert capsys.readouterr().err.startswith(f"1 files were dated in the future, such as {ahead}; ")


def test_nothing_is_said_where_no_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").touch()
    os.utime(tmp_path / "a", (1e9, 1e9))
    date_to_present([tmp_path / "a"])
    assert capsys.readouterr().err == ""
