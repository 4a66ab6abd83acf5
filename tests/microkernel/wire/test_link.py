"""Server and client over a real socket, with a real kernel behind: whole journeys."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import re
from typing import Any

import aiohttp
import pytest
from wire_node import ALL, SOME, Add, Blob, Sum, break_link, node

import microkernel as mk
from microkernel.errors import (
    CallCancelled,
    DeadlineExceeded,
    Denied,
    Internal,
    Invalid,
    NotFound,
    Overloaded,
    TooBig,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from microkernel.registry import ServiceState
from microkernel.wire.codec import CloseCode
from microkernel.wire.server import _Link


async def test_a_call_brings_its_result_as_a_record_or_as_the_type_asked_for() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        result = await system.call("maths.add", a=1, b=2)
        assert (result.total, result["parts"]) == (3, [1, 2])
        assert await system.call("maths.add", Add(3, 4), result_type=Sum) == Sum(7, [3, 4])
        assert await system.call("maths.add", {"a": 1, "b": 1}, result_type=Any) == {"total": 2, "parts": [1, 1]}
        assert (system.node, system.user, system.rights) == ("n1", "root", ("*",))


async def test_bytes_cross_inside_a_message() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        raw = bytes(range(256))
        assert await system.call("maths.echo", raw=raw, result_type=Blob) == Blob(raw)


async def test_a_thousand_calls_at_once_all_come_back() -> None:
    async with node(inflight=16) as here, mk.connect(here.url, ALL) as system:
        results = await asyncio.gather(*(system.call("maths.add", a=number, b=1) for number in range(1000)))
        assert [result.total for result in results] == list(range(1, 1001))


async def test_the_caller_is_known_to_the_handler() -> None:
    async with node() as here, mk.connect(here.url, SOME) as system:
        who = await system.call("maths.who", priority=2, deadline=5.0)
        assert who.caller.startswith("session s")
        assert (who.user, who.priority, who.timed) == ("ana", 2, True)


async def test_an_error_arrives_as_what_it_was() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        with pytest.raises(NotFound, match="no such thing") as caught:
            await system.call("maths.fail")
        assert (caught.value.remedy, caught.value.service) == ("look elsewhere", "maths")
        with pytest.raises(Internal, match="ZeroDivisionError: by zero") as crash:
            await system.call("maths.crash")
        assert "Traceback" not in str(crash.value)
        with pytest.raises(Invalid, match="'a'|`a`") as invalid:
            await system.call("maths.add", a="one", b=2)
        assert invalid.value.field == "a"
        with pytest.raises(NotFound, match="nobody"):
            await system.call("nobody.home")
        with pytest.raises(Invalid, match="give one or the other"):
            await system.call("maths.add", {"a": 1}, b=2)


async def test_a_result_that_cannot_be_sent_is_an_error_and_the_link_goes_on() -> None:
    async with node(text=64 * 1024, binary=0) as here, mk.connect(here.url, ALL) as system:
        with pytest.raises(Invalid, match=r"the result of maths\.unsayable cannot be sent"):
            await system.call("maths.unsayable")
        with pytest.raises(TooBig, match=r"the result of maths\.big takes 0\.2 MiB"):
            await system.call("maths.big", to=200_000)
        with pytest.raises(TooBig, match=r"maths\.echo takes"):
            await system.call("maths.echo", raw=b"x" * 200_000)
        assert len(await system.call("maths.big", to=60_000)) == 60_000


async def test_rights_are_those_of_the_token() -> None:
    async with node() as here, mk.connect(here.url, SOME) as system:
        assert (await system.call("maths.add", a=1, b=2)).total == 3
        for target in ("maths.crash", "kernel.services"):
            with pytest.raises(Denied, match=f"no right to call {target}"):
                await system.call(target)


async def test_a_deadline_ends_the_call_here_and_there() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        with pytest.raises(DeadlineExceeded, match=r"maths\.hang"):
            await system.call("maths.hang", deadline=0.05)
        await here.maths.until(lambda: here.maths.cancelled == 1)


async def test_a_cancelled_call_is_cancelled_in_the_handler() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await here.maths.until(lambda: here.maths.cancelled == 1)
        assert (await system.call("maths.add", a=1, b=2)).total == 3


async def test_a_stream_comes_whole_and_in_order() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        numbers = [item.number async for item in system.stream("maths.count", to=1000, credit=7)]
        assert numbers == list(range(1000))


async def test_the_generator_is_never_ahead_of_its_reader_by_more_than_the_credit() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        async with system.stream("maths.count", to=1000, credit=10) as items:
            for read in range(1, 50):
                await anext(items)
                await system.call("maths.add", a=1, b=2)  # a round trip: what can be produced is produced
                assert read <= here.maths.made <= read + 10
        await here.maths.until(lambda: here.maths.closed == 1)


@pytest.mark.parametrize("how", ["close", "break", "cancel"])
async def test_a_stream_that_is_left_early_is_closed_at_the_source(how: str) -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        items = system.stream("maths.count", to=10_000, credit=4)
        assert (await anext(items)).number == 0
        if how == "close":
            await items.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(items)
        elif how == "break":
            del items
            gc.collect()
        else:
            hang = asyncio.create_task(consume(items))
            del items
            await asyncio.sleep(0)
            hang.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hang
            del hang
            gc.collect()
        await here.maths.until(lambda: here.maths.closed == 1)


async def consume(items: Any) -> None:
    async for _ in items:
        await asyncio.sleep(0)


async def test_a_stream_that_breaks_off_gives_what_it_had_and_then_its_error() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        items = system.stream("maths.break_off")
        assert await anext(items) == 1
        with pytest.raises(NotFound, match="second one is gone"):
            await anext(items)
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_a_one_way_message_arrives_and_what_goes_wrong_with_it_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with node() as here, mk.connect(here.url, SOME) as system:
        async with system.subscribe("maths.noted") as events:
            await system.send("maths.note", a=5, b=0)
            event = await anext(events)
        assert (event.subject, event.body.a) == ("maths.noted", 5)
        assert here.maths.sent == [5]
        with caplog.at_level(logging.WARNING, "microkernel.client"):
            await system.send("kernel.shutdown")
            await system.call("maths.add", a=1, b=1)
        assert "no right to call kernel.shutdown" in caplog.text


async def test_events_reach_all_subscribers_and_one_of_a_group() -> None:
    async with node() as here, mk.connect(here.url, ALL) as one, mk.connect(here.url, ALL) as two:
        seen: list[tuple[str, int]] = []

        async def listen(name: str, events: Any) -> None:
            async for event in events:
                seen.append((name, event.body["n"]))
                if event.body["n"] == 9:
                    return

        async with (
            one.subscribe("colour.>") as every,
            one.subscribe("colour.*", group="g") as first,
            two.subscribe("colour.*", group="g") as second,
        ):
            tasks = [
                asyncio.create_task(listen(*pair)) for pair in (("every", every), ("first", first), ("second", second))
            ]
            for number in range(10):
                await two.publish("colour.red", n=number)
            await tasks[0]
            for system in (one, two):
                await system.call("maths.add", a=1, b=1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert [n for name, n in seen if name == "every"] == list(range(10))
        assert sorted(n for name, n in seen if name != "every") == list(range(10))


async def test_subjects_beyond_the_rights_are_neither_heard_nor_told(caplog: pytest.LogCaptureFixture) -> None:
    async with node() as here, mk.connect(here.url, SOME) as system:
        events = system.subscribe("kernel.>")
        with pytest.raises(Denied, match="no right to kernel"):
            await anext(events)
        async with system.subscribe("maths.*") as mine:
            here.kernel.publish("maths.secret", n=1)
            here.kernel.publish("maths.open", n=2)
            assert (await anext(mine)).subject == "maths.open"
        with caplog.at_level(logging.WARNING, "microkernel.client"):
            await system.publish("memory.pressure", level=9)
            await system.call("maths.add", a=1, b=1)
        assert "no right to memory.pressure" in caplog.text


@pytest.mark.parametrize(
    "subject",
    ["maths.noted", "maths", "kernel.shutdown", "service.maths.ready", "process.ended", "dead.letter", "dead"],
)
async def test_nobody_publishes_as_the_node_over_a_link(subject: str, caplog: pytest.LogCaptureFixture) -> None:
    async with node() as here, mk.connect(here.url, ALL) as system, here.kernel.subscribe(subject) as events:
        with caplog.at_level(logging.WARNING, "microkernel.client"):
            await system.publish(subject, a=666)
            await system.publish("colour.red")
            await system.call("maths.add", a=1, b=1)
        here.kernel.publish(subject, a=1)
        assert (await anext(events)).body == {"a": 1}
    assert f"{subject} is for the node itself to publish" in caplog.text
    assert "colour" not in caplog.text


async def test_an_event_too_long_for_a_frame_is_refused_and_ends_no_subscription_of_others() -> None:
    long = '"' + "x" * 64_700 + '"'
    grows = "[" + ",".join(["1e9"] * 6000) + "]"  # 24 kB as it comes, 78 kB as it would go out
    async with (
        node(text=64 * 1024) as here,
        raw(here.url) as one,
        mk.connect(here.url, ALL) as two,
        two.subscribe("colour.*") as events,
    ):
        for body in (long, grows):
            await one.socket.send_str(f'{{"t":"publish","subject":"colour.red","body":{body}}}')
            error = await one.hear("error")
            assert "id" not in error
            assert error["error"]["code"] == "TOO_BIG"
            assert "the event colour.red" in error["error"]["message"]
        await one.say({"t": "publish", "subject": "colour.blue", "body": {"n": 1}})
        assert (await anext(events)).subject == "colour.blue"


async def test_an_event_that_cannot_be_sent_is_told_and_the_subscription_goes_on() -> None:
    async with node(text=64 * 1024) as here, raw(here.url) as client:
        await client.say({"t": "subscribe", "id": 1, "subject": "maths.*"}, {"t": "ping", "ts": 1})
        await client.hear("pong")
        here.kernel.publish("maths.long", x="x" * 70_000)
        here.kernel.publish("maths.odd", x=object())
        here.kernel.publish("maths.said", n=1)
        for subject, code in (("maths.long", "TOO_BIG"), ("maths.odd", "INVALID")):
            error = await client.hear("error")
            assert "id" not in error
            assert error["error"]["code"] == code
            assert f"the event {subject}" in error["error"]["message"]
        assert (await client.hear("event"))["body"] == {"n": 1}


async def test_a_client_that_reads_nothing_is_not_read_from_either() -> None:
    async with (
        node(buffer=2**20, slow_after=60.0, rate=1e6, burst=10**6) as here,
        raw(here.url, max_msg_size=0) as client,
    ):
        protocol = client.socket._response.connection.protocol
        protocol.pause_reading()
        (link,) = here.wire._links
        outbox = link._session.outbox

        async def flood() -> None:
            for first in itertools.count(0, 500):
                await client.say(*({"t": "call", "id": first + n, "to": "x." + "y" * 240} for n in range(500)))

        flooding = asyncio.create_task(flood())
        while outbox.fill <= 1.0:
            await asyncio.sleep(0.05)
        before = -1
        while before != outbox.pending_messages:
            before = outbox.pending_messages
            await asyncio.sleep(0.3)
        assert outbox.fill < 2.0
        assert link._session.closed is None
        assert not flooding.done()
        protocol.resume_reading()
        received = 0
        while received < 3 * before:  # it goes on where it stood
            await client.hear("error")
            received += 1
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_unsubscribing_frees_the_subscription_in_the_kernel() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        before = len(here.kernel.kernel.router.bus.subjects)
        async with system.subscribe("a.b"):
            assert len(here.kernel.kernel.router.bus.subjects) == before + 1
        await system.call("maths.add", a=1, b=1)
        assert len(here.kernel.kernel.router.bus.subjects) == before


async def test_a_lost_link_ends_every_call_and_stream_and_says_that_they_may_have_run() -> None:
    async with node() as here:
        async with mk.connect(here.url, ALL, reconnect=False) as system:
            call = asyncio.create_task(system.call("maths.hang"))
            items = system.stream("maths.count", to=10, credit=2)
            await anext(items)
            await here.maths.hanging.wait()
            break_link(system)
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.may_have_run is True
            with pytest.raises(Unavailable):
                await consume(items)
            with pytest.raises(Unavailable) as later:
                await system.call("maths.add", a=1, b=2)
            assert later.value.may_have_run is False
        await here.maths.until(lambda: here.maths.cancelled == 1 and here.maths.closed == 1)
        assert here.kernel.calls_in_flight() == {}


async def test_closing_the_client_ends_what_it_left_open() -> None:
    async with node() as here:
        async with mk.connect(here.url, ALL) as system:
            call = asyncio.create_task(system.call("maths.hang"))
            await here.maths.hanging.wait()
        with pytest.raises(CallCancelled):
            await call
        await here.maths.until(lambda: here.maths.cancelled == 1)


async def test_closing_the_server_says_bye_lets_calls_end_and_then_closes() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        closing = asyncio.create_task(here.wire.close("upgrade", after=2.0, drain=0.1))
        with pytest.raises(Unavailable, match=r"upgrade \(code 4400\)") as caught:
            await call
        assert caught.value.may_have_run is True
        await closing
        assert here.wire.sessions == 0
        with pytest.raises(Unavailable, match="takes nobody"):
            async with mk.connect(here.url, ALL):
                pass


async def test_a_server_with_only_subscribers_does_not_wait_before_it_closes() -> None:
    async with (
        node() as here,
        mk.connect(here.url, ALL, reconnect=False) as system,
        system.subscribe("a.b") as events,
    ):
        await asyncio.wait_for(here.wire.close("upgrade", drain=60.0), 30.0)
        with pytest.raises(Unavailable, match="upgrade"):
            await anext(events)


async def test_a_defect_in_the_server_ends_the_link_and_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    failures: list[BaseException] = []
    async with node() as here, raw(here.url):
        handle = _Link.run

        async def run(link: _Link) -> None:
            try:
                await handle(link)
            except ZeroDivisionError as error:
                failures.append(error)

        (link,) = here.wire._links
        monkeypatch.setattr(_Link, "run", run)
        async with raw(here.url, token=None) as second:
            (other,) = set(here.wire._links) - {link}
            monkeypatch.setattr(other._session, "received", defect)
            await second.say({"t": "ping"})
            await second.ended()
        assert len(failures) == 1
        assert here.wire.sessions == 1


async def test_an_id_can_be_used_again_at_once_after_unsubscribe() -> None:
    async with node() as here, raw(here.url) as client:
        for _ in range(5):
            await client.say(
                {"t": "subscribe", "id": 1, "subject": "a.b"},
                {"t": "publish", "subject": "a.b", "body": {"n": 1}},
                {"t": "unsubscribe", "id": 1},
            )
            await client.hear("end")
        await client.say(
            {"t": "subscribe", "id": 1, "subject": "a.b"}, {"t": "publish", "subject": "a.b", "body": {"n": 2}}
        )
        assert (await client.hear("event"))["body"] == {"n": 2}


async def test_a_wrong_token_is_unauthenticated() -> None:
    async with node() as here:
        with pytest.raises(Unauthenticated, match="the token is not valid here"):
            async with mk.connect(here.url, "guess"):
                pass
        assert here.wire.sessions == 0


class Raw:
    """A client that is no library: what a browser's fifteen lines would do."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.socket.send_str(json.dumps(messages if len(messages) > 1 else messages[0]))

    async def hear(self, kind: str) -> dict[str, Any]:
        while True:
            while self.messages:
                message = self.messages.pop(0)
                if message["t"] == kind:
                    return message
            frame = await self.socket.receive()
            assert frame.type is aiohttp.WSMsgType.TEXT, frame
            decoded = json.loads(frame.data)
            self.messages += decoded if isinstance(decoded, list) else [decoded]

    async def ended(self) -> None:
        """Wait until the link has ended in whatever way."""
        while (await self.socket.receive()).type is aiohttp.WSMsgType.TEXT:
            pass

    async def closed(self) -> tuple[int, str]:
        while True:
            frame = await self.socket.receive()
            if frame.type is aiohttp.WSMsgType.CLOSE:
                return frame.data, frame.extra
            assert frame.type is aiohttp.WSMsgType.TEXT, frame


