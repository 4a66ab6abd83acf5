"""What becomes of messages that nobody could handle."""

from __future__ import annotations

import asyncio
import enum

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import Event, Overflow, Service, on
from microkernel.dead_letters import MAX_PREVIEW, preview
from microkernel.errors import NotFound
from microkernel.testing import TestKernel


class Colour(enum.StrEnum):
    RED = "red"


class Point(msgspec.Struct):
    x: object
    y: object = None


class Loud:
    def __repr__(self) -> str:
        raise AssertionError("nobody asked for this")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (None, "None"),
        ({"a": 1, "b": [True, 2.5, None]}, "{'a': 1, 'b': [True, 2.5, None]}"),
        ("x" * 1000, "'" + "x" * 80 + "'…"),
        (b"x" * 1000, "b'" + "x" * 80 + "'…"),
        (msgspec.Raw(b'{"a":1}'), "b'{\"a\":1}'"),
        (Point(1, "a"), "Point(x=1, y='a')"),
        (Point([Loud()]), "Point(x=[<Loud>], y=None)"),
        (Colour.RED, "'red'"),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, …]"),
        ([[[["deep"]]]], "[[[<list>]]]"),
        ([10**5000], "[<int of 16610 bits>]"),
        ({}, "{}"),
    ],
)
def test_a_preview_is_the_beginning_of_a_body(body, text):
    assert preview(body) == text


json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.builds(Point, inner, inner)),
)


@given(json)
def test_a_preview_is_never_long(body):
    assert len(preview(body)) <= MAX_PREVIEW


def test_what_contains_itself_has_a_preview():
    body: dict = {}
    body["me"] = [body]
    assert preview(body) == "{'me': [{'me': <list>}]}"


class Fragile(Service):
    """Fails on events."""

    name = "fragile"

    @on("go.*")
    async def handle(self, event: Event) -> None:
        if event.subject == "go.wrong":
            raise NotFound("no such thing")
        if event.subject == "go.bad":
            raise ZeroDivisionError("by nought")


class Reader(Service):
    """Fails on dead letters, and on everything else."""

    name = "reader"

    def __init__(self) -> None:
        self.got: list[Event] = []
        self.enough = asyncio.Event()

    @on("dead.letter")
    async def bury(self, event: Event) -> None:
        self.got.append(event)
        if len(self.got) == 2:
            self.enough.set()
        raise RuntimeError("buried alive")


async def test_an_event_that_fails_is_a_dead_letter_and_its_service_goes_on():
    async with TestKernel(Fragile) as system, system.subscribe("dead.letter") as letters, asyncio.timeout(10):
        system.publish("go.wrong", size=3)
        system.publish("go.well")
        system.publish("go.bad", {"x": "y"})
        first, second = await anext(letters), await anext(letters)
        assert first.body == {
            "to": "fragile.handle",
            "why": "no such thing",
            "subject": "go.wrong",
            "preview": "{'size': 3}",
        }
        assert second.body["why"] == "ZeroDivisionError: by nought"
        assert second.body["preview"] == "{'x': 'y'}"
        assert system.kernel.router.dead_letters.count == 2
        assert system.state("fragile") == "ready"


async def test_a_reader_of_dead_letters_that_fails_makes_no_more_of_them():
    reader = Reader()
    async with TestKernel(Fragile, reader) as system, asyncio.timeout(10):
        letters = system.kernel.router.dead_letters
        system.publish("go.wrong")
        system.publish("go.bad")
        await reader.enough.wait()
        while letters.count < 4:  # two events, and two letters that could not be handled
            await asyncio.sleep(0)
        offset = system.kernel.router.bus.offset
        for _ in range(20):
            await asyncio.sleep(0)
        assert system.kernel.router.bus.offset == offset
        assert [event.body["subject"] for event in reader.got] == ["go.wrong", "go.bad"]


async def test_the_last_letters_are_kept_for_who_comes_later():
    async with TestKernel(Fragile) as system, asyncio.timeout(10):
        before = system.kernel.router.bus.offset
        async with system.subscribe("dead.letter") as now:
            system.publish("go.wrong")
            await anext(now)
        async with system.kernel.port.subscribe("dead.letter", since=before) as letters:
            assert (await anext(letters)).body["subject"] == "go.wrong"


class Slow(Service):
    """Handles one event at a time, when it is let."""

    name = "slow"

    def __init__(self) -> None:
        self.got: list[int] = []
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def take(self, event: Event) -> None:
        self.begun.set()
        await self.let.wait()
        self.got.append(event.body["n"])


class Dropping(Slow):
    @on("go", queue=2)
    async def handle(self, event: Event) -> None:
        await self.take(event)


