"""Registers and counters behind a node, and callers who ask again under a key until they know how a call has ended.

What the cells hold outlives their service, as a database would. Each handler waits at moments that its caller has
drawn, so that calls overlap, and does its work at one moment in between. The logbook knows how often each call ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter as Tally
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, NoReturn

from microkernel import Message, Service, handles
from microkernel.errors import Internal, MicrokernelError, NotFound, Overloaded, Unavailable
from microkernel.testing import linearizability as l10y
from microkernel.testing.linearizability import Add, Calls, Read, Swap, Write, check

REGISTERS, COUNTERS = ("r0", "r1"), ("c0", "c1")
PATIENCE = 60.0  # seconds in which a caller asks again; a key is good for 120 after the first call has ended
LONGEST = 60.0  # seconds that an attempt takes at most, whatever happens: the node's own patience is 30


class Do(Message):
    """One operation on one cell; `id` is the call's own, and the same whenever it is made again."""

    id: int
    cell: str
    what: str
    a: int = 0
    b: int = 0
    before: float = 0.0  # seconds to wait before it takes effect
    after: float = 0.0
    end: str = "well"


class Logbook:
    """What the cells hold, what was asked of them, and how often each call has run."""

    def __init__(self, broken: Callable[[str], NoReturn]) -> None:
        self.broken = broken
        self.values: Tally[str] = Tally()
        self.runs: Tally[int] = Tally()
        self.outcomes: Tally[str] = Tally()
        self.calls = Calls()
        self.denied: set[int] = set()  # calls of which every error has said that they have not run
        self.asked = 0
        self.again = 0  # attempts beyond the first of a call

    def ran(self, do: Do) -> None:
        self.runs[do.id] += 1
        if self.runs[do.id] > 1:
            self.broken(f"call {do.id} ({do.what} of {do.cell}) runs a second time")

    def judge(self) -> None:
        """At the end of all: nothing ran that was said not to have, and one order explains all results."""
        for number in sorted(self.denied):
            if self.runs[number]:
                self.broken(f"call {number} ran, and its errors say that it did not")
        operations = self.calls.operations
        for model, cells in ((l10y.Register(), REGISTERS), (l10y.Counter(), COUNTERS)):
            check(model, [each for each in operations if each.subject in cells])


class Cells(Service):
    """Answers for the cells of a logbook."""

    name = "cells"
    restart_policy = "permanent"
    logbook: ClassVar[Logbook]

    async def start(self) -> None:
        await asyncio.sleep(0.01)

    @handles(deadline=20.0)
    async def wide(self, do: Do) -> Any:
        return await self.perform(do)

    @handles(concurrency=1, queue=2, deadline=20.0)
    async def narrow(self, do: Do) -> Any:
        return await self.perform(do)

    async def perform(self, do: Do) -> Any:
        self.logbook.ran(do)
        if do.before:
            await asyncio.sleep(do.before)
        if do.end == "refuse":
            raise NotFound(f"call {do.id} finds nothing", may_have_run=True)
        result = self.take_effect(do)
        if do.after:
            await asyncio.sleep(do.after)
        if do.end == "fail":
            raise ZeroDivisionError("after it took effect")
        if do.end == "ask":
            await self.call("cells.refuse")
        return result

    @handles
    async def refuse(self) -> None:
        """Whoever asks this after its effect ends with an error that says that nothing has run: of this, not of it."""
        raise Unavailable("not now", retry_after=1.0, may_have_run=False)

    def take_effect(self, do: Do) -> Any:
        values = self.logbook.values
        match do.what:
            case "read":
                return values[do.cell]
            case "write":
                values[do.cell] = do.a
                return None
            case "swap":
                if values[do.cell] != do.a:
                    return False
                values[do.cell] = do.b
                return True
            case "add":
                values[do.cell] += do.a
                return values[do.cell]
        raise AssertionError(do.what)


def cells_of(logbook: Logbook) -> type[Cells]:
    """The service for one logbook."""
    return type("CellsOfLog", (Cells,), {"logbook": logbook})


class Asked:
    """One call of a caller, until it knows how it has ended."""

    def __init__(self, do: Do, target: str, key: str | None, number: int, until: float) -> None:
        self.do = do
        self.target = target
        self.key = key
        self.number = number
        self.until = until
        self.attempts = 0
        self.may_have_run = False