@contextlib.asynccontextmanager
async def raw(url: str, *, token: str | None = ALL, **options: Any) -> Any:
    options.setdefault("protocols", ("mk.v1",))
    async with aiohttp.ClientSession() as http, http.ws_connect(url + "mk", **options) as socket:
        client = Raw(socket)
        if token is not None:
            await client.say({"t": "auth", "v": 1, "token": token})
            await client.hear("ready")
        yield client


async def test_a_client_without_a_library_greets_calls_and_streams() -> None:
    async with node() as here, raw(here.url, token=None) as client:
        assert client.socket.protocol == "mk.v1"
        await client.say(
            {"t": "auth", "v": 1, "token": ALL},
            {"t": "call", "id": 1, "to": "maths.add", "body": {"a": 1, "b": 2}},
            {"t": "open", "id": 2, "to": "maths.count", "body": {"to": 3}, "credit": 1},
        )
        assert (await client.hear("hello"))["epoch"] == "e1"
        assert (await client.hear("ready"))["resumed"] is False
        assert (await client.hear("result"))["body"] == {"total": 3, "parts": [1, 2]}
        assert (await client.hear("item"))["body"]["number"] == 0
        await client.say({"t": "credit", "id": 2, "n": 5})
        assert (await client.hear("item"))["body"]["number"] == 1
        assert (await client.hear("item"))["body"]["number"] == 2
        assert (await client.hear("end"))["id"] == 2


