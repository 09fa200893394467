"""How a script ends when something is wrong that the user can mend."""

import errno

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
