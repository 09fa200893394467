"""What a command costs: CPU and wall seconds, and its peak memory; and how fast the disk is."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.02
BLOCK_BYTES = 1 << 26
BLOCKS = 16
_FIELDS = ("RssAnon", "RssShmem", "RssFile")


@dataclass(frozen=True)
class Usage:
    """What one run of a command took.

    Attributes:
        exit_status: 0 where all went well, negative for a signal.
        cpu_seconds: user and system time of the process and of all descendants that were waited for.
        wall_seconds: from start to exit.
        anonymous_mb: peak resident memory without a file behind it, shared memory included, in 10^6 bytes.
        mapped_mb: peak resident pages of mapped files, in 10^6 bytes: the system can drop them at any time.
        others_share: share of all cores' time that went to other processes meanwhile, 0 to 1.
    """

    exit_status: int
    cpu_seconds: float
    wall_seconds: float
    anonymous_mb: float
    mapped_mb: float
    others_share: float


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end with its output in the file ``log``, and say what it took.

    The two peaks are sampled apart: they need not have been reached at the same moment.
    """
    with log.open("wb") as stream:
        started, busy = time.perf_counter(), _busy_seconds()
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        with _Sampler(child.pid) as peaks:
            try:
                # Popen's own wait does not say what the child used.
                _, status, used = os.wait4(child.pid, 0)
            except BaseException:
                child.kill()
                child.wait()
                raise
            wall = time.perf_counter() - started
            others = _busy_seconds() - busy - (used.ru_utime + used.ru_stime)
    child.returncode = os.waitstatus_to_exitcode(status)
    return Usage(
        exit_status=child.returncode,
        cpu_seconds=used.ru_utime + used.ru_stime,
        wall_seconds=wall,
        anonymous_mb=_megabytes(peaks.anonymous_kib),
        mapped_mb=_megabytes(peaks.mapped_kib),
        others_share=max(0.0, others / wall / (os.cpu_count() or 1)),
    )


@dataclass(frozen=True)
class DiskSpeed:
    """Sequential speeds of a disk in 10^6 bytes a second.

    Attributes:
        write: written and flushed to the disk.
        read: read after the file's pages were dropped from memory; where the system keeps them all the same, or the
            disk has a cache of its own, this is faster than the disk.
        cached_read: read again, from the system's page cache.
    """

    write: float
    read: float
    cached_read: float


def disk_speed(folder: Path) -> DiskSpeed:
    """Write and read a file of 1 GiB of random bytes in a folder, and remove it."""
    path = folder / ".disk_speed"
    megabytes = BLOCK_BYTES * BLOCKS / 1e6
    block = os.urandom(BLOCK_BYTES)
    try:
        with path.open("wb", buffering=0) as stream:
            started = time.perf_counter()
            for _ in range(BLOCKS):
                stream.write(block)
            os.fsync(stream.fileno())
            write = megabytes / (time.perf_counter() - started)
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return DiskSpeed(write, megabytes / seconds_to_read(path), megabytes / seconds_to_read(path))
    finally:
        path.unlink(missing_ok=True)


def seconds_to_read(path: Path) -> float:
    """Wall seconds to read a file from beginning to end, which leaves it in the page cache where memory allows."""
    buffer = bytearray(BLOCK_BYTES)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return time.perf_counter() - started


@dataclass
class _Sampler:
    """A thread that looks at a process and its descendants every 20 ms and keeps the largest sums."""

    process: int
    anonymous_kib: int = 0
    mapped_kib: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "_Sampler":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            sizes = [_resident_kib(process) for process in (self.process, *_descendants(self.process))]
            self.anonymous_kib = max(self.anonymous_kib, sum(own["RssAnon"] + own["RssShmem"] for own in sizes))
            self.mapped_kib = max(self.mapped_kib, sum(own["RssFile"] for own in sizes))


def _busy_seconds() -> float:
    """CPU seconds that all cores together have not been idle since the machine started."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _megabytes(kib: int) -> float:
    return kib * 1024 / 1e6


def _descendants(process: int) -> Iterator[int]:
    """The children of all threads of a process, their children, and so on; none where it has ended."""
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _read(path).split():
            yield int(child)
            yield from _descendants(int(child))


def _resident_kib(process: int) -> dict[str, int]:
    """The resident sizes in /proc/PID/status; ``smaps_rollup`` walks all pages, which slows down what is measured."""
    sizes = dict.fromkeys(_FIELDS, 0)
    for line in _read(Path(f"/proc/{process}/status")).splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0])
    return sizes


def _read(path: Path) -> str:
    """A file under /proc, empty where the process has ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
