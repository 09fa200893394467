"""The sandbox itself: Linux namespaces, a root file system that holds next to nothing, and no privileges.

Standard library only: it is part of the server that :mod:`mergetime.sandbox.programs` starts.
"""

import contextlib
import ctypes
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_NEW_USER, _NEW_OTHERS = 0x10000000, 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_REC, _PRIVATE, _DETACH = 16384, 1 << 18, 2
_KEPT_OPTIONS = {
    "nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21,
}  # fmt: skip
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITIES_OF_CALLER = struct.pack("=Ii", 0x20080522, 0)
"""The kernel's struct __user_cap_header_struct, of version 3."""
_NO_CAPABILITIES = bytes(24)
_KILL = 9
_SET_MASK = int(signal.SIG_SETMASK)
_VISIBLE = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo",
    "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom",
)  # fmt: skip

NOBODY = 65534
FOLDER = "/program"
"""Where a program's own folder is mounted."""

_libc = ctypes.CDLL(None, use_errno=True)
_LOOKED_UP = (_libc.capset, _libc.prctl, _libc.sigprocmask)
"""Functions that ctypes keeps from the first time on: each program's process would look them up anew."""


def load_libraries() -> None:
    """Load the libraries under the standard library that may lie in folders of LD_LIBRARY_PATH.

    Programs have them from the process that they are forked from. The folders may hold anything else, and stay outside.
    """
    with contextlib.suppress(ImportError):
        import _hashlib  # noqa: F401
        import _ssl  # noqa: F401
    with contextlib.suppress(ImportError):
        import _bz2  # noqa: F401
        import _lzma  # noqa: F401
        import zlib  # noqa: F401
    with contextlib.suppress(ImportError):
        import _sqlite3  # noqa: F401


def enter() -> None:
    """Leave every namespace of the machine: users, mounts, processes, network, IPC and host name.

    Process 1 of the new process namespace is the next child.
    """
    _call("unshare", _NEW_USER | _NEW_OTHERS)


def map_users(pid: int) -> int:
    """From outside, map users into the namespace of ``pid``; the number of own processes that programs count with.

    Started by root, programs become nobody, because the kernel does not limit the number of root's processes.
    """
    with contextlib.suppress(OSError):
        _write(f"/proc/{pid}/setgroups", "deny")
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{pid}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            return 0
    _write(f"/proc/{pid}/uid_map", f"{NOBODY} {os.geteuid()} 1\n")
    _write(f"/proc/{pid}/gid_map", f"{NOBODY} {os.getegid()} 1\n")
    return 2


def build_root() -> None:
    """Replace the root by a read-only one of what programs may read, with an empty :data:`FOLDER`.

    Sockets, credentials and data of the machine are not hidden but absent.
    """
    # Links are resolved here, where they still lead somewhere; programs find plain folders in their places.
    sources = {path: Path(f"/old{path.resolve()}") for path in _visible_paths()}
    with contextlib.suppress(OSError):  # read-only in some containers
        _write("/proc/sys/user/max_user_namespaces", "0")
    os.umask(0o022)  # programs are another user and read the folders made here
    _mount("", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    Path("/tmp/old").mkdir()
    _call("pivot_root", b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path, source in sources.items():
        if source.is_dir():
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        _mount(str(source), str(path), "", _BIND | _REC)
    Path(FOLDER).mkdir()
    mounts = _mounts("/old/proc/self/mountinfo")
    _call("umount2", b"/old", _DETACH)
    Path("/old").rmdir()
    for point, options in mounts:
        if point != "/old" and not point.startswith("/old/"):
            kept = sum(_KEPT_OPTIONS.get(option, 0) for option in options)
            _mount("", point, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | kept)


def mount_folder(size: int) -> None:
    """Give the next program an empty :data:`FOLDER` for ``size`` bytes."""
    _mount("tmpfs", FOLDER, "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes=1024,mode=1777")


def unmount_folder() -> None:
    """Drop the folder of the last program with everything in it."""
    _call("umount2", FOLDER.encode(), _DETACH)


def die_with_parent() -> None:
    """Be killed when the parent ends; a change of user clears this."""
    _call("prctl", _SET_PDEATHSIG, _KILL, 0, 0, 0)


def unblock_signals() -> None:
    """Let every signal arrive: as signal.pthread_sigmask does, without the set of what was blocked, which takes longer.

    No set of signals is larger than 128 bytes.
    """
    _call("sigprocmask", _SET_MASK, bytes(128), None)


def refuse_tracing() -> None:
    """Let no process of the same user trace this one or read its memory."""
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)


def drop_privileges() -> None:
    """Become nobody, without capabilities and without a way to gain any."""
    if os.getuid() != NOBODY:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("capset", _CAPABILITIES_OF_CALLER, _NO_CAPABILITIES)


def _call(name: str, *arguments: Any) -> None:
    """Call a C function that returns 0 for success.

    Raises:
        OSError: with the function's name, if it fails.
    """
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    words = [os.fsencode(text) or None for text in (source, target, kind)]
    try:
        _call("mount", *words, ctypes.c_ulong(flags), options.encode() or None)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({source or kind} on {target})") from error


def _visible_paths() -> list[Path]:
    """What a program may read: the standard library, shared libraries, time zones, harmless devices."""
    paths = {Path(path) for path in (*_VISIBLE, f"{sys.base_prefix}/lib", *sys.path)}
    chosen: list[Path] = []
    for path in sorted(path for path in paths if path.is_absolute() and path != Path("/")):
        if os.access(path, os.R_OK) and not any(path.is_relative_to(other) for other in chosen):
            chosen.append(path)
    return chosen


def _mounts(table: str) -> list[tuple[str, list[str]]]:
    """Path and options of every mount; paths are written with octal escapes."""
    with Path(table).open("rb") as lines:
        fields = [line.split()[4:6] for line in lines]
    return [
        (os.fsdecode(path.decode("unicode_escape").encode("latin-1")), options.decode().split(","))
        for path, options in fields
    ]


def _write(path: str, text: str) -> None:
    """One write, as the kernel asks for."""
    with Path(path).open("wb", buffering=0) as file:
        file.write(text.encode())
