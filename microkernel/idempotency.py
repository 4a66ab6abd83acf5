"""Idempotency keys: a call that is made again under the same key runs once and has one outcome.

As the `Idempotency-Key` of HTTP (https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/), within
one run of a node: the first call runs in a task of its own, so that it goes on when whoever asked is gone; the same
call meanwhile waits for it, and for 120 s after its end gets what it ended with. What has not run, and says so, is not
kept: the next call under its key runs. `OutcomeTable` does the thinking, sans-IO; `Outcomes` the waiting.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import msgspec

from microkernel.buffers import Array
from microkernel.clock import Clock
from microkernel.errors import (
    DeadlineExceeded,
    Deadlock,
    Gone,
    Invalid,
    MicrokernelError,
    Overloaded,
    PreconditionFailed,
    Unavailable,
    from_exception,
    from_report,
)
from microkernel.nursery import Nursery

__all__ = ["KEPT", "Name", "Outcome", "OutcomeTable", "Outcomes"]

KEPT = 120.0  # seconds that an outcome is kept after its end
NUMBER = 4096  # outcomes, those that are still to come included
TRACES = 262_144  # of those that had to make room, 155 bytes each: 2,184 keys a second for 120 s
BYTES = 64 * 2**20  # of all results together, as JSON
LONGEST_KEY = 128  # characters
_ATOMS = (str, int, float, bool, bytes, type(None))  # nobody can change these

log = logging.getLogger("microkernel.idempotency")


class Name(NamedTuple):
    """What makes two calls the same: who asks, what is called, and the key."""

    owner: str
    target: str
    key: str


class Outcome:
    """How the call under a key has ended, or the promise that it will."""

    __slots__ = ("digest", "ended", "error", "name", "size", "task", "value")

    def __init__(self, name: Name, digest: bytes) -> None:
        self.name = name
        self.digest = digest
        self.ended: float | None = None
        self.value: Any = None
        self.error: MicrokernelError | None = None
        self.size = 0
        self.task: asyncio.Task[None] | None = None

    def result(self) -> Any:
        """What the call has ended with, for one more caller: nobody's own changes reach another. Raises its error."""
        if self.error is not None:
            raise from_report(self.error.report())
        return copied(self.value)


