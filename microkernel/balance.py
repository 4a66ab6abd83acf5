"""Which of several instances or nodes gets a call. Sans-IO (hot: once a call to a service of several).

Two random choices: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 2001. Hashing is
rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 1998): when
an instance goes, only its own keys move, and they come back with it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from microkernel.message import Call
from microkernel.prefixes import Prefix, Prefixes, prefixes_of

__all__ = ["MOST_INSTANCES", "Affinity", "Balance", "Balancer", "Candidate", "affinity_of"]

MOST_INSTANCES = 64  # of one service
MOST_STICKY = 4096  # callers whose instance is remembered; the one that has called least recently is forgotten


class Balance(StrEnum):
    """How an instance is chosen."""

    ROUND_ROBIN = "round_robin"
    LEAST_BUSY = "least_busy"
    TWO_CHOICES = "two_choices"
    HASH = "hash"  # of a field of the message
    STICKY = "sticky"  # the same caller, the same instance, while it lives
    PREFIX = "prefix"  # where a field of a message began as this one does, for what is cached there


Affinity: TypeAlias = "str | tuple[Prefix, ...]"
"""What a call is drawn by: a text to hash, or under `PREFIX` the beginnings of a field."""


def affinity_of(balance: Balance, field: str, message: tuple[Any, ...], call: Call) -> Affinity:
    """What draws a call: `field` of its message, or where there is no such field, who calls."""
    value = getattr(message[0], field, None) if message and field else None
    if balance is Balance.PREFIX:
        return prefixes_of(value, call.user or "")
    if value is not None:
        return str(value)
    return call.caller if call.user is None else f"{call.user} {call.caller}"


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An instance that could take the call: its number, and the calls that run and wait there."""

    number: int
    load: float


class Balancer:
    """Chooses among candidates. Those whose queue is full should be left out while others have room."""

    def __init__(self, policy: Balance, chance: random.Random | None = None) -> None:
        self._policy = policy
        self._chance = chance or random.Random()  # noqa: S311 - balance, not a secret
        self._turn = itertools.count()
        self._stuck: dict[str, int] = {}
        self._prefixes = Prefixes()

    def choose(self, candidates: Sequence[Candidate], affinity: Affinity) -> Candidate:
        """One of `candidates`, of which there is at least one, to which `affinity_of` draws the call."""
        if isinstance(affinity, tuple):
            number = self._prefixes.place(affinity, {each.number: each.load for each in candidates})
            return next(candidate for candidate in candidates if candidate.number == number)
        if len(candidates) == 1:
            return candidates[0]
        match self._policy:
            case Balance.ROUND_ROBIN:
                return candidates[next(self._turn) % len(candidates)]
            case Balance.LEAST_BUSY:
                # The turn breaks ties: an idle service would send all calls to its first instance.
                turn = next(self._turn)
                rotated = [candidates[(turn + place) % len(candidates)] for place in range(len(candidates))]
                return min(rotated, key=lambda candidate: candidate.load)
            case Balance.TWO_CHOICES:
                return self._two_choices(candidates)
            case Balance.HASH:
                return max(candidates, key=lambda candidate: _weight(affinity, candidate.number))
            case Balance.STICKY:
                return self._stick(candidates, affinity)
            case Balance.PREFIX:
                raise AssertionError("its affinity is no text")

    def _two_choices(self, candidates: Sequence[Candidate]) -> Candidate:
        first, second = self._chance.sample(range(len(candidates)), 2)
        return min(candidates[first], candidates[second], key=lambda candidate: candidate.load)

    def _stick(self, candidates: Sequence[Candidate], caller: str) -> Candidate:
        number = self._stuck.pop(caller, None)
        chosen = next((candidate for candidate in candidates if candidate.number == number), None)
        chosen = chosen or self._two_choices(candidates)
        self._stuck[caller] = chosen.number  # at the end: the most recent
        if len(self._stuck) > MOST_STICKY:
            del self._stuck[next(iter(self._stuck))]
        return chosen


def _weight(key: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number}:{key}".encode(errors="surrogatepass"), digest_size=8).digest()
