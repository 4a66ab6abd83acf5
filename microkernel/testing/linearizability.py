"""Checks that overlapping calls look as if each took effect at one moment between its beginning and its end.

Sans-IO. The search is that of Wing and Gong (1993) with the memory of Lowe (2017), as in Knossos and Porcupine: take
any operation that began before the first end that is left, apply it to the model, go on; come back from a dead end, and
never try the same state of the model after the same operations twice. Objects are independent of each other, so each
has a search of its own (Herlihy and Wing, 1990, §3.1). An operation whose end nobody knows stays open: it may take
effect at any later time, or never.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

__all__ = ["Add", "Calls", "Counter", "Model", "NotLinearizable", "Operation", "Read", "Register", "Swap", "Undecided",
           "Write", "check"]  # fmt: skip

MOST = 200_000  # configurations of one object that are tried; each takes about 200 bytes
SHOWN = 40  # operations in the report of a failure


class NotLinearizable(AssertionError):
    """No order of the operations explains their results; says how far the best one comes."""


class Undecided(AssertionError):
    """The search has met its limit: too many operations overlap, or are open. It proves nothing."""


class Read(msgspec.Struct, frozen=True):
    """Give the value."""


class Write(msgspec.Struct, frozen=True):
    """Set the value; gives None."""

    value: Any


class Swap(msgspec.Struct, frozen=True):
    """Set the value to `new` where it is `old` (compare-and-swap); gives whether it was."""

    old: Any
    new: Any


class Add(msgspec.Struct, frozen=True):
    """Add to the value; gives the sum."""

    amount: int


class Model(Protocol):
    """An object as one caller alone would know it. States can be hashed, and are never changed in place."""

    @property
    def initial(self) -> Hashable:
        """The state before the first operation."""

    def apply(self, state: Any, what: Any) -> tuple[Hashable, Any]:
        """The state after operation `what`, and its result."""


class Register:
    """Holds one value: `Read`, `Write`, `Swap`."""

    def __init__(self, initial: Hashable = 0) -> None:
        self.initial = initial

    def apply(self, state: Any, what: Any) -> tuple[Hashable, Any]:
        """The value after `what`, and what it gives."""
        match what:
            case Read():
                return state, state
            case Write(value):
                return value, None
            case Swap(old, new):
                return (new, True) if state == old else (state, False)
        raise TypeError(f"a register does not know {what!r}")


class Counter:
    """Holds a number: `Read`, `Add`."""

    def __init__(self, initial: int = 0) -> None:
        self.initial = initial

    def apply(self, state: Any, what: Any) -> tuple[Hashable, Any]:
        """The number after `what`, and what it gives."""
        match what:
            case Read():
                return state, state
            case Add(amount):
                return state + amount, state + amount
        raise TypeError(f"a counter does not know {what!r}")


class Operation(msgspec.Struct, frozen=True):
    """One call: of two, the one with the smaller `ended` was over before the other with the greater `began`.

    `ended` is None for an open one, whose `result` says nothing.
    """

    subject: Hashable
    what: Any
    began: float
    ended: float | None = None
    result: Any = None

    def __str__(self) -> str:
        end = "and nobody knows" if self.ended is None else f"to {self.ended:g}: {self.result!r}"
        return f"{self.what!r} from {self.began:g} {end}"


class Calls:
    """Writes calls down as they begin and end, in the order in which it is told."""

    def __init__(self) -> None:
        self._moments = itertools.count()
        self._numbers = itertools.count()
        self._open: dict[int, Operation] = {}
        self._ended: list[Operation] = []

    def began(self, subject: Hashable, what: Any) -> int:
        """Somebody calls; a number to tell of its end with. Without an end it stays open."""
        number = next(self._numbers)
        self._open[number] = Operation(subject, what, next(self._moments))
        return number

    def ended(self, number: int, result: Any) -> None:
        """The call has come back with `result`."""
        operation = self._open.pop(number)
        self._ended.append(msgspec.structs.replace(operation, ended=next(self._moments), result=result))

    def refused(self, number: int) -> None:
        """The call has had no effect and never will: it is no part of the history."""
        del self._open[number]

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All of them, the open ones too."""
        return (*self._ended, *self._open.values())