async def test_what_is_ready_in_one_turn_of_the_loop_comes_in_few_arrays() -> None:
    async with node() as here, raw(here.url) as client:
        await client.say(*({"t": "call", "id": n, "to": "maths.add", "body": {"a": n, "b": 0}} for n in range(100)))
        frames = 0
        results = 0
        while results < 100:
            results += len(json.loads((await client.socket.receive()).data))
            frames += 1
        assert frames <= 5


async def test_every_cancelled_call_is_answered_with_cancelled() -> None:
    async with node() as here, raw(here.url) as client:
        await client.say({"t": "call", "id": 1, "to": "maths.hang"}, {"t": "cancel", "id": 1})
        assert (await client.hear("error"))["error"]["code"] == "CANCELLED"  # before its first step
        await client.say({"t": "call", "id": 1, "to": "maths.hang"})
        await here.maths.hanging.wait()
        await client.say({"t": "cancel", "id": 1})
        error = await client.hear("error")
        assert (error["id"], error["error"]["code"]) == (1, "CANCELLED")


async def test_a_generator_is_not_touched_before_there_is_credit() -> None:
    async with node() as here, raw(here.url) as client:
        await client.say(
            {"t": "open", "id": 1, "to": "maths.count", "body": {"to": 3}, "credit": 0}, {"t": "ping", "ts": 1}
        )
        await client.hear("pong")
        await client.say({"t": "call", "id": 2, "to": "maths.add", "body": {"a": 1, "b": 2}})
        await client.hear("result")
        assert here.maths.made == 0
        await client.say({"t": "credit", "id": 1, "n": 1})
        await client.hear("item")
        assert here.maths.made == 1


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        ('{"t":"call","id":"x","to":"a.b"}', CloseCode.PROTOCOL, "Expected `int`, got `str` - at `$.id`"),
        ("nope", CloseCode.PROTOCOL, "a text frame is no JSON"),
        (b"\xa7\x01", CloseCode.PROTOCOL, "a binary frame has 2 bytes, fewer than the 16 of its header"),
        ('"' + "x" * 100_000 + '"', CloseCode.TOO_BIG, "a text frame is too big: 0.1 MiB, at most 0.1 MiB"),
        ('"' + "x" * 3_000_000 + '"', 1009, ""),
    ],
)
async def test_what_is_no_mk_v1_ends_the_link_with_a_code_and_a_reason(
    frame: str | bytes, code: int, reason: str
) -> None:
    async with node(text=64 * 1024) as here, raw(here.url) as client:
        await client.say({"t": "call", "id": 1, "to": "maths.hang"})
        await here.maths.hanging.wait()
        await (client.socket.send_bytes(frame) if isinstance(frame, bytes) else client.socket.send_str(frame))
        closed = await client.closed()
        assert closed[0] == code
        assert reason in closed[1]
        await here.maths.until(lambda: here.maths.cancelled == 1)


