"""A traced call is told of when it ends, with those that it made as its children."""

from __future__ import annotations

import asyncio

import pytest

from microkernel.errors import MicrokernelError, NotFound
from microkernel.message import Call, current_call
from microkernel.service import Service, handles, streams
from microkernel.testing import TestKernel
from microkernel.trace import Trace, new_trace, parse_traceparent


class Deep(Service):
    name = "deep"

    @handles
    async def outer(self) -> str:
        return await self.port.method("deep.inner")()

    @handles
    async def inner(self) -> str:
        trace = current_call().trace
        return "" if trace is None else trace.traceparent

    @handles
    async def fail(self) -> None:
        raise NotFound("nothing here")

    @streams
    async def items(self):
        for number in range(3):
            yield number


async def spans_of(system, work, count):
    async with system.subscribe("trace.span") as told:
        await work()
        return [(await anext(told)).body for _ in range(count)]


async def test_a_call_and_those_it_makes_are_spans_of_one_trace():
    trace = new_trace()
    async with TestKernel(Deep) as system:
        await system.call("deep.outer")
        inner, outer = await spans_of(system, lambda: system.call("deep.outer", trace=trace), 2)
        assert (outer.name, inner.name) == ("deep.outer", "deep.inner")
        assert outer.trace_id == inner.trace_id == trace.trace_id
        assert (outer.parent_id, inner.parent_id) == (trace.span_id, outer.span_id)
        assert outer.code == "OK"
        assert outer.seconds >= inner.seconds >= 0


async def test_a_span_says_what_the_call_ended_with():
    async with TestKernel(Deep) as system:

        async def work():
            with pytest.raises(MicrokernelError):
                await system.call("deep.fail", trace=new_trace())

        (span,) = await spans_of(system, work, 1)
        assert (span.name, span.code) == ("deep.fail", "NOT_FOUND")


@pytest.mark.parametrize("early", [False, True])
async def test_a_stream_is_one_span_from_its_opening_to_its_end(early):
    async with TestKernel(Deep) as system:

        async def work():
            stream = system.stream("deep.items", trace=new_trace())
            async for _ in stream:
                if early:
                    break
            await stream.aclose()

        (span,) = await spans_of(system, work, 1)
        assert (span.name, span.code) == ("deep.items", "OK")


async def test_while_nobody_listens_no_call_is_traced():
    async with TestKernel() as system:
        call = Call(caller="test", trace=new_trace())
        assert not system.kernel.router.spans.wants(call)
        async with system.subscribe("trace.>"):
            assert system.kernel.router.spans.wants(call)


async def test_a_call_that_is_not_sampled_is_told_of_by_nobody_and_its_trace_goes_on():
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with TestKernel(Deep) as system, system.subscribe("trace.span") as told:
        seen = parse_traceparent(await system.call("deep.outer", trace=parse_traceparent(header)))
        assert isinstance(seen, Trace)
        assert seen.trace_id == header[3:35]
        assert not seen.sampled
        await system.call("deep.outer")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(told)
