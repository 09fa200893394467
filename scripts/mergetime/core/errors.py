"""Errors that a user can mend: one line that names the file, key or expert and what to do."""

import errno
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something that the user can mend; its text is the whole message."""


def one_line(error: Exception) -> str:
    """The text of an error on one line: white space collapsed, characters that steer a terminal written as escapes."""
    text = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def main(function: Callable[[], None]) -> NoReturn:
    """Run a script's ``function`` and exit: 0 when it returns, 1 with one line when the user can mend it."""
    try:
        function()
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    except RecursionError as error:
        print("error: a file is nested deeper than can be read; this program writes no such files", file=sys.stderr)
        raise SystemExit(1) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print("error: no space left on the disk; make room, then give the same command again", file=sys.stderr)
        raise SystemExit(1) from error
    raise SystemExit(0)