async def test_who_says_nothing_is_let_go_after_the_handshake_time() -> None:
    async with node(handshake=0.05) as here, raw(here.url, token=None) as client:
        assert await client.closed() == (CloseCode.HANDSHAKE_TIMEOUT, "no handshake within 0.05 s")


async def test_a_client_that_never_answers_a_ping_is_let_go() -> None:
    async with node(heartbeat=0.05) as here, raw(here.url) as client:
        code, reason = await client.closed()
        assert code == CloseCode.NO_ANSWER
        assert "2 pings unanswered" in reason


async def test_a_client_that_answers_pings_stays() -> None:
    async with node(heartbeat=0.02) as here, mk.connect(here.url, ALL) as system:
        await asyncio.sleep(0.3)
        assert (await system.call("maths.add", a=1, b=2)).total == 3


async def test_a_reader_that_does_not_read_slows_its_stream_and_is_not_given_more_than_the_buffer() -> None:
    async with node(buffer=2**20) as here, raw(here.url, max_msg_size=0) as client:
        client.socket._response.connection.protocol.pause_reading()
        await client.say(
            {"t": "open", "id": 1, "to": "maths.count", "body": {"to": 10**6, "size": 50_000}, "credit": 10**6}
        )
        made = -1
        while made != here.maths.made or not made:
            made = here.maths.made
            await asyncio.sleep(0.2)
        (link,) = here.wire._links
        assert link._session.outbox.pending_bytes <= 2**20
        assert made < 1000
        client.socket._response.connection.protocol.resume_reading()