class OutcomeTable:
    """All outcomes of a node, bounded in number, bytes and time. Sans-IO; times are monotonic, in seconds."""

    def __init__(self, *, number: int = NUMBER, size: int = BYTES, kept: float = KEPT, traces: int = TRACES) -> None:
        self._number = number
        self._size = size
        self._most_traces = traces
        self._kept = kept
        self._running: dict[Name, Outcome] = {}
        self._ended: OrderedDict[Name, Outcome] = OrderedDict()  # in the order of their ends
        self._full: deque[Outcome] = deque()  # of those, the ones with a result, in the same order
        self._traces: OrderedDict[bytes, float] = OrderedDict()  # names that made room: when they ended, in that order
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    @property
    def held_bytes(self) -> int:
        """What the results take together."""
        return self._bytes

    def begin(self, name: Name, digest: bytes, now: float) -> tuple[Outcome, bool]:
        """The outcome under `name`, and whether it is a new one: then the call is to be run.

        Raises `PreconditionFailed` when the key stands for another message, `Gone` when the call has run and its
        outcome had to make room, and `Overloaded` when too many run, or have run in the last 120 s.
        """
        self._expire(now)
        known = self._running.get(name) or self._ended.get(name)
        if known is not None:
            if known.digest != digest:
                raise PreconditionFailed(
                    f"the idempotency key '{name.key}' stands for another message to {name.target}",
                    remedy="use a new key for each message",
                    field="key",
                    may_have_run=False,
                )
            return known, False
        if self._traces and _trace(name) in self._traces:
            raise _gone(name)
        if len(self) >= self._number:
            self._make_room(now)
        outcome = self._running[name] = Outcome(name, digest)
        return outcome, True

    def knows(self, name: Name, now: float) -> bool:
        """Whether a call under `name` has begun in the last 120 s."""
        self._expire(now)
        return name in self._running or name in self._ended or _trace(name) in self._traces

    def ended(self, name: Name, now: float) -> Outcome | None:
        """The outcome under `name` of a call that has ended, while it is kept."""
        self._expire(now)
        return self._ended.get(name)

    def succeeded(self, outcome: Outcome, value: Any, size: int, now: float) -> None:
        """The call has ended well; `value` belongs to the table from here on, and takes `size` bytes."""
        outcome.value, outcome.size = value, size
        self._end(outcome, now)

    def failed(self, outcome: Outcome, error: MicrokernelError, now: float) -> None:
        """The call has ended badly. An error that says that nothing has run is not kept, nor one that says: later."""
        outcome.error = error
        if error.may_have_run is False or _says_later(outcome.name, error):
            self.forget(outcome)
        else:
            self._end(outcome, now)

    def forget(self, outcome: Outcome) -> None:
        """The call has not run."""
        self._running.pop(outcome.name, None)

    def _end(self, outcome: Outcome, now: float) -> None:
        outcome.ended = now
        del self._running[outcome.name]
        self._ended[outcome.name] = outcome
        self._bytes += outcome.size
        if outcome.size:
            self._full.append(outcome)
        while self._bytes > self._size:
            self._empty(self._full.popleft())

    def _empty(self, outcome: Outcome) -> None:
        """Keep no more than that it has run: to run it again would be worse than to have no result."""
        self._bytes -= outcome.size
        outcome.value, outcome.size = None, 0
        outcome.error = _gone(outcome.name)

    def _make_room(self, now: float) -> None:
        """Keep no more of the oldest than that it has run."""
        if not self._ended:
            raise Overloaded(
                f"{len(self)} calls with an idempotency key are running", retry_after=1.0, may_have_run=False
            )
        if len(self._traces) >= self._most_traces:
            wait = next(iter(self._traces.values())) + self._kept - now
            raise Overloaded(
                f"{len(self._traces) + len(self)} calls with an idempotency key came within {self._kept:g} s",
                retry_after=max(1.0, wait),
                may_have_run=False,
            )
        oldest = next(iter(self._ended.values()))
        self._drop(oldest)
        self._traces[_trace(oldest.name)] = now if oldest.ended is None else oldest.ended

    def _expire(self, now: float) -> None:
        while self._traces and next(iter(self._traces.values())) + self._kept <= now:
            self._traces.popitem(last=False)
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.ended is None or oldest.ended + self._kept > now:
                return
            self._drop(oldest)

    def _drop(self, outcome: Outcome) -> None:
        del self._ended[outcome.name]
        self._bytes -= outcome.size
        if self._full and self._full[0] is outcome:
            self._full.popleft()


