"""Decides from a loop's beats, and from looks at its thread, how long it stood still and who is to blame; sans-IO.

The loop beats every 0.4 of the threshold, so two beats lie further apart than the threshold whenever it stood still for
that long, and never if it did so for half of it. A thread looks at it every 0.8 of the threshold (a look may be late by
0.2): each block has a look in it, which finds the stack of the loop's thread.

A look that itself comes late, or finds the loop in its selector though a beat is due, says that another thread had the
interpreter, or that the machine ran other programs. What each thread has computed meanwhile tells which: Linux has a
clock for each thread. The beats also tell a loop that blocks from one that is only busy: that one gives the interpreter
back for microseconds at a time, too short for a thread to wake and take it, and can keep the watch from looking for a
second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import CodeType
from typing import NamedTuple

import msgspec

__all__ = ["Block", "Holder", "Look", "Stack", "Watch"]

BEAT = 0.4  # of the threshold
PERIOD = 0.8  # of the threshold
LONG = 1.0  # seconds after which a block is told of although it goes on
SEEN = 64  # looks that are kept
GAPS = 64  # between beats, that nobody has told of yet
SHARE = 0.25  # of the time of a hold that a thread must have computed to be named for it
HOLDERS = 3  # threads that are named at most


class Stack(NamedTuple):
    """Where a thread stood: code and line, the innermost first; `task` is the name of the loop's task."""

    frames: tuple[tuple[CodeType, int], ...]
    task: str | None = None


class Holder(NamedTuple):
    """A thread that computed while the loop had no turn."""

    thread: int
    stack: Stack | None


class Look(NamedTuple):
    """What was found: `stack` is None for a loop at rest in its selector.

    `processor` has the seconds that each thread has computed in all, by its identity; empty where nobody can tell.
    """

    now: float
    stack: Stack | None
    processor: Mapping[int, float]


class Block(msgspec.Struct, frozen=True):
    """The loop stood still for about `seconds`; it still does unless it is `over`.

    `stacks` are where its own thread stood, look by look. If there are none, `holders` are threads that may have held
    the interpreter, the busiest first; and if there are none either but it is `starved`, no thread has run: the machine
    did something else.
    """

    seconds: float
    over: bool
    stacks: tuple[Stack, ...] = ()
    holders: tuple[Holder, ...] = ()
    starved: bool = False


class _Seen(NamedTuple):
    """What a look has found, of the time from `since` to `now`."""

    since: float
    now: float
    stack: Stack | None
    holders: tuple[Holder, ...]
    starved: bool


class Watch:
    """The beats of one loop and the looks at it. `threshold` is in seconds, `loop` the identity of its thread."""

    def __init__(self, threshold: float, loop: int, *, now: float) -> None:
        self.threshold = threshold
        self.interval = BEAT * threshold
        self.period = PERIOD * threshold
        self._loop = loop
        self._beat = now
        self._gaps: deque[tuple[float, float]] = deque(maxlen=GAPS)
        self._looked = now
        self._processor: Mapping[int, float] = {}
        self._seen: deque[_Seen] = deque(maxlen=SEEN)
        self._told: float | None = None  # the beat after which a block goes on of which was told

    @property
    def due(self) -> float:
        """When the next look should be."""
        return self._looked + self.period

    def beat(self, now: float) -> float:
        """The loop has a turn; returns for how long it had none. Called on the loop, all else by who looks."""
        last, self._beat = self._beat, now
        if now - last >= self.threshold:
            self._gaps.append((last, now))
        return now - last

    def look(self, look: Look, stack_of: Callable[[int], Stack | None]) -> list[Block]:
        """The blocks to tell of; `stack_of` tells where a thread stands at this moment."""
        beat = self._beat
        elapsed = look.now - self._looked
        is_held = elapsed - self.period >= self.threshold / 2
        is_late = look.now - beat >= self.interval + self.threshold / 4
        is_held = is_held or (is_late and look.stack is None)
        if look.stack is not None or is_held:
            self._seen.append(self._sight(look, elapsed, stack_of, is_held=is_held))
        self._looked, self._processor = look.now, look.processor
        blocks = []
        while self._gaps:
            began, ended = self._gaps.popleft()
            blocks.append(self._block(began, ended, over=True))
        if look.now - beat >= LONG and self._told != beat and beat == self._beat:
            self._told = beat
            blocks.append(self._block(beat, look.now, over=False))
        return blocks

    def _sight(self, look: Look, elapsed: float, stack_of: Callable[[int], Stack | None], *, is_held: bool) -> _Seen:
        since = self._looked
        if not is_held:
            return _Seen(since, look.now, look.stack, (), starved=False)
        busy = self._busy(look.processor, min(elapsed, max(elapsed - self.period, self.threshold / 2)))
        if busy and busy[0] == self._loop:
            return _Seen(since, look.now, look.stack, (), starved=False)
        holders = tuple(Holder(thread, stack_of(thread)) for thread in busy[:HOLDERS] if thread != self._loop)
        starved = bool(look.processor) and not busy and elapsed - self.period >= self.threshold / 2
        return _Seen(since, look.now, look.stack, holders, starved)

    def _busy(self, processor: Mapping[int, float], seconds: float) -> list[int]:
        """The threads that have computed for a good part of the last `seconds`, the busiest first.

        Who holds the interpreter need not have a processor all the time: other programs want one, too.
        """
        spent = {thread: used - self._processor.get(thread, 0.0) for thread, used in processor.items()}
        return sorted(
            (thread for thread in spent if spent[thread] >= SHARE * seconds), key=lambda thread: -spent[thread]
        )

    def _block(self, began: float, ended: float, *, over: bool) -> Block:
        seen = [each for each in self._seen if each.since < ended and each.now > began]
        stacks = tuple(each.stack for each in seen if each.stack is not None and began < each.now <= ended)
        holders = next((each.holders for each in reversed(seen) if each.holders), ())
        starved = any(each.starved for each in seen)
        seconds = ended - began - self.interval / 2  # it began between this beat and the next
        # The loop's thread stands somewhere in its code also while another has the interpreter.
        held = sum(1 for each in seen if each.holders)
        if not stacks or held > sum(1 for each in seen if each.stack is not None and not each.holders):
            return Block(seconds, over, (), holders, starved and not holders)
        return Block(seconds, over, stacks)