async def test_a_reader_that_does_not_take_its_results_is_cut_and_told_the_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("microkernel.wire.pump.FAREWELL", 10.0)
    monkeypatch.setattr("microkernel.wire.server.CLOSE_TIMEOUT", 10.0)
    caplog.set_level(logging.INFO, "microkernel.wire")
    async with node(buffer=2**20, slow_after=0.2) as here, raw(here.url, max_msg_size=0) as client:
        protocol = client.socket._response.connection.protocol
        protocol.pause_reading()
        for number in range(100):
            await client.say({"t": "call", "id": number, "to": "maths.big", "body": {"to": 500_000}})
        (link,) = here.wire._links
        while link._session.closed is None:
            await asyncio.sleep(0.05)
        protocol.resume_reading()
        code, reason = await client.closed()
        assert code == CloseCode.SLOW_READER
        assert re.fullmatch(r"slow reader: 1\.\d MiB pending for \d+\.\d s", reason)
    assert reason in caplog.text


async def test_a_reader_that_never_reads_again_is_let_go_all_the_same() -> None:
    async with node(buffer=2**20, slow_after=0.05) as here, raw(here.url, max_msg_size=0) as client:
        protocol = client.socket._response.connection.protocol
        protocol.pause_reading()
        for number in range(100):
            await client.say({"t": "call", "id": number, "to": "maths.big", "body": {"to": 500_000}})
        while here.wire.sessions:
            await asyncio.sleep(0.05)
        assert here.kernel.calls_in_flight() == {}
        protocol.resume_reading()


