"""What a process does with its memory: that of blocks that are merged one after another, and of imported modules."""

import ctypes
import gc
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Tell glibc to keep a block's memory for the next one: fetching it anew costs as much as merging."""
    with suppress(AttributeError, OSError):
        for limit, size in ((_M_MMAP_THRESHOLD, 1 << 26), (_M_TRIM_THRESHOLD, 1 << 27)):
            ctypes.CDLL(None).mallopt(limit, size)


def import_torch() -> None:
    """Import torch, leaving its half a million objects out of Python's search for garbage, which takes 0.3 s else."""
    if "torch" in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        if was_on:
            gc.enable()
