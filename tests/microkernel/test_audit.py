"""The audit: every denial is told or counted, and a flood of them is no flood of events."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import Service, handles
from microkernel.audit import DISTINCT, Act, Audit, Denial, Denials
from microkernel.capability import Rights
from microkernel.errors import Denied
from microkernel.testing import TestKernel


def denial(target: str = "kv.get", at: float = 1.0) -> Denial:
    return Denial(at=at, act=Act.CALL, who="session s1", user="ana", target=target, why="its rights do not cover it")


def test_the_first_is_told_at_once_and_its_repeats_as_one_with_their_number() -> None:
    denials = Denials()
    assert denials.add(denial()) == denial()
    assert [denials.add(denial(at=2.0)) for _ in range(1000)] == [None] * 1000
    assert denials.flush() == [msgspec.structs.replace(denial(at=2.0), count=1000)]
    assert denials.flush() == []
    assert denials.add(denial()) == denial()


def test_what_is_too_much_in_a_window_is_told_as_one_number() -> None:
    denials = Denials()
    told = [denials.add(denial(f"kv.x{number}")) for number in range(10_000)]
    assert sum(each is not None for each in told) == DISTINCT
    [others] = denials.flush()
    assert (others.who, others.target, others.count) == ("*", "*", 10_000 - DISTINCT)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 100), max_size=300), max_size=5))
def test_every_denial_is_counted_once_and_no_window_tells_more_than_its_bound(windows) -> None:
    denials, counted = Denials(), 0
    for window in windows:
        told = [found for target in window if (found := denials.add(denial(f"kv.x{target}"))) is not None]
        told += denials.flush()
        assert len(told) <= 2 * DISTINCT + 1
        counted += sum(each.count for each in told)
    assert counted == sum(map(len, windows))


async def test_the_rest_of_a_window_is_told_when_it_ends_and_at_the_close() -> None:
    told: list[Denial] = []
    came = asyncio.Event()

    def tell(denial: Denial) -> None:
        told.append(denial)
        if denial.count > 1:
            came.set()

    audit = Audit(asyncio.get_running_loop(), lambda: 5.0, tell)
    for _ in range(3):
        audit.denied(Act.CALL, "kv.get", "no right", who="guest")
    assert [each.count for each in told] == [1]
    await came.wait()
    assert [each.count for each in told] == [1, 2]
    for _ in range(4):
        audit.denied(Act.PUBLISH, "kv.changed", "no right", who="guest")
    audit.close()
    assert [each.count for each in told] == [1, 2, 1, 3]


async def test_texts_of_strangers_are_cut_and_can_be_written_down() -> None:
    told: list[Denial] = []
    audit = Audit(asyncio.get_running_loop(), lambda: 5.0, told.append)
    audit.denied(Act.CALL, "x" * 100_000, "\ud800 no right", who="guest", user="\udfff", peer="p" * 999)
    audit.close()
    assert len(told[0].target) == len(told[0].peer or "") == 256
    assert msgspec.json.decode(msgspec.json.encode(told[0]), type=Denial) == told[0]


class Kv(Service):
    name = "kv"

    @handles
    async def get(self) -> int:
        return 1

    @handles
    async def put(self) -> None:
        await self.call("clock.set")


async def test_a_port_that_denies_is_audited_whatever_it_was_asked_for() -> None:
    rights = Rights(allow=("kv.get",), publish=("colour.*",), subscribe=("colour.>",))
    async with TestKernel(Kv) as system, system.subscribe("audit.denied") as audited:
        port = system.kernel.port.narrow(caller="session s1", rights=rights, user="ana")
        assert await port.call("kv.get") == 1
        port.publish("colour.red")
        port.subscribe("colour.*").close()
        with pytest.raises(Denied):
            await port.call("kv.put")
        with pytest.raises(Denied):
            await port.stream("kv.scan").__anext__()
        with pytest.raises(Denied):
            await port.send("kv.put", n=1)
        with pytest.raises(Denied):
            port.publish("colour.red.dark")
        with pytest.raises(Denied):
            port.publish("audit.denied")
        with pytest.raises(Denied):
            port.subscribe(">")
        told = [(await anext(audited)).body for _ in range(5)]
    assert [(each.act, each.target) for each in told] == [
        ("call", "kv.put"),
        ("call", "kv.scan"),
        ("publish", "colour.red.dark"),
        ("publish", "audit.denied"),
        ("subscribe", ">"),
    ]
    assert {(each.who, each.user) for each in told} == {("session s1", "ana")}


async def test_a_service_that_calls_beyond_its_needs_is_audited() -> None:
    async with TestKernel(Kv) as system, system.subscribe("audit.denied") as audited:
        with pytest.raises(Denied):
            await system.call("kv.put")
        body = (await anext(audited)).body
    assert (body.who, body.target) == ("kv", "clock.set")


async def test_a_service_cannot_write_the_audit() -> None:
    class Liar(Service):
        name = "liar"

        @handles
        async def lie(self) -> None:
            self.publish("audit.denied", who="ana")

    async with TestKernel(Liar) as system:
        with pytest.raises(Denied, match="only the kernel"):
            await system.call("liar.lie")