async def test_every_origin_is_let_in_where_the_settings_say_so() -> None:
    async with node(origins=("*",)) as here, raw(here.url, origin="https://anywhere.example"):
        pass


async def test_an_origin_that_is_not_ours_is_kept_out() -> None:
    async with node(origins=("https://console.example",)) as here:
        for origin in ("https://evil.example", "null", "http://[", "http://[x]:y", ""):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with raw(here.url, origin=origin):
                    pass
            assert caught.value.status == 403
        for origin in (here.url.rstrip("/"), "https://console.example"):
            async with raw(here.url, origin=origin):
                pass


async def test_the_sub_protocol_is_required() -> None:
    async with node() as here:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with raw(here.url, protocols=()):
                pass
        assert caught.value.status == 400


async def test_sessions_past_the_limit_are_told_to_come_back() -> None:
    async with node(sessions=1) as here, mk.connect(here.url, ALL):
        with pytest.raises(Unavailable, match="takes nobody now"):
            async with mk.connect(here.url, ALL):
                pass


async def test_a_flood_is_refused_and_then_ends_the_link() -> None:
    async with node(rate=10.0, burst=20) as here, raw(here.url) as client:
        await client.say(*({"t": "call", "id": n, "to": "maths.add", "body": {"a": 1, "b": 1}} for n in range(30)))
        assert (await client.hear("error"))["error"]["code"] == "OVERLOADED"
        await client.say(*({"t": "ping"} for _ in range(30)))
        assert (await client.closed())[0] == CloseCode.RATE


