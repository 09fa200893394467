"""How a script ends when something is wrong that the user can mend."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mergetime.core import errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise OSError(number, "whatever")

    with pytest.raises(SystemExit) as ended:
        errors.main(run)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == "error: no space left on the disk; make room, then give the same command again\n"


def test_what_steers_a_terminal_is_written_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise errors.UserError("key \x1b[31mred\n\u202ereversed\x00: wrong")

    with pytest.raises(SystemExit):
        errors.main(run)
    assert capsys.readouterr().err == "error: key \\x1b[31mred \\u202ereversed\\x00: wrong\n"


def test_json_nested_too_deeply_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        errors.main(lambda: json.loads("[" * 100_000))
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: a file is nested deeper than can be read")


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (lambda folder: (folder / "absent").read_text(), "absent: no such file or directory; check the name"),
        (lambda folder: (folder / "file" / "below").mkdir(), "below: not a directory; a part of this path is a file"),
        (lambda folder: (folder / "file").mkdir(), "file: file exists; a file of that name is in the way"),
        (lambda folder: folder.read_text(), ": is a directory; name a file"),
        (lambda folder: (folder / ("x" * 300)).read_text(), ": file name too long; choose a shorter one"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    act: Callable[[Path], object], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        errors.main(lambda: print(act(tmp_path)))
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith(f"error: {tmp_path}")
    assert line in said
    assert said.count("\n") == 1


_WAITS = """
import os, signal, sys, time
from pathlib import Path
from mergetime.core.atomic import completed
from mergetime.core.errors import main

def run():
    with completed(Path(sys.argv[1])) as (beside,):
        beside.write_text("half")
        print("begun", flush=True)
        time.sleep(60)

# Who runs tests in the background of a shell has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
main(run)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line_and_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", _WAITS, tmp_path / "whole"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "scripts")},
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "begun\n"
    started.send_signal(number)
    _, said = started.communicate(timeout=30)
    assert (started.returncode, said) == (128 + number, f"stopped by {number.name}; give the same command again\n")
    assert not list(tmp_path.iterdir())
