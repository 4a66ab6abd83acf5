"""Functions that tests map; quick to import, as each process that is killed has another that imports them again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def square(item: int) -> int:
    return item * item


def power(item: int, *, exponent: int) -> int:
    return item**exponent


def odd_fails(item: int) -> int:
    if item % 2:
        raise ValueError(f"{item} is odd")
    return item


def add(one: float, other: float) -> float:
    return one + other


def tenth(item: int) -> float:
    return item * 0.1


def total(items) -> int:
    return sum(items)


def kills(item: int, *, poison: int) -> int:
    if item == poison:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def all_kill(item: int, *, from_item: int) -> int:
    if item >= from_item:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def noted(item: int, *, folder: str, seconds: float = 0.0) -> int:
    """Leaves a file for each time that it runs."""
    (Path(folder) / f"{item}.{os.getpid()}.{time.monotonic_ns()}").touch()
    time.sleep(seconds)
    return item


def until(item: int, *, path: str) -> int:
    """Waits until there is a file."""
    while not Path(path).exists():
        time.sleep(0.005)
    return item


def where(item: int) -> tuple[int, int]:
    time.sleep(0.01)
    return item, os.getpid()


def slowly(item: int) -> int:
    time.sleep(0.002)
    return item


def described(item: bytes) -> dict[str, object]:
    time.sleep(0.002)
    return {"raw": item, "list": [len(item), None, 0.5]}