async def test_the_client_keeps_to_the_rate_by_itself() -> None:
    async with node(rate=200.0, burst=20) as here, mk.connect(here.url, ALL) as system:
        results = await asyncio.gather(*(system.call("maths.add", a=1, b=number) for number in range(60)))
        assert len(results) == 60


async def test_more_calls_than_fit_wait_and_then_are_told() -> None:
    async with node(inflight=1) as here, mk.connect(here.url, ALL) as system:
        hang = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        with pytest.raises(Overloaded, match="1 calls are in flight"):
            await system.call("maths.add", a=1, b=2, deadline=0.05)
        hang.cancel()
        await asyncio.gather(hang, return_exceptions=True)


async def test_what_a_later_version_may_do_is_unimplemented_here() -> None:
    async with node() as here, raw(here.url) as client:
        for message in (
            {"t": "teleport", "id": 2},
            {"t": "open", "id": 3, "to": "maths.count", "key": "k"},
        ):
            await client.say(message)
            error = await client.hear("error")
            assert (error["id"], error["error"]["code"]) == (message["id"], Unimplemented.code)


async def test_a_hundred_links_that_vanish_leave_nothing() -> None:
    async with node() as here:
        for _ in range(10):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(10):
                    client = await stack.enter_async_context(raw(here.url))
                    await client.say(
                        {"t": "call", "id": 1, "to": "maths.hang"},
                        {"t": "open", "id": 2, "to": "maths.count", "body": {"to": 10**6}, "credit": 10},
                        {"t": "subscribe", "id": 3, "subject": "a.>"},
                    )
                    await client.hear("item")
                    client.socket._response.connection.transport.abort()
        await here.maths.until(lambda: here.maths.cancelled == 100 and here.maths.closed == 100)
        while here.wire.sessions:
            await asyncio.sleep(0)
        assert here.kernel.calls_in_flight() == {}


async def test_a_one_way_message_whose_sender_left_while_it_waited_is_carried_out_all_the_same() -> None:
    async with node() as here, here.kernel.subscribe("maths.noted") as noted:
        router = here.kernel.kernel.router
        entry = router.registry.entry("maths")
        async with raw(here.url) as client:
            entry.state = ServiceState.RESTARTING
            await client.say({"t": "send", "to": "maths.note", "body": {"a": 1, "b": 2}}, {"t": "ping", "ts": 1})
            await client.hear("pong")
        entry.state = ServiceState.READY
        router.changed("maths")
        assert (await anext(noted)).body == {"a": 1}


async def test_a_one_way_message_that_waits_when_the_node_leaves_becomes_a_dead_letter() -> None:
    async with node() as here, here.kernel.subscribe("dead.letter") as letters:
        entry = here.kernel.kernel.router.registry.entry("maths")
        async with raw(here.url) as client:
            entry.state = ServiceState.RESTARTING
            await client.say({"t": "send", "to": "maths.note", "body": {"a": 1, "b": 2}}, {"t": "ping", "ts": 1})
            await client.hear("pong")
            await here.wire.close(drain=0.0)
        letter = await anext(letters)
        assert letter.body["to"] == "maths.note"
        entry.state = ServiceState.READY


async def test_a_client_that_publishes_too_much_waits_and_cuts_no_subscription_that_lets_publishers_wait() -> None:
    async with node() as here:
        subscription = here.kernel.kernel.port.subscribe("flood.*", limit=4, overflow="wait")
        async with raw(here.url) as client:
            events = [{"t": "publish", "subject": "flood.a", "body": number} for number in range(50)]
            await client.say(*events, {"t": "ping", "ts": 1})
            await client.hear("pong")
            assert [(await anext(subscription)).body for _ in range(50)] == list(range(50))
        await subscription.aclose()