async def test_events_that_a_service_was_too_slow_for_are_told_in_one_letter():
    slow = Dropping()
    async with TestKernel(slow) as system, system.subscribe("dead.letter") as letters, asyncio.timeout(10):
        system.publish("go", n=0)
        await slow.begun.wait()
        for number in range(1, 6):
            system.publish("go", n=number)
        slow.let.set()
        assert (await anext(letters)).body == {"to": "slow.handle", "why": "fell behind", "subject": "go", "events": 3}
        while len(slow.got) < 3:
            await asyncio.sleep(0)
        assert slow.got == [0, 4, 5]
        assert letters.pending == 0


class Postman(Slow):
    @on("*.letter", queue=1)
    async def handle(self, event: Event) -> None:
        await self.take(event)


async def test_who_drops_dead_letters_too_is_not_sent_one_about_it():
    slow = Postman()
    async with TestKernel(slow) as system, system.subscribe("dead.letter") as letters, asyncio.timeout(10):
        system.publish("love.letter", n=0)
        await slow.begun.wait()
        for number in range(1, 6):
            system.publish("love.letter", n=number)
        slow.let.set()
        while len(slow.got) < 2:
            await asyncio.sleep(0)
        assert system.kernel.router.dead_letters.count == 4
        assert letters.pending == 0


class Swamped(Service):
    """Gets three new events for each that it handles."""

    name = "swamped"

    def __init__(self) -> None:
        self.handled = 0

    @on("go", queue=2)
    async def handle(self, event: Event) -> None:
        self.handled += 1
        if self.handled < 100:
            for _ in range(3):
                self.publish("go")


async def test_a_service_that_stays_behind_is_told_of_now_and_then_and_none_is_left_out():
    async with TestKernel(Swamped) as system, system.subscribe("dead.letter") as letters, asyncio.timeout(10):
        system.publish("go")
        lost = 1 + 99 * 3 - (99 + 2)  # one and 99 times three come; 99 are handled, and the two that wait then
        told = count = 0
        while told < lost:
            told, count = told + (await anext(letters)).body["events"], count + 1
        assert told == lost
        assert count < 50


async def test_events_that_a_service_leaves_behind_when_it_stops_are_dead_letters():
    async with TestKernel(Dropping) as system, system.subscribe("dead.letter") as letters, asyncio.timeout(10):
        slow = system.kernel.instance("slow").service
        system.publish("go", n=0)
        await slow.begun.wait()
        system.publish("go", n=1)
        await system.restart("slow")
        stopped, unread = (await anext(letters)).body, (await anext(letters)).body
        assert stopped["why"] == "the service stopped while it was being handled"
        assert stopped["preview"] == "{'n': 0}"
        assert (unread["why"], unread["events"]) == ("the service stopped before they were read", 1)


class Watching(Slow):
    @on("go", overflow=Overflow.LATEST)
    async def handle(self, event: Event) -> None:
        await self.take(event)


async def test_who_asks_for_the_latest_only_loses_nothing_by_getting_it():
    slow = Watching()
    async with TestKernel(slow) as system, asyncio.timeout(10):
        system.publish("go", n=0)
        await slow.begun.wait()
        for number in range(1, 6):
            system.publish("go", n=number)
        slow.let.set()
        while len(slow.got) < 2:
            await asyncio.sleep(0)
        assert slow.got == [0, 5]
        assert system.kernel.router.dead_letters.count == 0


class Strict(Slow):
    @on("go", queue=1, overflow="cut")
    async def handle(self, event: Event) -> None:
        await self.take(event)


async def test_a_service_whose_subscription_is_cut_has_crashed_and_is_started_anew():
    async with TestKernel(Strict) as system, system.subscribe("service.slow.*") as changes, asyncio.timeout(10):
        slow = system.kernel.instance("slow").service
        system.publish("go", n=0)
        await slow.begun.wait()
        system.publish("go", n=1)
        system.publish("go", n=2)
        slow.let.set()
        async for change in changes:
            if change.body["state"] == "ready":
                break
            if "crashed" in change.body["why"]:
                assert "the subscription to go fell behind" in change.body["why"]
        assert slow.got == [0, 1], "what had come before the gap was handled"
        assert system.kernel.instance("slow").incarnation == 2


class Patient(Slow):
    @on("go", queue=1, overflow="wait")
    async def handle(self, event: Event) -> None:
        await self.take(event)


async def test_a_port_that_delivers_waits_for_the_handler():
    slow = Patient()
    async with TestKernel(slow) as system, asyncio.timeout(10):
        port = system.kernel.port
        await port.deliver("go", n=0)
        await slow.begun.wait()
        await port.deliver("go", n=1)
        third = asyncio.create_task(port.deliver("go", {"n": 2}, deadline=5.0))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not third.done()
        slow.let.set()
        await third
        while len(slow.got) < 3:
            await asyncio.sleep(0)
        assert slow.got == [0, 1, 2]
