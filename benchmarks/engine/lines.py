"""All lines, in the order in which they are measured and printed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.engine import (
    accounting,
    big_model,
    loop_lag,
    residence,
    same_file,
    seen_before,
    stall,
    streams,
    through_node,
)
from benchmarks.engine.line import Group

__all__ = ["GROUPS", "NAMES", "wanted"]

GROUPS: tuple[Group, ...] = (
    same_file.GROUP,
    big_model.GROUP,
    stall.GROUP,
    residence.GROUP,
    streams.GROUP,
    through_node.GROUP,
    loop_lag.GROUP,
    seen_before.GROUP,
    accounting.GROUP,
)
NAMES = tuple(line.name for group in GROUPS for line in group.lines)


def wanted(words: Sequence[str]) -> list[Group]:
    """Groups with the lines that are named; a word that is no line's name stands for all that have it in theirs."""
    chosen = []
    for group in GROUPS:
        lines = tuple(line for line in group.lines if not words or any(_meant(word, line.name) for word in words))
        if lines:
            chosen.append(msgspec.structs.replace(group, lines=lines))
    return chosen


def _meant(word: str, name: str) -> bool:
    return word == name if word in NAMES else word in name