class Caller:
    """One client: several calls at once, each made again while that is safe, over one session and then another."""

    doubles = 0.1  # of the attempts under a key, how many are made twice at the same time

    def __init__(
        self,
        log: Logbook,
        chance: random.Random,
        *,
        calls: int,
        slowest: float = 0.3,
        asks_again: bool = True,
    ) -> None:
        """`slowest` is how long a handler waits, in seconds; `asks_again` is for one epoch only."""
        self.log = log
        self.chance = chance
        self.left = calls
        self.slowest = slowest
        self.asks_again = asks_again
        self.open: list[Asked] = []
        self._now = asyncio.get_running_loop().time

    async def run(self, connecting: Callable[[], Any]) -> None:
        """Make all calls, each link being one of `connecting()`; returns when all have ended, or were given up."""
        while self.left or self.open:
            with contextlib.suppress(Unavailable):
                async with connecting() as system:
                    await self.talk(system)
            await asyncio.sleep(self.chance.uniform(0, self.slowest))
            self.open = [asked for asked in self.open if asked.until > self._now()]

    async def talk(self, system: Any) -> None:
        chance = self.chance
        while self.left or self.open:
            while self.left and len(self.open) < 3:
                self.left -= 1
                self.open.append(self.draw())
            await asyncio.gather(*(self.attempt(system, asked) for asked in tuple(self.open)))
            if chance.random() < 0.2:
                return  # and on, in a new session
            await asyncio.sleep(chance.choice((0.0, chance.uniform(0, self.slowest))))

    def draw(self) -> Asked:
        """A call by chance."""
        chance, log = self.chance, self.log
        log.asked += 1
        number, a, b = log.asked, chance.randint(0, 2), chance.randint(0, 2)
        if chance.random() < 0.5:
            cell, what = chance.choice(COUNTERS), chance.choice(("add", "add", "add", "read"))
            a = number  # so that a sum says which calls it is made of
        else:
            cell, what = chance.choice(REGISTERS), chance.choice(("read", "write", "swap", "swap"))
        operation = {"read": Read(), "write": Write(a), "swap": Swap(a, b), "add": Add(a)}[what]
        pauses = [chance.choice((0.0, 0.0, 0.001, chance.uniform(0, self.slowest))) for _ in range(2)]
        end = chance.choice(("well",) * 12 + ("fail", "refuse", "ask"))
        do = Do(number, cell, what, a, b, *pauses, end)
        key = f"key {number}" if chance.random() < 0.7 else None
        target = chance.choice(("cells.wide", "cells.wide", "cells.narrow"))
        return Asked(do, target, key, log.calls.began(cell, operation), self._now() + PATIENCE)

    async def attempt(self, system: Any, asked: Asked) -> None:
        """Make a call, once more if it was made before; it is no longer open if that has settled it."""
        log, chance = self.log, self.chance
        log.again += asked.attempts > 0
        asked.attempts += 1
        deadline = chance.choice((None, None, chance.uniform(0, self.slowest), chance.uniform(0, 10 * self.slowest)))
        patience = chance.choice((LONGEST, LONGEST, LONGEST, chance.uniform(0, self.slowest)))
        twice = asked.key is not None and chance.random() < self.doubles
        calls = [self.ask(system, asked, deadline) for _ in range(1 + twice)]
        ends = await asyncio.gather(*(self.ended(asked, call, patience) for call in calls))
        results = [end for end in ends if not isinstance(end, Exception)]
        if results:
            self.settle(asked, results)
            return
        claimed = all(isinstance(error, MicrokernelError) and error.may_have_run is False for error in ends)
        lied = claimed and not asked.may_have_run and log.runs[asked.do.id] > 0
        if lied:
            log.broken(f"attempt {asked.attempts} of {asked.do} ran, and its error says that it did not: {ends}")
        asked.may_have_run = asked.may_have_run or not claimed or lied
        again = (self.asks_again and asked.key is not None) or not asked.may_have_run
        if not again or asked.attempts == 8:
            if not asked.may_have_run:
                log.denied.add(asked.do.id)
                log.calls.refused(asked.number)
            self.open.remove(asked)

    async def ask(self, system: Any, asked: Asked, deadline: float | None) -> Any:
        return await system.call(asked.target, asked.do, deadline=deadline, idempotency_key=asked.key, result_type=Any)

    async def ended(self, asked: Asked, call: Awaitable[Any], patience: float) -> Any:
        """How an attempt has ended: the result, or the error."""
        end: Any
        try:
            async with asyncio.timeout(patience):
                end = await call
        except TimeoutError as error:
            if patience == LONGEST:
                self.log.broken(f"call {asked.do.id} of {asked.target} has not ended after {LONGEST:g} s")
            end = error
        except MicrokernelError as error:
            if isinstance(error, Overloaded) and error.retry_after is None:
                self.log.broken(f"call {asked.do.id} is told to come back, and not when")
            if isinstance(error, Internal) and asked.do.end != "fail":
                self.log.broken(f"call {asked.do.id} ended with a defect: {error!r}")
            end = error
        self.log.outcomes[type(end).__name__ if isinstance(end, Exception) else "result"] += 1
        return end

    def settle(self, asked: Asked, results: list[Any]) -> None:
        log, do = self.log, asked.do
        if log.runs[do.id] != 1:
            log.broken(f"call {do.id} has a result and ran {log.runs[do.id]} times")
        if any(result != results[0] for result in results):
            log.broken(f"call {do.id} has several results: {results}")
        log.calls.ended(asked.number, results[0])
        self.open.remove(asked)
