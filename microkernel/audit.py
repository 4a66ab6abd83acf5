"""What was denied: each denial as an event `audit.denied`, however many there are (hot: once a denial).

A flood must not fill a disk or a queue. In a window of one second the first `DISTINCT` different denials are told at
once; those that are the same as one of them are counted and told at its end, as one with the number; the rest of the
window is told as one number in all. So at most 2 x `DISTINCT` + 1 events come in a second. `Denials` counts, sans-IO;
`Audit` brings the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

import msgspec

from microkernel.message import Message

__all__ = ["Act", "Audit", "Denial", "Denials"]

WINDOW = 1.0  # seconds
DISTINCT = 32  # different denials of one window that are told one by one
LONGEST = 256  # characters of a text: what strangers ask for may be long


class Act(StrEnum):
    """What somebody wanted to do."""

    CALL = "call"
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    AUTHENTICATE = "authenticate"
    CONNECT = "connect"


class Denial(Message, kw_only=True):
    """Somebody was denied something, `count` times since the last word on it. `at` is Unix time in seconds.

    `who` is the caller: a service, `session s1…`, `http ana`; `user` is whom it acts for, `peer` the address it comes
    from, where these are known. `target` is a handler, a subject, or the door; `*` stands for several.
    """

    at: float
    act: Act
    who: str
    target: str
    why: str
    user: str | None = None
    peer: str | None = None
    count: int = 1


class Denials:
    """Counts denials of the window that runs."""

    def __init__(self) -> None:
        self._told: dict[tuple[str | None, ...], Denial] = {}
        self._repeated: dict[tuple[str | None, ...], int] = {}
        self._others: Denial | None = None

    def add(self, denial: Denial) -> Denial | None:
        """What is to be told at once: the denial, or nothing as its turn comes with `flush`."""
        key = (denial.act, denial.who, denial.user, denial.target, denial.why, denial.peer)
        if key in self._told:
            self._repeated[key] = self._repeated.get(key, 0) + denial.count
            self._told[key] = denial
            return None
        if len(self._told) < DISTINCT:
            self._told[key] = denial
            return denial
        before = 0 if self._others is None else self._others.count
        self._others = Denial(
            at=denial.at,
            act=denial.act,
            who="*",
            target="*",
            why=f"more than {DISTINCT} different denials in {WINDOW:g} s",
            count=before + denial.count,
        )
        return None

    def flush(self) -> list[Denial]:
        """End the window: what is still to be told of it."""
        sums = [msgspec.structs.replace(self._told[key], count=count) for key, count in self._repeated.items()]
        if self._others is not None:
            sums.append(self._others)
        self._told, self._repeated, self._others = {}, {}, None
        return sums


class Audit:
    """Tells of denials as they come; `tell` must not wait, `wall` gives Unix time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wall: Callable[[], float], tell: Callable[[Denial], None]
    ) -> None:
        self._loop = loop
        self._wall = wall
        self._tell = tell
        self._denials = Denials()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def denied(
        self, act: Act, target: str, why: str, *, who: str, user: str | None = None, peer: str | None = None
    ) -> None:
        """Somebody was denied something; called on the loop. Never raises for what strangers may send."""
        denial = self._denials.add(
            Denial(
                at=self._wall(),
                act=act,
                who=_short(who),
                target=_short(target),
                why=_short(why),
                user=None if user is None else _short(user),
                peer=None if peer is None else _short(peer),
            )
        )
        if denial is not None:
            self._tell(denial)
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(WINDOW, self._end_window)

    def close(self) -> None:
        """Tell what has been counted; nothing is left on the loop."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._end_window()

    def _end_window(self) -> None:
        self._timer = None
        for denial in self._denials.flush():
            self._tell(denial)


def _short(text: str) -> str:
    """`text` as it can be kept: not too long, and no half characters, which JSON cannot say."""
    return text[:LONGEST].encode("utf-8", "replace").decode("utf-8")
