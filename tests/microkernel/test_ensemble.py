"""Several instances of one service: calls are balanced, and one that crashes is replaced while the others go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import ClassVar

import pytest

from microkernel.balance import Balance
from microkernel.config import Config
from microkernel.errors import Unavailable
from microkernel.message import Message
from microkernel.monitors import Down, Up
from microkernel.service import Service, handles, on, streams
from microkernel.testing import TestKernel


class Key(Message):
    key: str = ""


class Many(Service):
    name = "many"
    instances = 3
    heard: ClassVar[list] = []

    async def start(self) -> None:
        self.release = asyncio.Event()
        self.state_dir.mkdir(parents=True, exist_ok=True)

    @handles
    async def who(self, message: Key) -> int:
        return self.instance

    @handles
    async def hold(self) -> int:
        await self.release.wait()
        return self.instance

    @handles
    async def let_go(self) -> None:
        self.release.set()

    @handles
    async def crash(self) -> int:
        async def fail():
            raise RuntimeError("a task of it failed")

        self.spawn(fail(), name="fail")
        return self.instance

    @handles
    async def folder(self) -> str:
        return str(self.state_dir)

    @streams
    async def numbers(self):
        for _ in range(3):
            yield self.instance

    @on("told.all")
    async def hear(self, event) -> None:
        self.heard.append(("all", self.instance))

    @on("told.one", group="many")
    async def share(self, event) -> None:
        self.heard.append(("one", self.instance))


def balanced(policy, field=""):
    return type("Balanced", (Many,), {"balance": policy, "balance_field": field})


async def test_calls_go_round():
    async with TestKernel(Many) as system:
        assert Counter([await system.call("many.who") for _ in range(9)]) == {0: 3, 1: 3, 2: 3}


async def test_the_same_key_goes_to_the_same_instance():
    async with TestKernel(balanced(Balance.HASH, "key")) as system:
        for key in "abcdefgh":
            assert len({await system.call("many.who", key=key) for _ in range(5)}) == 1
        assert len({await system.call("many.who", key=f"key {number}") for number in range(50)}) == 3


async def test_a_sticky_caller_stays_with_its_instance():
    async with TestKernel(balanced("sticky")) as system:
        assert len({await system.call("many.who") for _ in range(10)}) == 1


@pytest.mark.parametrize("policy", ["least_busy", "two_choices"])
async def test_an_instance_that_is_busy_gets_fewer_calls(policy):
    async with TestKernel(balanced(policy)) as system:
        held = [asyncio.create_task(system.call("many.hold")) for _ in range(30)]
        await asyncio.sleep(0.01)
        gates = system.kernel.router.registry.entry("many").bindings["hold"].gate.gates
        spread = [gate.in_flight for gate in gates]
        assert sum(spread) == 30
        assert max(spread) - min(spread) <= 6
        for _ in range(200):
            await system.call("many.let_go")
        await asyncio.gather(*held)


async def test_a_stream_stays_with_the_instance_that_began_it():
    async with TestKernel(Many) as system:
        items = [item async for item in system.stream("many.numbers")]
        assert len(items) == 3
        assert len(set(items)) == 1


async def test_each_instance_has_a_folder_of_its_own():
    async with TestKernel(Many) as system:
        assert len({await system.call("many.folder") for _ in range(3)}) == 3


async def test_an_event_reaches_all_instances_and_of_a_group_one():
    Many.heard.clear()
    async with TestKernel(Many) as system:
        system.publish("told.all")
        system.publish("told.one")
        while len(Many.heard) < 4:
            await asyncio.sleep(0.001)
        assert Counter(kind for kind, _ in Many.heard) == {"all": 3, "one": 1}


async def test_while_an_instance_that_crashed_is_replaced_the_others_answer():
    async with TestKernel(Many) as system:
        held = [asyncio.create_task(system.call("many.hold")) for _ in range(3)]
        await asyncio.sleep(0.01)
        crashed = await system.call("many.crash")
        await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        seen = Counter()
        while crashed not in seen:
            seen[await system.call("many.who")] += 1
            await asyncio.sleep(0.005)
        assert len(seen) == 3
        assert system.state("many") == "ready", "the service as a whole has never been down"
        for _ in range(6):
            await system.call("many.let_go")
        results = await asyncio.gather(*held, return_exceptions=True)
        assert sorted(type(result) for result in results if not isinstance(result, int)) == [Unavailable]


async def test_when_no_instance_is_left_the_service_has_crashed_and_calls_wait_for_the_next_incarnation():
    config = Config(instances={"many": 2})
    async with TestKernel(Many, config=config) as system, system.kernel.port.monitor("many") as changes:
        assert await anext(changes) == Up("many", 1)
        gates = system.kernel.router.registry.entry("many").bindings["who"].gate
        assert len(gates.gates) == 2
        await system.call("many.crash")
        await system.call("many.crash")
        down = await anext(changes)
        assert isinstance(down, Down)
        assert "a task of it failed" in down.reason
        assert await system.call("many.who") in {0, 1}
        assert await anext(changes) == Up("many", 2)


async def test_a_restart_replaces_all_instances():
    async with TestKernel(Many) as system:
        await system.restart("many")
        assert Counter([await system.call("many.who") for _ in range(6)]) == {0: 2, 1: 2, 2: 2}


async def test_an_instance_that_does_not_start_leaves_none_behind():
    class Picky(Many):
        async def start(self) -> None:
            await super().start()
            if self.instance == 1:
                raise RuntimeError("not me")

    async with TestKernel(Picky, wait_ready=False) as system:
        with pytest.raises(Unavailable, match="not me"):
            await system.call("many.who", deadline=5)
