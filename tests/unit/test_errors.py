"""How a script ends when something is wrong that the user can mend."""

import errno
import json

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


def test_another_error_of_the_system_keeps_its_traceback() -> None:
    def run() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        errors.main(run)


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
