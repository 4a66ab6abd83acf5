"""The C fast path against its Python reference: random programs, run by both, must leave the same journal.

A program is what handlers do (return, raise, wait, call and read each other, act on the run that they are in) and what
a driver does with their runs (send, throw, close, drop, await, cancel, kill, expire). What is compared: results, errors
with their causes, the order of effects, in whose name each is had, slots and counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twins import breath, in_c, in_python, needs_c

from microkernel.deadlines import Deadlines
from microkernel.errors import Invalid, MicrokernelError, Unavailable
from microkernel.message import Call, Message, current_call

KINDS = {
    "key": lambda: KeyError("k"),
    "ours": lambda: Invalid("bad", field="f"),
    "cancel": asyncio.CancelledError,
    "exit": GeneratorExit,
    "end": lambda: StopAsyncIteration("over"),
    "system": lambda: SystemExit(3),
}
GATES = 2  # the first has two slots and room for one to wait, the second one slot and no room
TURNS = 12  # of the loop, after which whoever still waits is cancelled

pytestmark = needs_c


@pytest.fixture(autouse=True, scope="module")
def thaw():
    """Undo what `journal_of` froze."""
    yield
    gc.unfreeze()


class Ask(Message):
    plan: tuple = ()


def error_of(kind):
    return KINDS[kind]()


def told(error):
    """An error as it is compared: what its reader sees of it."""
    if error is None:
        return None
    text = str(error).replace("awaited call", "awaited coroutine")
    ours = (error.service, error.may_have_run, error.field) if isinstance(error, MicrokernelError) else ()
    return (type(error).__name__, text, *ours, told(error.__cause__))


class World:
    """Two gates of each kind, the runs, tasks and streams of one program, and the journal of what happened."""

    def __init__(self, built, loop):
        self.journal = []
        self.runs, self.tasks, self.streams = [], [], []
        deadlines, waits = Deadlines(loop), {}
        self.gates = [
            built.Gate(f"g{n}.do", self.do, concurrency=2 - n, queue=1 - n, deadlines=deadlines, waits=waits)
            for n in range(GATES)
        ]
        self.flows = [
            built.Gate(f"s{n}.do", self.flow, concurrency=2 - n, queue=1 - n, deadlines=deadlines, waits=waits)
            for n in range(GATES)
        ]
        self.methods, self.takers = [], []
        for gate in self.gates:

            async def slow(message, gate=gate):
                return await gate.call((message.plan,), Call(caller="slow"))

            def child(parent):
                return None if parent.caller == "slow" else Call(caller=f"{parent.caller}+")

            method = built.Method(slow, child)
            taker = built.Gate(gate.target, self.ask, concurrency=1, queue=0, deadlines=deadlines, waits=waits)
            method.bind(taker, Ask, Call(caller="root"))
            self.methods.append(method)
            self.takers.append(taker)

    def log(self, *what):
        call = current_call()
        self.journal.append((*what, None if call is None else call.caller))

    # What handlers do.

    async def ask(self, message):
        return await self.do(message.plan)

    async def do(self, plan):
        for step in plan:
            if step[0] == "return":
                return step[1]
            await self.step(*step)
        return "end"

    async def flow(self, plan):
        try:
            for number, step in enumerate(plan):
                if step[0] == "return":
                    return
                await self.step(*step)
                yield number
        finally:
            self.log("flow ends")

    async def step(self, what, *rest):
        self.log(what)
        match what, rest:
            case "breathe", (times,):
                for _ in range(times):
                    self.log("got", await breath())
            case "sleep", ():
                await asyncio.sleep(0)
            case "raise", (kind,):
                raise error_of(kind)
            case "guard", (how, plan):
                try:
                    await self.do(plan)
                except BaseException as error:
                    self.log("caught", told(error))
                    if how == "raise":
                        raise
                    if how == "wait":
                        await breath()
            case "ensure", (plan, last):
                try:
                    await self.do(plan)
                finally:
                    await self.do(last)
            case "call", (way, gate, plan):
                self.log("result", await self.begin(way, gate, plan))
            case "read", (gate, times, plan):
                await self.read(gate, times, plan)
            case _:
                getattr(self, what)(*rest)

    def begin(self, way, gate, plan):
        if way == "method":
            return self.methods[gate](Ask(plan))
        return self.gates[gate].call((plan,), Call(caller=f"c{gate}", limit=1e6 if way == "limited" else None))

    def open(self, gate, plan):
        return self.flows[gate].stream((plan,), Call(caller=f"r{gate}", deadline=1e12))

    async def read(self, gate, times, plan):
        stream = self.open(gate, plan)
        try:
            for _ in range(times):
                self.log("item", await anext(stream))
        except StopAsyncIteration:
            self.log("over")
        finally:
            await stream.aclose()

    # What anybody does.

    def every(self, number):
        return self.gates[number], self.takers[number], self.flows[number]

    def kill(self, number):
        for gate in self.every(number):
            gate.kill(Unavailable("killed"))

    def expire(self, number):
        for gate in self.every(number):
            for run in tuple(gate.running):
                run.expire()

    def shut(self, number):
        for gate in self.every(number):
            gate.close(Unavailable("closed"))

    def make(self, way, gate, plan):
        self.runs.append(self.begin(way, gate, plan))

    def spawn(self, way, gate, plan):
        self.tasks.append(asyncio.ensure_future(self.begin(way, gate, plan)))

    def task(self, place):
        self.tasks.extend(asyncio.ensure_future(run) for run in self.runs[place : place + 1])

    def cancel(self, place):
        for task in self.tasks[place : place + 1]:
            task.cancel()

    def stream(self, gate, plan):
        self.streams.append(self.open(gate, plan))

    def pull(self, place):
        self.runs.extend(anext(stream) for stream in self.streams[place : place + 1])

    def reader(self, place):
        self.tasks.extend(asyncio.ensure_future(anext(stream)) for stream in self.streams[place : place + 1])

    def leave(self, place):
        self.runs.extend(stream.aclose() for stream in self.streams[place : place + 1])

    def forget(self, place):
        for stream in range(place, min(place + 1, len(self.streams))):
            self.streams[stream] = self.open(0, ())
        gc.collect()

    def drop(self, place):
        for run in range(place, min(place + 1, len(self.runs))):
            self.runs[run] = breath()
        gc.collect()

    def send(self, place):
        self.drive(place, "send", lambda run: run.send(None))

    def throw(self, place, kind):
        self.drive(place, "throw", lambda run: run.throw(error_of(kind)))

    def close(self, place):
        self.drive(place, "close", lambda run: run.close())

    def elsewhere(self, place):
        self.drive(place, "elsewhere", lambda run: contextvars.Context().run(run.close))

    def drive(self, place, what, how):
        for run in self.runs[place : place + 1]:
            try:
                self.log(what, "yielded", type(how(run)).__name__)
            except StopIteration as stop:
                self.log(what, "returned", stop.value)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the same in both
                self.log(what, "raised", told(error))

    async def turn(self):
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:  # a run that the driver drives itself was killed
            self.log("the driver is cancelled")

    async def live(self, program):
        for what, *rest in program:
            if what == "turn":
                await self.turn()
            else:
                getattr(self, what)(*rest)
            self.journal.append(("slots", *(gate.free for gate in (*self.gates, *self.takers, *self.flows))))
        for _ in range(TURNS):
            await self.turn()
        for _ in range(10 * TURNS):
            for task in self.tasks:
                task.cancel()
            await self.turn()
        assert all(task.done() for task in self.tasks), "a task does not heed its cancellation"
        for place, task in enumerate(self.tasks):
            ended = asyncio.CancelledError() if task.cancelled() else task.exception()
            self.journal.append((place, told(ended) if ended else task.result()))
        self.tasks.clear()
        for run in self.runs:
            with contextlib.suppress(BaseException):
                run.close()
        self.runs.clear()
        self.streams.clear()
        gc.collect()
        for _ in range(TURNS):
            await self.turn()
        self.log("the end")
        for gate in (*self.gates, *self.takers, *self.flows):
            states = (gate.free, gate.calls, gate.failures, len(gate.running), gate.barred, gate.queued)
            self.journal.append((gate.target, *states))


def journal_of(built, program):
    """What happens when `program` runs on gates as they were `built`."""
    gc.freeze()  # what is there already is not looked at again: a program collects garbage many times
    unraisable = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda told: unraisable.append(told.exc_type.__name__)
    with warnings.catch_warnings(), asyncio.Runner() as runner:
        warnings.simplefilter("ignore")  # a run that was never begun: here on purpose
        try:
            runner.get_loop().set_exception_handler(lambda *_: None)
            world = World(built, runner.get_loop())
            runner.run(world.live(program), context=contextvars.Context())
            gc.collect()
        finally:
            sys.unraisablehook = hook
    return world.journal, sorted(unraisable)


gates, places, ways = st.integers(0, GATES - 1), st.integers(0, 3), st.sampled_from(["call", "limited", "method"])
kinds = st.sampled_from(sorted(KINDS))
driving = st.one_of(
    st.tuples(st.sampled_from(["send", "close", "drop", "elsewhere"]), places),
    st.tuples(st.just("throw"), places, kinds),
    st.tuples(st.sampled_from(["kill", "expire", "shut"]), gates),
    st.tuples(st.sampled_from(["cancel", "pull", "reader", "leave", "forget", "task"]), places),
)
plans = st.deferred(lambda: st.lists(steps, max_size=4).map(tuple))
steps = st.one_of(
    st.tuples(st.just("breathe"), st.integers(1, 2)),
    st.tuples(st.just("sleep")),
    st.tuples(st.just("return"), st.integers(0, 9)),
    st.tuples(st.just("raise"), kinds),
    driving,
    st.tuples(st.just("guard"), st.sampled_from(["raise", "swallow", "wait"]), plans),
    st.tuples(st.just("ensure"), plans, plans),
    st.tuples(st.sampled_from(["call", "spawn", "make"]), ways, gates, plans),
    st.tuples(st.just("read"), gates, st.integers(1, 3), plans),
    st.tuples(st.just("stream"), gates, plans),
)
programs = st.lists(
    st.one_of(
        driving,
        st.tuples(st.just("send"), places),
        st.tuples(st.just("turn")),
        st.tuples(st.sampled_from(["make", "make", "spawn"]), ways, gates, plans),
        st.tuples(st.just("stream"), gates, plans),
    ),
    max_size=14,
)
as_long_as_it_takes = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}


@settings(max_examples=300, **as_long_as_it_takes)
@given(programs)
def test_any_program_leaves_the_same_journal_in_c_and_in_python(program):
    assert journal_of(in_c, program) == journal_of(in_python, program)


@pytest.mark.slow
@settings(max_examples=2000, **as_long_as_it_takes)
@given(programs)
def test_any_of_many_programs_leaves_the_same_journal_in_c_and_in_python(program):
    assert journal_of(in_c, program) == journal_of(in_python, program)
