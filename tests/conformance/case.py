"""What a case is: frames that are sent, answers that have to come, and how the connection ends.

The numbers are those of Autobahn's case list, whose cases are told here in our own words. There, what is under test
sends each message back. `mk.v1` is no echo, so what a case *says* is a message of it that makes the content come
back: to a server a call of a service that returns it, to a client the result of a call that it has made. A `Dialect`
knows how. Frames that are given as they are reach `mk.v1` only where the websocket lets them pass, and are then
refused with 4501: a case that expects that shows that the layer below has nothing against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Protocol

from conformance.frames import Frame, Opcode

__all__ = [
    "DROPPED", "ECHO", "FRAME_BY_FRAME", "HELLO", "NORMAL", "NO_CODE", "PROTOCOL_ERROR", "NO_UTF8", "TOO_BIG",
    "NOT_MK", "MK_TOO_BIG", "Case", "Dialect", "Role", "Say", "frames_of", "text",
]  # fmt: skip

NORMAL, PROTOCOL_ERROR, NO_CODE, DROPPED, NO_UTF8, TOO_BIG = 1000, 1002, 1005, 1006, 1007, 1009  # section 7.4.1
NOT_MK, MK_TOO_BIG = 4501, 4504  # of mk.v1
ECHO = 0  # in the answers: what was said first has come back
FRAME_BY_FRAME = -1
HELLO = b"Hello, world!"


class Role(Enum):
    """What is under test."""

    SERVER = "server"
    CLIENT = "client"


class Dialect(Protocol):
    """How `mk.v1` brings a content to the end under test."""

    def message(self, content: bytes, number: int, *, binary: bool) -> bytes:
        """The message that brings `content`; a case says several, by `number`."""


@dataclass(frozen=True)
class Say:
    """A message that is answered by its own content, in one frame or in fragments."""

    content: bytes = HELLO
    size: int = 0  # octets of the whole message, filled up; 0 leaves it at its content
    binary: bool = False
    parts: int = 1  # fragments of about the same length
    every: int = 0  # or fragments of so many octets
    cuts: tuple[int, ...] = ()  # or fragments that end at these octets of the content
    empty_ends: bool = False  # and an empty fragment before and after
    between: tuple[tuple[int, Frame], ...] = ()  # frames after so many fragments


@dataclass(frozen=True)
class Case:
    """One case. `answers` are pongs, and numbers of what was said and has come back."""

    number: str
    what: str
    steps: tuple[Frame | Say, ...]
    answers: tuple[Frame | int, ...] = ()
    needed: int | None = None  # how many of the answers must come; the others may. None: all
    closes: tuple[int, ...] = ()  # codes that the end under test may close with; (): the test closes, and it agrees
    chop: int = 0  # octets of a write; 0: everything in one
    chop_at_cuts: bool = False  # the cuts of what is said part the writes, and not the frames
    slow: bool = False
    wrong: str = ""  # what is known to be wrong, and where

    def chops(self, dialect: Dialect, encode: Callable[[Iterable[Frame]], bytes]) -> list[bytes]:
        """What is written, piece by piece."""
        frames = frames_of(self, dialect)
        if self.chop == FRAME_BY_FRAME:
            return [encode([frame]) for frame in frames]
        octets = encode(frames)
        if self.chop_at_cuts:
            (said,) = self.steps
            assert isinstance(said, Say)
            head = len(octets) - len(frames[0].payload)
            return _cut(octets, [head + at for at in _places(said, frames[0].payload)])
        if self.chop:
            return _cut(octets, range(self.chop, len(octets), self.chop))
        return [octets]

    def content(self, dialect: Dialect, number: int) -> bytes:
        """What has to come back of what was said as `number`."""
        return _filled(self._said()[number], number, dialect)

    @property
    def messages(self) -> int:
        """How many messages are said."""
        return len(self._said())

    def _said(self) -> list[Say]:
        return [step for step in self.steps if isinstance(step, Say)]


def frames_of(case: Case, dialect: Dialect) -> list[Frame]:
    """All frames of a case, in order."""
    frames: list[Frame] = []
    number = 0
    for step in case.steps:
        if isinstance(step, Frame):
            frames.append(step)
        else:
            frames += _fragments(step, number, dialect, whole=case.chop_at_cuts)
            number += 1
    return frames


def text(payload: bytes = HELLO, *, fin: bool = True, rsv: int = 0) -> Frame:
    """A text frame as it is."""
    return Frame(Opcode.TEXT, payload, fin, rsv)


def _fragments(said: Say, number: int, dialect: Dialect, *, whole: bool) -> list[Frame]:
    message = dialect.message(_filled(said, number, dialect), number, binary=said.binary)
    pieces = [message] if whole else _cut(message, _places(said, message))
    if said.empty_ends:
        pieces = [b"", *pieces, b""]
    frames: list[Frame] = []
    between = dict(said.between)
    for place, piece in enumerate(pieces):
        opcode = Opcode.CONTINUATION if place else Opcode.BINARY if said.binary else Opcode.TEXT
        frames.append(Frame(opcode, piece, fin=place == len(pieces) - 1))
        if place + 1 in between:
            frames.append(between[place + 1])
    return frames


def _places(said: Say, message: bytes) -> list[int]:
    size = len(message)
    if said.cuts:
        start = message.index(said.content)
        return [start + at for at in said.cuts]
    every = said.every or -(-size // said.parts)
    return list(range(every, size, every))


def _filled(said: Say, number: int, dialect: Dialect) -> bytes:
    if not said.size:
        return said.content
    room = said.size - len(dialect.message(b"", number, binary=said.binary))
    assert room >= 0, f"no message of {said.size} octets"
    fill = b"\x00\xfe\x23\xfa\xf0" if said.binary else b"BAsd7&jh23"
    return (fill * (room // len(fill) + 1))[:room]


def _cut(octets: bytes, places: Iterable[int]) -> list[bytes]:
    return [octets[start:end] for start, end in pairwise([0, *places, len(octets)])]
