"""Limits of time and memory on what files of others make this process compute."""

import faulthandler
import functools
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STDERR = 2


@contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds of computing, where signals arrive: in the main thread.

    Python sees no signal during a single call of C: after twice as long, SIGVTALRM ends the process, once the place is
    on standard error. Both clocks add the process's threads up and leave waiting out; the second one leaves out the
    kernel's work, too. It takes 5 microseconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _handle_signals()
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)
    # Again and again, because what is limited may go on after any exception.
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@functools.cache
def _handle_signals() -> None:
    """Once for a process, because it takes longer than the rest."""
    signal.signal(signal.SIGPROF, _time_out)
    faulthandler.register(signal.SIGVTALRM, file=_STDERR, all_threads=False, chain=True)


def _time_out(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


@contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Raise MemoryError where the process asks for more than ``size`` bytes of addresses beside those that it has.

    In the main thread alone: the limit is the process's, and two threads would restore each other's. Without /proc
    there is none. It takes 5 microseconds.
    """
    statm = _statm(os.getpid())
    if statm is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    pages = int(os.pread(statm, 100, 0).split(maxsplit=1)[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + size
    # No limit is -1.
    resource.setrlimit(resource.RLIMIT_AS, (wanted if before < 0 else min(before, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


@functools.cache
def _statm(pid: int) -> int | None:
    """A descriptor of the file in which the kernel says what this process has; opening it takes longer than reading."""
    try:
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
