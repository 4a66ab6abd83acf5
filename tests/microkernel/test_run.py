"""The fast path of a gated call: the C module, its Python reference, and what both promise."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from microkernel import run
from microkernel.deadlines import Deadlines
from microkernel.errors import DeadlineExceeded, Internal, Unavailable
from microkernel.gate import Gate, Waits
from microkernel.message import Call, Message, current_call
from microkernel.service import Service, handles, streams
from microkernel.testing import TestKernel

HERE = Path(__file__).parent


class Ask(Message):
    what: str = ""


def gate_of(handler, *, concurrency=4):
    deadlines = Deadlines(asyncio.get_running_loop())
    return Gate("x.y", handler, concurrency=concurrency, queue=4, deadlines=deadlines, waits=Waits())


def test_the_reference_in_python_keeps_every_promise_that_the_tests_of_gates_and_ports_name():
    """What runs without a compiler; a process of its own, since the choice is made at import."""
    tests = ["test_gate.py", "test_port.py", "test_run.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in tests)]
    other = "0" if os.environ.get("MICROKERNEL_PURE") == "1" else "1"
    if os.environ.get("MICROKERNEL_TWIN"):
        pytest.skip("this is the other process")
    ended = subprocess.run(
        command,
        check=False,
        env={**os.environ, "MICROKERNEL_PURE": other, "MICROKERNEL_TWIN": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        cwd=HERE.parent.parent,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]


@pytest.mark.skipif(os.environ.get("MICROKERNEL_PURE") == "1", reason="the reference was asked for")
def test_the_c_module_is_what_runs_where_it_was_built():
    assert run.Admission.__module__ == "microkernel._run"


async def test_a_call_that_has_not_been_awaited_has_not_begun_and_takes_no_slot():
    ran = []

    async def handler():
        ran.append(True)

    gate = gate_of(handler)
    call = gate.call((), Call(caller="test"))
    assert isinstance(call, collections.abc.Coroutine)
    call.close()
    assert (ran, gate.in_flight) == ([], 0)


async def test_a_call_can_be_a_task_and_be_gathered():
    async def handler(number):
        await asyncio.sleep(0)
        return number

    gate = gate_of(handler)
    task = asyncio.create_task(gate.call((1,), Call(caller="test")))
    assert await asyncio.gather(task, gate.call((2,), Call(caller="test"))) == [1, 2]


async def test_what_was_awaited_once_cannot_be_awaited_again():
    async def handler():
        return 1

    call = gate_of(handler).call((), Call(caller="test"))
    assert await call == 1
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        await call


async def test_a_suspended_call_that_is_closed_runs_its_finally_blocks_and_gives_its_slot_back():
    ended = []

    async def handler():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(current_call() is not None)

    gate = gate_of(handler)
    call = gate.call((), Call(caller="test"))
    call.send(None)
    assert (gate.in_flight, len(gate.running)) == (1, 1)
    call.close()
    assert (ended, gate.in_flight, len(gate.running)) == ([True], 0, 0)
    assert current_call() is None


async def test_a_call_that_is_dropped_while_it_waits_gives_its_slot_back():
    async def handler():
        await asyncio.sleep(3600)

    gate = gate_of(handler)
    call = gate.call((), Call(caller="test"))
    call.send(None)
    del call
    gc.collect()
    assert (gate.in_flight, len(gate.running)) == (0, 0)


@pytest.mark.parametrize("late", [False, True])
async def test_each_way_to_end_leaves_no_reference_behind(late):
    class Thing:
        pass

    async def handler(thing, how):
        if late:
            await asyncio.sleep(0)
        if how == "raise":
            raise KeyError(how)
        if how == "hang":
            await never.wait()  # not a sleep: its timer would keep the call's context
        return thing

    never = asyncio.Event()

    gate = gate_of(handler)
    kept = weakref.WeakSet()
    for how in ("return", "raise", "hang", "cancel"):
        thing = Thing()
        kept.add(thing)
        loop = asyncio.get_running_loop()
        call = Call(caller="test", deadline=loop.time() + 0.01 if how == "hang" else None)
        before = sys.getrefcount(call)
        work = gate.call((thing, "hang" if how == "cancel" else how), call)
        if how == "return":
            assert await work is thing
        elif how == "cancel":
            task = asyncio.create_task(work)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
        else:
            with pytest.raises(Internal if how == "raise" else DeadlineExceeded) as caught:
                await work
            del caught
        del thing, work
        await asyncio.sleep(0)  # the handle that woke this task has been a witness too
        gc.collect()
        assert sys.getrefcount(call) == before, how
    assert list(kept) == []
    assert (gate.in_flight, len(gate.running)) == (0, 0)


async def test_a_long_chain_of_inline_calls_lets_others_have_their_turn():
    async def handler():
        started = time.perf_counter()
        while time.perf_counter() - started < 0.001:
            pass

    gate, turns = gate_of(handler), 0
    loop = asyncio.get_running_loop()

    def count():
        nonlocal turns
        turns += 1
        loop.call_soon(count) if turns < 1000 else None

    loop.call_soon(count)
    for _ in range(100):
        await gate.call((), Call(caller="test"))
    assert turns > 5


async def test_short_calls_in_a_row_stay_in_one_turn_of_the_loop():
    async def handler():
        return None

    gate, turned = gate_of(handler), []
    asyncio.get_running_loop().call_soon(turned.append, True)
    for _ in range(20):
        await gate.call((), Call(caller="test"))
    assert turned == []


class Echo(Service):
    name = "echo"

    @handles
    async def say(self, message: Ask) -> str:
        return message.what

    @handles
    async def nothing(self) -> str:
        return "nothing"

    @handles(deadline=None)
    async def outer(self, message: Ask) -> tuple:
        await asyncio.sleep(0)
        return tuple((await self.port.method("echo.see")()).split())

    @handles
    async def see(self) -> str:
        call = current_call()
        return f"{call.priority} {' '.join(call.chain)}"

    @handles(deadline=0.03)
    async def hang(self) -> None:
        await asyncio.sleep(3600)

    @handles
    async def left(self) -> float:
        return current_call().deadline - self.clock.now()

    @streams
    async def count(self):
        for number in range(3):
            yield number, current_call().chain


async def test_a_method_is_bound_once_and_answers_like_a_call():
    async with TestKernel(Echo) as system:
        say = system.kernel.port.method("echo.say")
        for _ in range(2):
            assert await say(Ask("hello")) == "hello"
            assert await say({"what": "fields"}) == "fields"
        nothing = system.kernel.port.method("echo.nothing")
        assert [await nothing(), await nothing()] == ["nothing"] * 2
        assert system.kernel.port.method("echo.say") is say


async def test_a_method_carries_priority_and_chain_of_the_call_being_answered():
    async with TestKernel(Echo) as system:
        for _ in range(2):
            assert await system.call("echo.outer", Ask(), priority=2) == ("2", "echo.outer", "echo.see")


async def test_a_method_finds_the_next_incarnation():
    async with TestKernel(Echo) as system:
        say = system.kernel.port.method("echo.say")
        assert await say(Ask("a")) == "a"
        await system.restart("echo")
        assert await say(Ask("b")) == "b"


async def test_a_method_ends_at_its_handlers_deadline_and_tells_the_handler_of_it():
    async with TestKernel(Echo) as system:
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await system.kernel.port.method("echo.hang")()
            assert 0 < await system.kernel.port.method("echo.left")() <= 60


async def test_items_of_a_stream_are_made_in_the_name_of_its_call_and_leave_no_trace_in_the_readers():
    async with TestKernel(Echo) as system:
        async for _, chain in system.stream("echo.count"):
            assert chain == ("echo.count",)
            assert current_call() is None


async def test_a_stream_that_is_dropped_gives_its_slot_back():
    async def handler():
        yield 1
        yield 2

    gate = gate_of(handler)
    stream = gate.stream((), Call(caller="test"))
    assert await anext(stream) == 1
    assert gate.in_flight == 1
    del stream
    gc.collect()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (gate.in_flight, len(gate.running)) == (0, 0)


async def test_a_stream_that_was_killed_between_two_pulls_is_over_after_its_error():
    async def handler():
        yield 1
        yield 2

    gate = gate_of(handler)
    stream = gate.stream((), Call(caller="test"))
    assert await anext(stream) == 1
    gate.kill(Unavailable("it restarts"))
    with pytest.raises(Unavailable, match="it restarts"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert gate.in_flight == 0
