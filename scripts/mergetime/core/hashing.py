"""SHA-256 of large files by threads of their own, while a process does something else.

So the record of a merge is hardly waited for: its inputs are hashed while torch is imported and tensors are merged.
"""

import mmap
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from mergetime.core import provenance

_LARGE = 1 << 20
"""Bytes from which on a file is hashed by a thread of its own."""
_STEP = 1 << 26
"""Bytes between two looks at whether to go on: few, so that a thread seldom waits for its turn at the interpreter."""


class Digests:
    """Digests of files, some of which were begun with early; a file that has changed since is hashed again."""

    def __init__(self, executor: ThreadPoolExecutor, stop: threading.Event) -> None:
        self._executor, self._stop = executor, stop
        self._begun: dict[Path, Future[tuple[object, str]]] = {}

    def begin(self, files: Iterable[Path]) -> None:
        """Begin with files; what was begun before is not begun again."""
        for file in files:
            if file not in self._begun and file.is_file() and file.stat().st_size >= _LARGE:
                self._begun[file] = self._executor.submit(_hashed, file, self._stop)

    def of(self, path: Path) -> str:
        """What :func:`mergetime.core.provenance.sha256` says of a file or folder."""
        return provenance.sha256(path, self._of_file)

    def _of_file(self, file: Path) -> str:
        if file in self._begun:
            state, digest = self._begun[file].result()
            if state == _state(file):
                return digest
        return provenance.sha256(file)


@contextmanager
def digests(threads: int) -> Iterator[Digests]:
    """Hash files by so many threads until the body ends; what is not done by then is given up."""
    stop = threading.Event()
    with ThreadPoolExecutor(threads) as executor:
        try:
            yield Digests(executor, stop)
        finally:
            stop.set()
            executor.shutdown(cancel_futures=True)


def _hashed(file: Path, stop: threading.Event) -> tuple[object, str]:
    """The state of a file before it is hashed, and its digest.

    The file is mapped, as for the merge itself: no byte is copied.
    """
    state, running = _state(file), sha256()
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        for start in range(0, len(view), _STEP):
            if stop.is_set():
                break
            running.update(view[start : start + _STEP])
    return state, running.hexdigest()


def _state(file: Path) -> object:
    """What changes whenever a file is written to or another one takes its place."""
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
