"""Where a message with the same beginning went before: balancing by prefix. Sans-IO (hot: once a call).

A conversation is cut into its turns, a text into pieces; each is hashed together with all before it, so that one
look-up tells how far a beginning is known, and where. Approximate on purpose, as the cache-aware router of SGLang is
(Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", NeurIPS 2024): what a node has let
go of since costs it one computation. The user is part of every hash: what two users say alike is not shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from microkernel.message import to_builtins

__all__ = ["Prefix", "Prefixes", "prefixes_of"]

PIECE = 256  # characters of a text that are looked at together
TOKENS = 64  # the same of a list of numbers
MOST_PIECES = 256  # of one message: what comes later decides nothing
REMEMBERED = 65_536  # beginnings
WORTH = 0.5  # the share of a message that has to be known somewhere, for it to go there
SPARE = 4.0  # calls that a node may have more than the idlest one, and twice as many as that has


class Prefix(NamedTuple):
    """A beginning: its hash, and how much of the message it is, in pieces' sizes."""

    key: bytes
    size: int


def prefixes_of(value: Any, owner: str) -> tuple[Prefix, ...]:
    """The beginnings of `value`, a list of turns, a text or a list of tokens, shortest first."""
    if isinstance(value, str):
        pieces: list[bytes] = [value[at : at + PIECE].encode(errors="replace") for at in range(0, len(value), PIECE)]
    elif isinstance(value, list | tuple) and value and isinstance(value[0], int):
        pieces = [msgspec.json.encode(value[at : at + TOKENS]) for at in range(0, len(value), TOKENS)]
    elif isinstance(value, list | tuple):
        pieces = [msgspec.json.encode(to_builtins(each)) for each in value]
    else:
        pieces = [] if value is None else [msgspec.json.encode(to_builtins(value))]
    found: list[Prefix] = []
    size, key = 0, owner.encode(errors="replace")
    for piece in pieces[:MOST_PIECES]:
        size += len(piece)
        key = hashlib.blake2b(piece, key=hashlib.blake2b(key, digest_size=16).digest(), digest_size=12).digest()
        found.append(Prefix(key, size))
    return tuple(found)


class Prefixes:
    """Which of several places had a beginning last."""

    def __init__(self) -> None:
        self._had: dict[bytes, int] = {}  # the least recent first
        self._counts: dict[int, int] = {}  # beginnings that a place had

    def place(self, prefixes: Sequence[Prefix], loads: dict[int, float]) -> int:
        """Where a message goes, among the places of `loads` (calls by place): remembered from now on."""
        idlest = min(loads, key=lambda number: (loads[number], self._counts.get(number, 0), number))
        chosen = idlest
        for prefix in reversed(prefixes):
            number = self._had.get(prefix.key)
            if number in loads:
                if prefix.size >= WORTH * prefixes[-1].size and loads[number] <= 2 * loads[idlest] + SPARE:
                    chosen = number
                break
        for prefix in prefixes:
            self._remember(prefix.key, chosen)
        return chosen

    def _remember(self, key: bytes, number: int) -> None:
        self._forget(key)
        self._had[key] = number
        self._counts[number] = self._counts.get(number, 0) + 1
        if len(self._had) > REMEMBERED:
            self._forget(next(iter(self._had)))

    def _forget(self, key: bytes) -> None:
        number = self._had.pop(key, None)
        if number is not None:
            self._counts[number] -= 1
            if not self._counts[number]:
                del self._counts[number]
