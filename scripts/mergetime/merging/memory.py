"""What a process does with the memory of blocks that are merged one after another."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Tell glibc to keep a block's memory for the next one: fetching it anew costs as much as merging."""
    with suppress(AttributeError, OSError):
        for limit, size in ((_M_MMAP_THRESHOLD, 1 << 26), (_M_TRIM_THRESHOLD, 1 << 27)):
            ctypes.CDLL(None).mallopt(limit, size)
