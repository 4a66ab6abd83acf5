"""What is mapped where a node is killed: tasks that leave a mark when they begin and when they end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["Mark", "begun_elsewhere", "mark", "marks"]


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """`when` is in seconds on the clock that all processes of a machine share."""

    what: Literal["begun", "ended"]
    item: int
    pid: int
    when: float


def mark(item: int, *, file: str, seconds: float) -> int:
    """Rest, with a mark before and after."""
    _note(file, Mark("begun", item, os.getpid(), time.monotonic()))
    time.sleep(seconds)
    _note(file, Mark("ended", item, os.getpid(), time.monotonic()))
    return item


def marks(file: Path) -> list[Mark]:
    """All that there are."""
    if not file.exists():
        return []
    return [
        msgspec.json.decode(line, type=Mark)
        for line in file.read_bytes().splitlines(keepends=True)
        if line[-1:] == b"\n"
    ]


def begun_elsewhere(seen: Sequence[Mark], pid: int) -> float | None:
    """When another process has begun the last of the tasks that `pid` had begun and not ended.

    None while one of them is missing; negative infinity where there was none.
    """
    lost = {each.item for each in seen if each.pid == pid and each.what == "begun"}
    lost -= {each.item for each in seen if each.pid == pid and each.what == "ended"}
    begun = {each.item: each.when for each in seen if each.pid != pid and each.what == "begun"}
    if not lost <= begun.keys():
        return None
    return max((begun[item] for item in lost), default=-inf)


def _note(file: str, one: Mark) -> None:
    """A short line that is appended in one call is in nobody's way."""
    target = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(target, msgspec.json.encode(one) + b"\n")
    finally:
        os.close(target)
