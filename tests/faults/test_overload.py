"""Clients that do not read, or ask for more than they take or than can be done: who suffers, and what is left."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from wire_node import ALL, Node, node

import microkernel as mk
from benchmarks.overload.websocket import WebSocket
from microkernel import Service, handles
from microkernel.gate import Gate
from microkernel.wire.codec import CloseCode
from microkernel.wire.server_session import ServerSession

SLOW = r"slow reader: \d+\.\d MiB pending(, none taken)? for \d+\.\d s"
READERS, STOPPED = 12, 4
EVENTS = 300


class Narrow(Service):
    """Does one thing at a time, and lets four wait."""

    name = "narrow"

    async def start(self) -> None:
        self.begun = 0

    @handles(concurrency=1, queue=4)
    async def work(self) -> None:
        self.begun += 1
        await asyncio.sleep(0)


async def connect(here: Node, take: Callable[[list[dict[str, Any]]], None] = lambda _: None) -> WebSocket:
    return await WebSocket.connect(f"{here.url.rstrip('/')} {ALL}", take)


def session_of(here: Node, client: WebSocket) -> ServerSession:
    return next(link._session for link in here.wire._links if link._session.session == client.session)


def gate_of(here: Node, service: str, method: str) -> Gate:
    return here.kernel.kernel.router.registry.entry(service).bindings[method].gate


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def hear(here: Node, over: asyncio.Event) -> list[int]:
    """All numbers that a reader hears from its subscription on, until the last one."""
    async with mk.connect(here.url, ALL) as system, system.subscribe("news") as news:
        over.set()
        numbers: list[int] = []
        async for event in news:
            numbers.append(event.body.number)
            if len(numbers) == EVENTS:
                return numbers
    raise AssertionError("the subscription ended")


def stop_in_a_stream(client: WebSocket) -> None:
    client.say({"t": "open", "id": 1, "to": "maths.count", "body": {"to": 10**6, "size": 20_000}, "credit": 10**6})
    client.stop_reading()


def stop_in_a_subscription(client: WebSocket) -> None:
    client.say({"t": "subscribe", "id": 1, "subject": "bulk"})
    client.stop_reading()


def stop_in_a_flood(client: WebSocket) -> None:
    client.say(*({"t": "call", "id": n, "to": "maths.big", "body": {"to": 100_000}} for n in range(1, 201)))
    client.stop_reading()


@pytest.mark.parametrize("stop", [stop_in_a_stream, stop_in_a_subscription, stop_in_a_flood])
async def test_who_stops_reading_is_cut_and_named_while_the_others_hear_everything(
    stop: Callable[[WebSocket], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "microkernel.wire")
    async with node(buffer=2**19, slow_after=0.3) as here, asyncio.TaskGroup() as group:
        subscriptions = here.kernel.kernel.router.bus.subjects
        before = len(subscriptions)
        ready = [asyncio.Event() for _ in range(READERS)]
        readers = [group.create_task(hear(here, each)) for each in ready]
        for each in ready:
            await each.wait()
        stopped = [await connect(here) for _ in range(STOPPED)]
        for client in stopped:
            stop(client)
        for number in range(EVENTS):
            here.kernel.publish("news", number=number)
            here.kernel.publish("bulk", text="x" * 20_000)
            await asyncio.sleep(0.001)
        assert [await each for each in readers] == [list(range(EVENTS))] * READERS
        await until(lambda: here.wire.sessions == 0)
        for client in stopped:
            assert re.search(rf"session {client.session} .*ended: {SLOW} \(code 4401\)", caplog.text)
            client.close()
        assert here.kernel.calls_in_flight() == {}
        assert len(subscriptions) == before


async def test_who_reads_again_after_the_cut_finds_the_reason_in_the_close_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("microkernel.wire.pump.FAREWELL", 20.0)
    monkeypatch.setattr("microkernel.wire.server.CLOSE_TIMEOUT", 20.0)
    async with node(buffer=2**19, slow_after=0.1) as here:
        client = await connect(here)
        session = session_of(here, client)
        stop_in_a_stream(client)
        await until(lambda: session.closed is not None)
        client.read_again()
        await client.over.wait()
        assert client.closed is not None
        code, reason = client.closed
        assert code == CloseCode.SLOW_READER
        assert re.fullmatch(SLOW, reason)


async def test_a_flood_of_calls_begins_no_more_than_its_results_have_room_for_and_loses_none() -> None:
    size = 100_000
    ended: Counter[str] = Counter()
    async with node(buffer=2**20, rate=1e6, burst=10**6) as here:
        client = await connect(here, lambda messages: ended.update(each["t"] for each in messages))
        session, gate = session_of(here, client), gate_of(here, "maths", "big")
        client.stop_reading()
        client.say(*({"t": "call", "id": n, "to": "maths.big", "body": {"to": size}} for n in range(200)))
        await until(lambda: session.outbox.fill > 1.0)
        written = 0
        for _ in range(1000):  # turns in which more would begin
            await asyncio.sleep(0)
            written = gate.calls * size - session.outbox.pending_bytes
        assert gate.calls < 200
        assert gate.calls * size - max(0, written) < 2 * 2**20
        client.read_again()
        await until(lambda: ended["result"] == 200)
        assert session.outbox.pending_messages == 0
        assert session.in_flight == 0
        client.close()
        await until(lambda: here.wire.sessions == 0)


async def test_calls_that_wait_for_room_do_not_run_once_their_client_is_cut() -> None:
    async with node(buffer=2**19, slow_after=0.1) as here:
        client = await connect(here)
        session, gate = session_of(here, client), gate_of(here, "maths", "big")
        client.stop_reading()
        client.say(*({"t": "call", "id": n, "to": "maths.big", "body": {"to": 100_000}} for n in range(200)))
        await until(lambda: session.closed is not None)
        begun = gate.calls
        assert begun < 100
        await until(lambda: here.wire.sessions == 0)
        assert gate.calls == begun
        client.read_again()
        await client.over.wait()


async def test_a_deadline_counts_while_a_call_waits_for_room() -> None:
    ended: dict[int, dict[str, Any]] = {}
    async with node(buffer=2**20) as here:
        client = await connect(
            here, lambda messages: ended.update((each["id"], each) for each in messages if "id" in each)
        )
        session, gate = session_of(here, client), gate_of(here, "maths", "add")
        client.stop_reading()
        ahead = ({"t": "call", "id": n, "to": "maths.big", "body": {"to": 500_000}} for n in range(1, 100))
        client.say(*ahead, {"t": "call", "id": 100, "to": "maths.add", "body": {"a": 1, "b": 2}, "deadline": 50})
        await until(lambda: session.is_current(100) and session.outbox.fill > 1.0)
        await asyncio.sleep(0.1)  # past the deadline
        client.read_again()
        await until(lambda: len(ended) == 100)
        assert ended[100]["error"]["code"] == "DEADLINE"
        assert ended[100]["error"]["may_have_run"] is False
        assert gate.calls == 0
        client.close()
        await until(lambda: here.wire.sessions == 0)


async def test_of_too_many_calls_each_is_answered_or_told_when_to_come_back_and_nothing_is_left() -> None:
    links, frames, each_frame = 4, 10, 20
    heard: list[dict[str, Any]] = []
    async with node(Narrow) as here:
        gate = gate_of(here, "narrow", "work")
        clients = [await connect(here, heard.extend) for _ in range(links)]
        for frame in range(frames):
            for client in clients:
                first = frame * each_frame
                calls = (
                    {"t": "call", "id": first + n, "to": "narrow.work", "priority": n % 10} for n in range(each_frame)
                )
                client.say(*calls)
        sent = links * frames * each_frame
        ends = {"result", "error"}
        await until(lambda: sum(each["t"] in ends for each in heard) == sent)
        answered = sum(each["t"] == "result" for each in heard)
        refused = [each["error"] for each in heard if each["t"] == "error"]
        assert {each["code"] for each in refused} == {"OVERLOADED"}
        assert all(each["retry_after_ms"] > 0 for each in refused)
        assert answered + len(refused) == sent
        assert answered == gate.calls > 0
        assert (gate.queued, gate.in_flight) == (0, 0)
        for client in clients:
            session = session_of(here, client)
            assert (session.in_flight, session.outbox.pending_bytes, session.outbox.pending_messages) == (0, 0, 0)
            client.close()
        await until(lambda: here.wire.sessions == 0)


def test_a_loop_that_is_late_for_a_link_does_not_break_it() -> None:
    """A timer of uvloop's for a moment that has passed is no timer, and cannot say when it is due."""

    async def journey() -> None:
        async with node() as here:
            client = await connect(here)
            (link,) = here.wire._links
            session, due = link._session, link._session.due
            session.due = lambda: asyncio.get_running_loop().time() - 1.0  # type: ignore[method-assign]
            link._pump._look()
            link._pump._look()
            session.due = due  # type: ignore[method-assign]
            await asyncio.sleep(0)
            assert client.is_open
            assert session.closed is None
            client.close()
            await until(lambda: here.wire.sessions == 0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(journey())