class Outcomes:
    """Runs each call once; belongs to the router, which closes it."""

    def __init__(self, clock: Clock, table: OutcomeTable | None = None) -> None:
        self._clock = clock
        self._table = OutcomeTable() if table is None else table
        self._nursery = Nursery("idempotency", self._broken)

    def __len__(self) -> int:
        return len(self._table)

    async def call(
        self, name: Name, message: Any, run: Callable[[], Coroutine[Any, Any, Any]], expires: float | None
    ) -> Any:
        """What `run` ends with, or has ended with; waits until `expires` for it, on the clock.

        Who is cancelled while it waits does not end the call: others may wait for it. Raises the error of the call,
        `PreconditionFailed` for another `message` under the same name, `Overloaded`, and `Invalid` for what is no key.
        """
        if not 0 < len(name.key) <= LONGEST_KEY:
            raise Invalid(
                f"an idempotency key has 1 to {LONGEST_KEY} characters, not {len(name.key)}", field="idempotency_key"
            )
        outcome, is_new = self._table.begin(name, _digest(name, message), self._clock.now())
        if is_new:
            outcome.task = self._nursery.spawn(self._run(outcome, run), f"{name.target} once")
        task = outcome.task
        if task is not None:
            if task is asyncio.current_task():
                raise Deadlock(f"{name.target} waits for itself under the key '{name.key}'", may_have_run=False)
            await self._wait(task, name, expires)
        return outcome.result()

    def check_age(self, name: Name, age: float) -> None:
        """Refuse a call that was first sent `age` seconds ago, at most, and may have been forgotten since.

        Raises `Gone`: it has run, or it has not, and nobody knows any more.
        """
        if age > KEPT and not self._table.knows(name, self._clock.now()):
            raise Gone(
                f"the call of {name.target} under the key '{name.key}' was first made {age:.0f} s ago: "
                "whether it has run is not known any more",
                may_have_run=True,
            )

    def ended(self, name: Name) -> Outcome | None:
        """What a call under `name` has ended with, while that is kept."""
        return self._table.ended(name, self._clock.now())

    async def close(self) -> None:
        """End what runs."""
        await self._nursery.close()

    async def _wait(self, task: asyncio.Task[None], name: Name, expires: float | None) -> None:
        try:
            async with asyncio.timeout_at(expires):
                await asyncio.wait([task])
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{name.target} under the key '{name.key}' did not finish by the deadline", may_have_run=True
            ) from error
        if task.cancelled():
            raise Unavailable("the node shuts down", service="kernel", may_have_run=True)

    async def _run(self, outcome: Outcome, run: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        table = self._table
        try:
            value = await run()
        except Exception as error:  # noqa: BLE001 - it is for everybody who asks under this key
            table.failed(outcome, from_exception(error), self._clock.now())
        except BaseException:
            table.forget(outcome)
            raise
        else:
            try:
                kept = copied(value), _size(value)
            except Invalid as error:
                table.failed(outcome, error, self._clock.now())
            else:
                table.succeeded(outcome, *kept, self._clock.now())
        finally:
            outcome.task = None

    def _broken(self, name: str, error: Exception) -> None:
        log.error("%s: %s", name, error, exc_info=error)


def _says_later(name: Name, error: MicrokernelError) -> bool:
    """Whether the service that is called wants to be asked later; what another one said to it tells that it ran."""
    if not isinstance(error, Overloaded) or error.may_have_run:
        return False
    return error.service is None or error.service == name.target.partition(".")[0]


def _gone(name: Name) -> Gone:
    return Gone(
        f"the call of {name.target} under the key '{name.key}' has run, but its result is not kept any more: "
        "too many others are",
        may_have_run=True,
    )


def _trace(name: Name) -> bytes:
    """What is left of a name when its outcome has made room."""
    return hashlib.blake2b(repr(tuple(name)).encode(), digest_size=16).digest()


def copied(value: Any) -> Any:
    """A copy of `value` that shares nothing with it that can be changed. Raises `Invalid` where there is none."""
    if isinstance(value, _ATOMS):
        return value
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise Invalid(
            f"the result of a call with an idempotency key cannot be kept: {type(value).__name__} cannot be copied",
            may_have_run=True,
        ) from error


def _digest(name: Name, message: Any) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, Array):
            return [value.dtype, value.shape, hashlib.blake2b(value.view(), digest_size=16).hexdigest()]
        raise TypeError(f"{type(value).__name__} is no data")

    try:
        text = msgspec.json.encode(message, enc_hook=plain, order="deterministic")
        return hashlib.blake2b(text, digest_size=16).digest()
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise Invalid(f"{name.target}: a message with an idempotency key has to be sayable as JSON: {error}") from error


def _size(value: Any) -> int:
    arrays = 0

    def plain(value: Any) -> None:
        nonlocal arrays
        if not isinstance(value, Array):
            raise TypeError
        arrays += value.nbytes

    try:
        return len(msgspec.json.encode(value, enc_hook=plain)) + arrays
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return 1024  # it is no data; that it can be copied is known