def check(model: Model, operations: Iterable[Operation], *, most: int = MOST) -> None:
    """Raise `NotLinearizable` unless each subject's operations can be put in an order that `model` explains.

    The order keeps to time: what was over before another began comes first. Raises `Undecided` after `most`
    configurations of a subject.
    """
    parts: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        parts.setdefault(operation.subject, []).append(operation)
    for subject, part in parts.items():
        _Search(model, part, most).run(subject)


class _Entry:
    """The beginning or the end of an operation, in a list that both can be taken out of and put back into."""

    __slots__ = ("end", "next", "number", "previous")

    def __init__(self, number: int) -> None:
        self.number = number
        self.end: _Entry | None = None  # of a beginning; an open operation has none
        self.next: _Entry | None = None
        self.previous: _Entry | None = None

    def take_out(self) -> None:
        assert self.previous is not None
        self.previous.next = self.next
        if self.next is not None:
            self.next.previous = self.previous

    def put_back(self) -> None:
        assert self.previous is not None
        self.previous.next = self
        if self.next is not None:
            self.next.previous = self


class _Search:
    """The search in the history of one subject."""

    def __init__(self, model: Model, operations: Sequence[Operation], most: int) -> None:
        self._model = model
        self._operations = operations
        self._most = most
        self._head, self._ends = _listed(operations)

    def run(self, subject: Hashable) -> None:
        model, operations, left = self._model, self._operations, self._ends
        state = model.initial
        done = 0  # a bit for each operation that has taken effect
        tried: set[tuple[int, Hashable]] = set()
        path: list[tuple[_Entry, Hashable]] = []  # what has taken effect, each with the state before it
        best: list[int] = []
        entry = self._head.next
        while left:
            assert entry is not None, "an end is left"
            operation = operations[entry.number]
            if entry.end is not None or operation.ended is None:
                after, result = model.apply(state, operation.what)
                configuration = (done | 1 << entry.number, after)
                fits = operation.ended is None or result == operation.result
                if not fits or configuration in tried or (operation.ended is None and after == state):
                    entry = entry.next  # an open one without an effect is as good as one that never was
                    continue
                if len(tried) >= self._most:
                    raise Undecided(f"{subject}: {len(tried)} configurations of {len(operations)} operations tried")
                tried.add(configuration)
                path.append((entry, state))
                state, done = after, configuration[0]
                entry.take_out()
                if entry.end is not None:
                    entry.end.take_out()
                    left -= 1
                entry = self._head.next
                continue
            # The end of an operation that has not taken effect: one before it was the wrong one.
            if len(path) >= len(best):
                best = [taken.number for taken, _ in path]
            if not path:
                raise NotLinearizable(_report(subject, model, operations, best))
            entry, state = path.pop()
            done &= ~(1 << entry.number)
            if entry.end is not None:
                entry.end.put_back()
                left += 1
            entry.put_back()
            entry = entry.next


def _listed(operations: Sequence[Operation]) -> tuple[_Entry, int]:
    """The head of the list of all beginnings and ends in time, and how many ends there are."""
    moments: list[tuple[float, int, int, _Entry]] = []
    ends = 0
    for number, operation in enumerate(operations):
        beginning = _Entry(number)
        moments.append((operation.began, 0, number, beginning))  # at the same moment they overlap: beginnings first
        if operation.ended is not None:
            assert operation.ended >= operation.began, f"{operation} ends before it begins"
            beginning.end = _Entry(number)
            moments.append((operation.ended, 1, number, beginning.end))
            ends += 1
    head = last = _Entry(-1)
    for *_, entry in sorted(moments, key=lambda moment: moment[:3]):
        last.next, entry.previous = entry, last
        last = entry
    return head, ends


def _report(subject: Hashable, model: Model, operations: Sequence[Operation], best: Sequence[int]) -> str:
    lines = [f"{subject}: no order explains the results of {len(operations)} operations", "the longest that fits:"]
    state: Hashable = model.initial
    shown: list[str] = []
    for number in best:
        state, _ = model.apply(state, operations[number].what)
        shown.append(f"  {operations[number]} → {state!r}")
    lines += shown[-SHOWN:]
    rest = sorted((operation.began, str(operation)) for n, operation in enumerate(operations) if n not in set(best))
    lines += ["then none of:", *(f"  {line}" for _, line in rest[:SHOWN])]
    return "\n".join(lines)
