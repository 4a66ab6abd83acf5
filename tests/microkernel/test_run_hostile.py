"""Runs in the wrong hands, in C and in Python: driven from within, from elsewhere, twice, never; and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import sys
import weakref
from pathlib import Path

import pytest
from twins import both, breath, gate_of, in_c, needs_c

from microkernel.errors import Internal, MicrokernelError
from microkernel.message import Call, current_call


@both
@pytest.mark.parametrize(
    "again", [lambda run: run.send(None), lambda run: run.throw(KeyError("k")), lambda run: run.close()]
)
async def test_a_handler_that_drives_the_run_it_is_in_is_told_so_and_goes_on(built, again):
    async def handler():
        with pytest.raises(ValueError, match="coroutine already executing"):
            again(run)
        await breath()
        return "done"

    gate = gate_of(built, handler)
    run = gate.call((), Call(caller="test"))
    assert await run == "done"
    assert (gate.free, gate.failures) == (4, 0)


@both
async def test_a_suspended_pull_that_is_closed_closes_the_generator_with_it(built):
    ended = []

    async def handler():
        try:
            await breath()
            yield 1
        finally:
            ended.append(current_call().caller)

    gate = gate_of(built, handler)
    stream = gate.stream((), Call(caller="test"))
    pull = anext(stream)
    pull.send(None)
    pull.close()
    assert ended == ["test"]
    await stream.aclose()
    assert (gate.free, len(gate.running)) == (4, 0)


@both
async def test_a_pull_that_is_cancelled_before_it_began_leaves_the_stream_as_it_was(built):
    async def handler():
        yield 1
        yield 2

    gate = gate_of(built, handler)
    stream = gate.stream((), Call(caller="test"))
    assert await anext(stream) == 1
    pull = asyncio.ensure_future(anext(stream))
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert [item async for item in stream] == [2]
    assert gate.free == 4


@both
@pytest.mark.parametrize("barred", [False, True])
async def test_a_run_that_is_ended_from_another_context_gives_its_slot_back(built, barred):
    async def handler():
        await breath()

    gate = gate_of(built, handler)
    for end in (lambda run: run.close(), lambda run: run.send(None)):
        run = gate.call((), Call(caller="test"))
        contextvars.Context().run(run.send, None)
        gate.barred = barred
        with contextlib.suppress(StopIteration):
            end(run)
        gate.barred = False
        assert gate.free == 4


@both
async def test_a_closed_run_is_no_failure_of_its_handler(built):
    async def handler():
        await breath()

    gate = gate_of(built, handler)
    run = gate.call((), Call(caller="test"))
    run.send(None)
    with pytest.raises(GeneratorExit):
        run.throw(GeneratorExit())
    assert (gate.free, gate.failures, len(gate.running)) == (4, 0, 0)


@both
async def test_a_run_that_is_over_holds_nothing_of_its_call(built):
    async def handler(thing):
        return None

    gate, thing = gate_of(built, handler), {1}
    before = sys.getrefcount(thing)
    run = gate.call((thing,), Call(caller="test"))
    await run
    assert sys.getrefcount(thing) == before


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@both
async def test_what_was_never_set_or_is_set_to_rubbish_raises_and_does_no_worse(built):
    gate = gate_of(built, None)
    del gate.handler
    with pytest.raises(Internal, match="handler"):
        await gate.call((), Call(caller="test"))
    kind = built.Stream.__mro__[1]
    stream = kind()
    stream.gate, stream.next = gate, breath
    anext(stream).close()
    with pytest.raises(AttributeError):
        built.Gate.__new__(built.Gate).call((), Call(caller="test")).send(None)
    with pytest.raises((TypeError, AttributeError)):
        built.Method.__new__(built.Method)()
    with pytest.raises(TypeError):
        gate.call((), Call(caller="test")).throw(5)


@both
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_run_that_was_never_begun_is_collected_with_what_holds_it(built):
    class Thing:
        pass

    async def handler(thing):
        return thing

    thing = Thing()
    thing.run = gate_of(built, handler).call((thing,), Call(caller="test"))
    kept = weakref.ref(thing)
    del thing
    gc.collect()
    assert kept() is None


def memory():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def mixed(gate, flow, call, thing):
    """One run of each kind: it returns, raises, waits, is closed, is thrown into, is dropped, is a stream."""
    await gate.call((thing, "return"), call)
    for how in ("raise", "late"):
        with contextlib.suppress(MicrokernelError):
            await gate.call((thing, how), call)
    await gate.call((thing, "wait"), call)
    for end in (lambda run: run.close(), lambda run: run.throw(KeyError("k")), lambda _: None):
        run = gate.call((thing, "wait"), call)
        run.send(None)
        with contextlib.suppress(Internal):
            end(run)
        del run
    gate.call((thing, "return"), call).close()
    async for _ in flow.stream((thing,), call):
        pass
    async with flow.stream((thing,), call) as stream:
        await anext(stream)
        pull = anext(stream)
        pull.send(None)
        pull.close()


def mixed_world(built):
    async def handler(thing, how):
        if how in {"wait", "late"}:
            await breath()
        if how in {"raise", "late"}:
            raise KeyError(thing)
        return thing

    async def items(thing):
        yield thing
        await breath()
        yield thing

    return gate_of(built, handler), gate_of(built, items)


@needs_c
async def test_ten_thousand_mixed_runs_leave_no_object_and_no_reference_behind():
    gate, flow = mixed_world(in_c)
    call, thing = Call(caller="test"), object()
    for _ in range(100):
        await mixed(gate, flow, call, thing)
    gc.collect()
    objects, references = len(gc.get_objects()), (sys.getrefcount(call), sys.getrefcount(thing))
    for _ in range(1000):
        await mixed(gate, flow, call, thing)
    gc.collect()
    assert (sys.getrefcount(call), sys.getrefcount(thing)) == references
    assert abs(len(gc.get_objects()) - objects) < 50
    assert (gate.free, len(gate.running), flow.free, len(flow.running)) == (4, 0, 4, 0)


@needs_c
@pytest.mark.slow
async def test_a_million_mixed_runs_take_no_more_memory_than_a_hundred_thousand():
    gate, flow = mixed_world(in_c)
    call, thing = Call(caller="test"), object()
    sizes = []
    for rounds in (10_000, 90_000):
        for _ in range(rounds):
            await mixed(gate, flow, call, thing)
        sizes.append(memory())
    assert sizes[1] - sizes[0] < 1 << 20
