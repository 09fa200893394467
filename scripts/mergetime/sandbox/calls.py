"""The system calls that a generated program may make: an allow-list, as a filter that the kernel runs (seccomp).

Standard library only: it is part of the server that :mod:`mergetime.sandbox.programs` starts. What is listed is what
Python's standard library and the C library under it need for computing, threads, timers, and files and sockets of their
own. Left out are, among others, memory that no limit counts (memfd_create, shmget, vmsplice, io_setup), what other
processes feel (sched_setaffinity, setpriority, ptrace, pidfd_open), what servers need (bind, listen, accept), keys of
the user, and wide doors into the kernel (bpf, io_uring_setup, userfaultfd, unshare).
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from mergetime.sandbox.system_calls import NUMBERS

_PROCESSORS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls the processors that :mod:`mergetime.sandbox.system_calls` has numbers for."""
_OTHER_CALLS = 0x40000000
"""From here on x86_64 has the same calls again, for pointers of 32 bits."""
_SET_SECCOMP, _SECCOMP_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER_AT, _PROCESSOR_AT, _ARGUMENTS_AT = 0, 4, 16
"""Offsets in the kernel's struct seccomp_data."""
_THREAD = 0x00010F00
"""CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_THREAD."""
_SHARED_WITHOUT_FILE = 0x21
"""MAP_SHARED and MAP_ANONYMOUS: such memory stays with the kernel when all but a page of it is unmapped."""


_KIND_OF_SOCKET = 0xF
"""The rest of a socket's type says whether it blocks and is closed on exec."""

_LINE = "=HBBI"
"""The kernel's struct sock_filter."""
_Line = tuple[int, int, int, int]
"""Operation, steps to skip if true, steps to skip if false, operand."""


class _Condition(NamedTuple):
    """A call is allowed while ``argument & mask`` is among ``values``, else it fails with ``error``."""

    error: int
    values: tuple[int, ...] = ()
    argument: int = 0
    mask: int = 0xFFFFFFFF


_CONDITIONS = {
    # AF_INET, AF_INET6: there is no network to reach with them.
    "socket": (_Condition(errno.EAFNOSUPPORT, (2, 10)),),
    # AF_UNIX streams. What waits at a UNIX socket with a name, in connections or datagrams of senders that are closed,
    # would be memory of no process.
    "socketpair": (
        _Condition(errno.EAFNOSUPPORT, (1,)),
        _Condition(errno.EPROTONOSUPPORT, (1,), argument=1, mask=_KIND_OF_SOCKET),
    ),
    # The limits of the caller itself, which only become lower.
    "prlimit64": (_Condition(errno.EPERM, (0,)),),
    "mmap": (_Condition(errno.EPERM, (0x00, 0x01, 0x20), argument=3, mask=_SHARED_WITHOUT_FILE),),
    # Duplicates, flags, locks, the size of pipes.
    "fcntl": (_Condition(errno.EPERM, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032), argument=1),),
    # Whether it is a terminal, how much there is to read, blocking, closing on exec.
    "ioctl": (_Condition(errno.ENOTTY, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451), argument=1),),
}
_ITSELF = 0xFFFFFFFF
"""Stands for the number of the process, and is no such number."""
_IS_ITSELF = struct.pack(_LINE, _EQUAL, 1, 0, _ITSELF)
_CONDITIONS_OF_PROGRAMS = {
    # Threads share their process's limits; another process would have limits of its own.
    "clone": _Condition(errno.EAGAIN, (_THREAD,), mask=_THREAD),
    "fork": _Condition(errno.EAGAIN),
    "vfork": _Condition(errno.EAGAIN),
    "kill": _Condition(errno.EPERM, (_ITSELF,)),
    "tgkill": _Condition(errno.EPERM, (_ITSELF,)),
    # What process 1 does for a program, and a program before it begins.
    **dict.fromkeys(("mount", "umount2", "prctl", "capset", "setresuid", "setresgid"), _Condition(errno.EPERM)),
}

_libc = ctypes.CDLL(None, use_errno=True)


def filters() -> tuple[bytes, bytes]:
    """The filters for this machine's processor: one for the sandbox as a whole, and what programs have on top of it.

    A call that is not listed does not exist. There are two, because the kernel takes half a millisecond for a long one;
    :func:`apply` puts the process's own number in the second.

    Raises:
        OSError: for a processor whose calls are not listed.
    """
    machine = os.uname().machine
    if machine not in NUMBERS:
        raise OSError(errno.ENOSYS, f"no list of system calls to allow on {machine}")
    numbers = NUMBERS[machine]
    everywhere = [
        (_LOAD, 0, 0, _PROCESSOR_AT), (_EQUAL, 1, 0, _PROCESSORS[machine]), (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        (_LOAD, 0, 0, _NUMBER_AT), (_AT_LEAST, 0, 1, _OTHER_CALLS), (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]  # fmt: skip
    for name, conditions in _CONDITIONS.items():
        everywhere += _conditional(numbers[name], *conditions)
    plain = sorted(numbers[name] for name in numbers.keys() - _CONDITIONS.keys())
    everywhere += [(_EQUAL, len(plain) - done, 0, number) for done, number in enumerate(plain)]
    everywhere += [(_RETURN, 0, 0, _FAIL | errno.ENOSYS), (_RETURN, 0, 0, _ALLOW)]
    programs: list[_Line] = [(_LOAD, 0, 0, _NUMBER_AT)]
    for name, condition in _CONDITIONS_OF_PROGRAMS.items():
        if name in numbers:
            programs += _conditional(numbers[name], condition)
    return _packed(everywhere), _packed([*programs, (_RETURN, 0, 0, _ALLOW)])


def apply(code: bytes) -> None:
    """Put this process and all that it starts under a filter, next to those that it has; there is no way back.

    Raises:
        OSError: with a kernel that has no filters.
    """
    code = code.replace(_IS_ITSELF, struct.pack(_LINE, _EQUAL, 1, 0, os.getpid()))
    # A length of 16 bits, padded, and a pointer.
    program = struct.pack("@HP", len(code) // 8, ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p).value)
    if _libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, program, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")


def _conditional(number: int, *conditions: _Condition) -> list[_Line]:
    """Allow a call that meets every condition, refuse it else; go on with the next line for any other call."""
    tests: list[_Line] = []
    for condition in conditions:
        count = len(condition.values)
        tests += [
            (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument),
            (_AND, 0, 0, condition.mask),
            *((_EQUAL, count - done, 0, value) for done, value in enumerate(condition.values)),
            (_RETURN, 0, 0, _FAIL | condition.error),
        ]
    return [(_EQUAL, 0, len(tests) + 1, number), *tests, (_RETURN, 0, 0, _ALLOW)]


def _packed(lines: list[_Line]) -> bytes:
    return b"".join(struct.pack(_LINE, *line) for line in lines)
