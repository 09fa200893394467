"""Errors that a user can mend: one line that names the file, key or expert and what to do."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn


class UserError(Exception):
    """Something that the user can mend; its text is the whole message."""


def one_line(error: Exception) -> str:
    """The text of an error on one line: white space collapsed, characters that steer a terminal written as escapes."""
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """A text with the characters written as escapes that would begin a line or steer a terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class Terminated(BaseException):
    """SIGTERM, as an exception: what was begun is left as a Ctrl-C leaves it, with no file half-written."""


def main(function: Callable[[], None]) -> NoReturn:
    """Run a script's ``function`` and exit: 0 when it returns, 1 with one line when the user can mend it.

    Ctrl-C and SIGTERM end in one line too, with the statuses that shells give them, 130 and 143; a second one ends the
    process at once.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        function()
    except (KeyboardInterrupt, Terminated) as error:
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        print(_stopped(number), file=sys.stderr)
        raise SystemExit(128 + number) from error
    except (UserError, ValueError) as error:
        _fail(one_line(error), error)
    except RecursionError as error:
        _fail("a file is nested deeper than can be read; this program writes no such files", error)
    except OSError as error:
        _fail(of_system(error), error)
    raise SystemExit(0)


def of_system(error: OSError) -> str:
    """What the operating system refused, and the mend, on one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; make room, then give the same command again"
    if error.errno is None or error.filename is None:
        return one_line(error)
    mend = _MENDS.get(error.errno)
    said = f"{os.fsdecode(error.filename)}: {str(error.strerror).lower()}"
    return one_line(OSError(f"{said}; {mend}" if mend else said))


_MENDS = {
    errno.EACCES: "give yourself the right to it, or name another place",
    errno.EPERM: "give yourself the right to it, or name another place",
    errno.EROFS: "name a folder that can be written to",
    errno.ENOTDIR: "a part of this path is a file; name another place",
    errno.EEXIST: "a file of that name is in the way; remove it, or name another place",
    errno.EISDIR: "name a file",
    errno.ENOENT: "check the name",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def _stopped(number: signal.Signals) -> str:
    return f"stopped by {number.name}; give the same command again"


def _say_ctrl_c(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own last words, but a line for a Ctrl-C that comes before :func:`main`, while modules are imported."""
    if issubclass(kind, KeyboardInterrupt):
        print(_stopped(signal.SIGINT), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# In a script alone, whose other errors come to main: not where somebody types commands.
if sys.excepthook is sys.__excepthook__ and not hasattr(sys, "ps1"):
    sys.excepthook = _say_ctrl_c


def _fail(line: str, error: Exception) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(1) from error


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave SIGTERM to the system from now on, and stop as a Ctrl-C does."""
    signal.signal(number, signal.SIG_DFL)
    raise Terminated
