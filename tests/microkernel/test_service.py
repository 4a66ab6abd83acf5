"""What a plugin author writes, and how it answers through the kernel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from microkernel import Message, Service, every, handles, on, streams
from microkernel.errors import DeadlineExceeded, Deadlock, Denied, Invalid, NotFound, Unavailable
from microkernel.message import current_call
from microkernel.service import HandlerKind, handlers_of
from microkernel.testing import TestKernel


class Put(Message):
    key: str
    value: bytes


class Get(Message):
    key: str


@dataclass
class Range:
    first: int
    last: int


class KeyValue(Service):
    """Keeps values by key."""

    name = "kv"

    async def start(self) -> None:
        self.values: dict[str, bytes] = {}
        self.ticks = 0
        self.seen: list[str] = []

    @handles
    async def put(self, message: Put) -> None:
        """Keep a value."""
        self.values[message.key] = message.value
        self.publish("kv.changed", name=message.key)

    @handles(idempotent=True)
    async def get(self, message: Get) -> bytes:
        if message.key not in self.values:
            raise NotFound(f"no key '{message.key}'")
        return self.values[message.key]

    @handles(name="as-dict")
    async def as_dict(self, message: dict[str, Any]) -> dict[str, Any]:
        return message

    @streams
    async def count(self, message: Range):
        for number in range(message.first, message.last):
            yield number

    @on("kv.changed")
    async def note(self, event) -> None:
        self.seen.append(event.body["name"])

    @every(0.01)
    async def tick(self) -> None:
        self.ticks += 1

    @handles(name="seen")
    async def what_was_seen(self) -> list[str]:
        return self.seen

    @handles(name="ticks")
    async def how_many_ticks(self) -> int:
        return self.ticks


async def test_a_message_is_given_as_fields_as_a_struct_or_as_a_dict():
    async with TestKernel(KeyValue) as system:
        await system.call("kv.put", key="a", value=b"1")
        await system.call("kv.put", Put("b", b"2"))
        await system.call("kv.put", {"key": "c", "value": b"3"})
        assert [await system.call("kv.get", key=key) for key in "abc"] == [b"1", b"2", b"3"]


async def test_handlers_take_dicts_and_dataclasses_too():
    async with TestKernel(KeyValue) as system:
        assert await system.call("kv.as-dict", x=1, y=[2]) == {"x": 1, "y": [2]}
        assert [number async for number in system.stream("kv.count", first=2, last=5)] == [2, 3, 4]


async def test_a_wrong_field_is_named():
    async with TestKernel(KeyValue) as system:
        with pytest.raises(Invalid, match="Expected `str`, got `int` in field 'key'") as caught:
            await system.call("kv.put", key=1, value=b"")
        assert caught.value.field == "key"
        with pytest.raises(Invalid, match="missing required field `value`"):
            await system.call("kv.put", key="a")


async def test_unknown_services_and_handlers_are_answered_with_what_there_is():
    async with TestKernel(KeyValue) as system:
        with pytest.raises(NotFound, match="kernel, kv"):
            await system.call("vk.get", key="a")
        with pytest.raises(NotFound, match="as-dict, count, get, put"):
            await system.call("kv.got", key="a")
        with pytest.raises(NotFound, match=r"service\.method"):
            await system.call("kv")


async def test_a_stream_is_not_called_and_a_call_is_not_streamed():
    async with TestKernel(KeyValue) as system:
        with pytest.raises(Invalid, match=r"reached by stream\(\)"):
            await system.call("kv.count", first=0, last=1)
        with pytest.raises(Invalid, match=r"reached by call\(\)"):
            async for _ in system.stream("kv.get", key="a"):
                pass


async def test_events_reach_subscribers_and_timers_tick():
    async with TestKernel(KeyValue) as system:
        await system.call("kv.put", key="a", value=b"")
        async with asyncio.timeout(10):
            while await system.call("kv.seen") != ["a"] or await system.call("kv.ticks") < 2:
                await asyncio.sleep(0.01)


async def test_describe_gives_every_handler_with_its_schema():
    async with TestKernel(KeyValue) as system:
        [service] = await system.call("kernel.describe", name="kv")
        assert service.summary == "Keeps values by key."
        put = next(handler for handler in service.handlers if handler.address == "kv.put")
        assert put.summary == "Keep a value."
        assert "key" in str(put.message)


async def test_a_service_may_only_call_what_it_needs_or_uses():
    class Nosy(Service):
        name = "nosy"

        @handles
        async def look(self) -> bytes:
            return await self.call("kv.get", key="a")

    class Friend(Nosy):
        name = "friend"
        uses = ("kv",)

    async with TestKernel(KeyValue, Nosy, Friend) as system:
        await system.call("kv.put", key="a", value=b"1")
        with pytest.raises(Denied, match=r"nosy has no right to call kv\.get"):
            await system.call("nosy.look")
        assert await system.call("friend.look") == b"1"


async def test_deadline_priority_and_user_travel_with_a_call_through_every_service():
    class Inner(Service):
        name = "inner"

        @handles
        async def show(self) -> dict[str, Any]:
            call = current_call()
            return {
                "priority": call.priority,
                "deadline": call.deadline,
                "chain": call.chain,
                "caller": call.caller,
            }

    class Outer(Service):
        name = "outer"
        needs = ("inner",)

        @handles
        async def show(self) -> dict[str, Any]:
            return await self.call("inner.show", deadline=1000.0)

    async with TestKernel(Inner, Outer) as system:
        now = asyncio.get_running_loop().time()
        seen = await system.call("outer.show", deadline=5.0, priority=1)
        assert seen["priority"] == 1
        assert seen["chain"] == ("outer.show", "inner.show")
        assert seen["caller"] == "outer"
        assert now < seen["deadline"] <= now + 6, "an inner call cannot have more time than the outer one"


async def test_services_that_wait_for_each_other_in_a_circle_are_told_at_once():
    class Left(Service):
        name = "left"
        uses = ("right",)

        @handles(concurrency=1)
        async def go(self) -> None:
            await self.call("right.go")

    class Right(Service):
        name = "right"
        uses = ("left",)

        @handles(concurrency=1)
        async def go(self) -> None:
            await self.call("left.go")

    async with TestKernel(Left, Right) as system:
        with pytest.raises(Deadlock, match=r"left\.go → right\.go → left\.go"):
            await system.call("left.go")


async def test_a_handler_gets_its_own_deadline_when_the_caller_names_none():
    class Slow(Service):
        name = "slow"

        @handles(deadline=0.02)
        async def wait(self) -> None:
            await asyncio.sleep(3600)

    async with TestKernel(Slow) as system:
        with pytest.raises(DeadlineExceeded):
            await system.call("slow.wait")


async def test_a_one_way_message_arrives_and_one_that_fails_is_a_dead_letter():
    async with TestKernel(KeyValue) as system:
        await system.kernel.port.send("kv.put", key="a", value=b"1")
        async with system.subscribe("dead.letter") as letters:
            await system.kernel.port.send("kv.get", key="none")
            letter = await asyncio.wait_for(anext(letters), 10)
        assert letter.body["to"] == "kv.get"
        assert await system.call("kv.get", key="a") == b"1"


async def test_a_narrowed_port_can_do_less_and_never_more():
    from microkernel.capability import Rights

    async with TestKernel(KeyValue) as system:
        narrow = system.kernel.port.narrow(caller="guest", rights=Rights(allow=("kv.get", "kv.put"), deny=("kv.put",)))
        wider = narrow.narrow(caller="guest of guest", rights=Rights())
        for port in (narrow, wider):
            with pytest.raises(NotFound):
                await port.call("kv.get", key="a")
            with pytest.raises(Denied):
                await port.call("kv.put", key="a", value=b"")
            with pytest.raises(Denied):
                await port.call("kernel.shutdown")


def test_signatures_that_do_not_fit_are_named():
    class NotAsync(Service):
        @handles
        def put(self, message: Put) -> None: ...

    class NoGenerator(Service):
        @streams
        async def scan(self) -> list[int]:
            return []

    class TwoMessages(Service):
        @handles
        async def put(self, key: str, value: bytes) -> None: ...

    class Hiding(Service):
        @handles
        async def call(self) -> None: ...

    for kind, why in [
        (NotAsync, "needs an async function"),
        (NoGenerator, "needs an async generator"),
        (TwoMessages, "takes one message"),
        (Hiding, "hides Service.call"),
    ]:
        with pytest.raises(Invalid, match=why):
            handlers_of(kind)


def test_handlers_know_their_kind_and_types():
    handlers = {handler.name: handler for handler in handlers_of(KeyValue)}
    assert handlers["put"].message is Put
    assert handlers["get"].idempotent
    assert handlers["count"].kind is HandlerKind.STREAM
    assert not handlers["seen"].takes_message


async def test_a_stopped_system_answers_unavailable():
    async with TestKernel(KeyValue) as system:
        port = system.kernel.port
        await port.call("kv.put", key="a", value=b"")
    with pytest.raises(Unavailable, match="shuts down|has ended"):
        await port.call("kv.get", key="a")
