"""What is mapped. Workers look the functions up by name, so nothing here imports more than they need."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

__all__ = ["HERE", "finish", "multiply", "nothing", "pid", "rest", "spin", "total", "twice"]

HERE = __name__


def nothing(item: int) -> None:
    """A task of nothing: what is left is what it costs to have one."""


def twice(item: int) -> int:
    """Something that tells in which place it belongs."""
    return 2 * item


def total(items: Sequence[int]) -> int:
    """The sum of a whole task."""
    return sum(items)


def spin(item: int, *, loops: int) -> None:  # noqa: ARG001 - all items are alike
    """The same work each time: a loop by the clock would hide what gets in its way."""
    for _ in range(loops):
        pass


def pid(item: int, *, seconds: float) -> int:  # noqa: ARG001 - as above
    """Whoever does it, after a rest that leaves the other items to others."""
    time.sleep(seconds)
    return os.getpid()


def rest(item: int, *, seconds: float, slow: int = 0, times: float = 1.0) -> None:  # noqa: ARG001 - as above
    """A rest; in the process `slow` it takes so many times as long."""
    time.sleep(seconds * times if os.getpid() == slow else seconds)


def finish(item: float) -> tuple[str, float]:
    """A rest of `item` seconds: who had it, and when it was over on the clock that all processes share."""
    time.sleep(item)
    return f"{os.getpid()} {threading.get_ident()}", time.monotonic()


def multiply(item: int, *, size: int, times: int) -> float:  # noqa: ARG001 - as above
    """So many products of two square matrices. Torch holds no interpreter meanwhile."""
    import torch

    matrix = torch.full((size, size), 1.0 / size)
    product = matrix
    for _ in range(times):
        product = matrix @ product
    return float(product[0, 0])
