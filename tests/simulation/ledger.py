"""The ledger of a simulation: what was asked, what has begun, and how it ended; and the programs that calls carry.

The ledger knows what must be true of each call, whoever makes it: it runs once at most, never beside more than its
limit, with the priority, deadline and trace that it was sent with; and an error tells the truth.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, NoReturn

import msgspec

from microkernel import Message, current_call
from microkernel.deadlines import BUCKET
from microkernel.errors import DeadlineExceeded, MicrokernelError, Overloaded
from microkernel.message import PRIORITY
from microkernel.testing.promises import SLACK
from microkernel.testing.simulation import Simulation
from microkernel.trace import Trace


class Work(Message):
    """What a handler is to do; `id` is the call's own."""

    id: int
    steps: tuple[Step, ...] = ()
    catches: bool = False  # errors of what it calls


class Step(Message):
    """One thing to do: `kind` names it."""

    kind: str
    seconds: float = 0.0
    target: str = ""
    work: Work | None = None
    deadline: float | None = None


class Done(Message):
    """The result of a call."""

    id: int


class Asked(NamedTuple):
    """What a call was sent with."""

    target: str
    at: float
    expires: float | None
    priority: int
    trace: str | None
    depth: int
    leaf: bool
    remote: bool


class Ledger:
    """What was asked, what has begun, and how it ended."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.runs: Counter[int] = Counter()
        self.ends: Counter[int] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.together: Counter[tuple[str, str]] = Counter()
        self.asked: dict[int, Asked] = {}
        self.denied: set[int] = set()  # calls whose error says that they have not run
        self.failing_starts: Counter[str] = Counter()  # how many of the next starts of a service fail
        self._ids = 0

    @property
    def now(self) -> float:
        return self.simulation.loop.time()

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def broken(self, how: str) -> NoReturn:
        self.simulation.promises.broken(how)

    def again(self, work: Work) -> Work:
        """The same program, with calls of its own."""
        steps = [
            step if step.work is None else msgspec.structs.replace(step, work=self.again(step.work))
            for step in work.steps
        ]
        return Work(self.next_id(), tuple(steps), catches=work.catches)

    def began(self, work: Work, where: str, who: str, limit: int) -> None:
        asked = self.asked[work.id]
        self.runs[work.id] += 1
        if self.runs[work.id] > 1:
            self.broken(f"call {work.id} of {where} runs a second time")
        self.together[where, who] += 1
        if self.together[where, who] > limit:
            self.broken(f"{where} runs {self.together[where, who]} calls at once, not {limit}")
        call = current_call()
        assert call is not None
        if call.priority != asked.priority:
            self.broken(f"call {work.id} was sent with priority {asked.priority} and has {call.priority}")
        if asked.trace is not None and (call.trace is None or call.trace.trace_id != asked.trace):
            self.broken(f"call {work.id} has lost its trace")
        if asked.expires is not None and call.deadline is None:
            self.broken(f"call {work.id} has lost its deadline")
        timed = asked.expires is not None and not asked.remote  # a link sends the time that is left, and takes some
        if timed and call.deadline > asked.expires + SLACK:
            self.broken(f"call {work.id} was to end at {asked.expires}, not at {call.deadline}")
        if timed and self.now > asked.expires + BUCKET + SLACK:
            self.broken(f"call {work.id} begins after its deadline")
        if len(call.chain) != asked.depth or call.chain[-1] != where:
            self.broken(f"call {work.id} has the chain {call.chain}")

    def check_claims(self) -> None:
        """At the end of all: what was said not to have run has not run later either."""
        for number in sorted(self.denied):
            if self.runs[number]:
                self.broken(f"call {number} ran after its error had said that it had not")

    def left(self, where: str, who: str) -> None:
        self.together[where, who] -= 1

    async def ask(
        self,
        port: Any,
        target: str,
        work: Work,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        trace: Trace | None = None,
    ) -> Done:
        """Call `target` and judge how it ends."""
        with self.judged(target, work, deadline, priority, trace):
            call = port.call(target, work, deadline=deadline, priority=priority, trace=trace)
            done = await self.simulation.promises.call(f"call {work.id} of {target}", call, deadline=deadline)
            if done.id != work.id:
                self.broken(f"call {work.id} got the result of call {done.id}")
            return done

    async def read(self, port: Any, target: str, work: Work, *, items: int, deadline: float | None = None) -> int:
        """Read up to `items` numbers of a stream; they come in order, once each. Returns how many came."""
        count = 0
        with self.judged(target, work, deadline, None, None):
            async with port.stream(target, work, deadline=deadline) as stream:
                while count < items:
                    try:
                        number = await self.simulation.promises.call(f"stream {work.id}", anext(stream))
                    except StopAsyncIteration:
                        return count
                    if number != count:
                        self.broken(f"stream {work.id} sent {number} where {count} was due")
                    count += 1
        return count

    def judged(
        self,
        target: str,
        work: Work,
        deadline: float | None,
        priority: int | None,
        trace: Trace | None,
        *,
        remote: bool = False,
    ) -> Judge:
        """What is asked, for a `with` around the call; `remote` if a link with its delays is in between."""
        parent = current_call()
        expires = None if deadline is None else self.now + deadline
        if parent is not None and parent.deadline is not None:
            expires = parent.deadline if expires is None else min(expires, parent.deadline)
        inherited = None if parent is None or parent.trace is None else parent.trace.trace_id
        self.asked[work.id] = Asked(
            target,
            self.now,
            expires,
            (PRIORITY if parent is None else parent.priority) if priority is None else priority,
            inherited if trace is None else trace.trace_id,
            1 if parent is None else len(parent.chain) + 1,
            not work.steps,
            remote,
        )
        return Judge(self, work)


class Judge:
    """Looks at how one call ends, for `with`."""

    def __init__(self, ledger: Ledger, work: Work) -> None:
        self.ledger = ledger
        self.work = work

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        ledger, number = self.ledger, self.work.id
        ledger.ends[number] += 1
        name = "result" if error is None else type(error).__name__
        ledger.outcomes[name] += 1
        ledger.simulation.note("end", call=number, how=name)
        if ledger.ends[number] > 1:
            ledger.broken(f"call {number} ended twice")
        if error is None and ledger.runs[number] != 1:
            ledger.broken(f"call {number} has a result and was never run")
        if isinstance(error, MicrokernelError):
            self._check(error)

    def _check(self, error: MicrokernelError) -> None:
        ledger, number = self.ledger, self.work.id
        asked = ledger.asked[number]
        claimed = error.may_have_run is False
        if claimed:
            ledger.denied.add(number)
        if claimed and ledger.runs[number]:
            ledger.broken(f"call {number} ran, and its error says it did not: {error!r}")
        if error.service is None and not asked.remote:  # a link that is lost is nobody's service
            ledger.broken(f"call {number} ended with an error that names no service: {error!r}")
        if isinstance(error, Overloaded) and error.retry_after is None:
            ledger.broken(f"call {number} is told to come back, and not when")
        early = isinstance(error, DeadlineExceeded) and asked.leaf and asked.expires is not None
        if early and ledger.now < asked.expires - SLACK:
            ledger.broken(f"call {number} ended at {ledger.now}, before its deadline at {asked.expires}")
