"""Threads of operations: tensors are merged by several threads, each operation by one."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """PyTorch's operations by one thread each: a sum then does not depend on the number of processors."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
