"""Links that break under a client of a real node: what goes on, what is made again, what ends and how."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from wire_node import ALL, Node, break_link, node

import microkernel as mk
from microkernel.capability import Identity, Revoked, Rights
from microkernel.errors import DeadlineExceeded, Gone, Unauthenticated, Unavailable
from microkernel.wire.backoff import Backoff
from microkernel.wire.connection import comes_back
from microkernel.wire.system import System


async def lost(system: System) -> None:
    """Break the link, once there is one, and return when the client has noticed."""
    while not system._session.is_open:
        await asyncio.sleep(0.01)
    break_link(system)
    while system._session.is_open:
        await asyncio.sleep(0)


def shut_out(here: Node) -> asyncio.Event:
    """Nobody gets further than the check of the token, until the event is set."""
    check, open_again = here.wire._authenticate, asyncio.Event()

    async def later(token: str) -> Identity | None:
        await open_again.wait()
        return await check(token)

    here.wire._authenticate = later
    return open_again


async def test_a_call_under_way_outlives_its_link_and_runs_once() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.wait", a=1, b=2))
        await here.maths.hanging.wait()
        await lost(system)
        here.maths.go.set()
        assert (await call).total == 3
        assert here.maths.waited == 1


async def test_a_stream_goes_on_where_it_was_whenever_the_link_breaks() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        numbers = []
        async for item in system.stream("maths.count", to=300, credit=16):
            numbers.append(item.number)
            if item.number % 40 == 20:
                break_link(system)
        assert numbers == list(range(300))
        assert here.maths.made == 300


async def test_calls_made_while_there_is_no_link_wait_for_the_next() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        await lost(system)
        results = await asyncio.gather(*(system.call("maths.add", a=number, b=0) for number in range(20)))
        assert [result.total for result in results] == list(range(20))


async def test_a_deadline_holds_while_there_is_no_link() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang", deadline=0.2))
        await here.maths.hanging.wait()
        here.wire._leaving = True  # nobody is let in
        await lost(system)
        with pytest.raises(DeadlineExceeded, match=r"maths\.hang"):
            await call
        with pytest.raises(Unavailable, match="is lost|takes nobody") as caught:
            await system.call("maths.add", a=1, b=1, deadline=0.05)
        assert caught.value.may_have_run is False
        here.wire._leaving = False
        assert (await system.call("maths.add", a=1, b=1)).total == 2


async def test_events_go_on_without_a_gap_over_a_resume() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system, system.subscribe("a.b") as events:
        for number in range(30):
            if number % 10 == 5:
                await lost(system)
            here.kernel.kernel.port.publish("a.b", number=number)
        heard = [(await anext(events)).body.number for _ in range(30)]
        assert heard == list(range(30))


async def test_a_cancel_without_a_link_reaches_the_handler_with_the_next() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        await lost(system)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await here.maths.until(lambda: here.maths.cancelled == 1)


async def test_a_session_nobody_resumes_ends_with_all_it_has_started() -> None:
    async with node(resume=0.05) as here:
        async with mk.connect(here.url, ALL) as system:
            call = asyncio.create_task(system.call("maths.hang"))
            await here.maths.hanging.wait()
            open_again = shut_out(here)
            await lost(system)
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.may_have_run is True
            await here.maths.until(lambda: here.maths.cancelled == 1)
            open_again.set()
            assert (await system.call("maths.add", a=1, b=2)).total == 3
        assert here.wire.waiting == 0
        assert here.kernel.calls_in_flight() == {}


async def forgotten(here: Any, system: System) -> None:
    """The link breaks, and the node has not kept the session."""
    (work,) = here.wire._kept.values()
    here.wire._kept.clear()
    await lost(system)
    while not system._session.is_open:
        await asyncio.sleep(0.01)
    await here.wire._end(work)


async def test_a_session_that_is_not_kept_ends_calls_and_streams_with_a_cause() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        items = system.stream("maths.count", to=10, credit=2)
        await anext(items)
        await here.maths.hanging.wait()
        await forgotten(here, system)
        with pytest.raises(Unavailable, match="has not kept the session") as caught:
            await call
        assert caught.value.may_have_run is True
        with pytest.raises(Unavailable, match="has not kept the session"):
            async for _ in items:
                pass
        assert (await system.call("maths.add", a=1, b=2)).total == 3


async def test_a_subscription_that_has_lost_events_says_so() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system, system.subscribe("a.b") as events:
        await forgotten(here, system)
        with pytest.raises(Gone, match="none had come yet"):
            await anext(events)


async def test_a_session_is_only_resumed_by_whoever_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        (work,) = here.wire._kept.values()
        work.identity = Identity("somebody else", Rights())
        await lost(system)
        with pytest.raises(Unavailable, match="has not kept the session"):
            await call


async def test_a_link_that_resumes_a_live_session_takes_over() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.wait", a=1, b=2))
        await here.maths.hanging.wait()
        # The client's side breaks in silence: its connection stays open at the server, as behind a dead router.
        pump = system._connection._pump
        transport = pump._socket._response.connection.transport
        transport.pause_reading()
        pump._session.lost("silence")
        pump.touch()
        while len(here.wire._links) != 1 or not system._session.is_open:
            await asyncio.sleep(0.01)
        here.maths.go.set()
        assert (await call).total == 3
        assert here.wire.sessions == 1


async def test_a_token_that_is_no_good_any_more_ends_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_: str) -> None:
        return None

    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        here.wire._authenticate = nobody
        break_link(system)
        assert not system.is_over
        with pytest.raises(Unauthenticated, match="does not let this client in"):
            await call
        assert system.is_over
        with pytest.raises(Unauthenticated):
            await system.call("maths.add", a=1, b=1)


async def test_without_a_node_at_first_connect_fails_at_once(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match="no node is running"):
        async with mk.connect(f"http://127.0.0.1:{unused_tcp_port}", "t"):
            pass


async def test_a_client_that_waits_for_a_link_is_closed_at_once() -> None:
    async with node() as here:
        async with mk.connect(here.url, ALL) as system:
            here.wire._leaving = True
            await lost(system)
            system._connection._backoff._next = 100.0
        assert system._connection.is_over


async def test_authentication_may_take_its_time_and_what_comes_meanwhile_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as here:
        asked, answer = asyncio.Event(), asyncio.Event()
        check = here.wire._authenticate

        async def slow(token: str) -> Any:
            asked.set()
            await answer.wait()
            return await check(token)

        here.wire._authenticate = slow

        async def connect() -> int:
            async with mk.connect(here.url, ALL) as system:
                return (await system.call("maths.add", a=1, b=2)).total

        connecting = asyncio.create_task(connect())
        await asked.wait()
        answer.set()
        assert await connecting == 3


async def test_who_leaves_before_the_token_is_checked_leaves_nothing() -> None:
    async with node(handshake=0.1) as here:
        asked = asyncio.Event()

        async def never(_: str) -> None:
            asked.set()
            await asyncio.Event().wait()

        here.wire._authenticate = never
        with pytest.raises(Unavailable, match="no handshake within 0.1 s"):
            async with mk.connect(here.url, ALL):
                pass
        assert asked.is_set()
        while here.wire.sessions:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("code", "returns"),
    [(1000, False), (1001, True), (1006, True), (1009, False), (4400, True), (4402, True), (4499, True), (4500, False),
     (4502, False), (4508, False), (5000, False)],
)  # fmt: skip
def test_close_codes_say_whether_to_come_back(code: int, returns: bool) -> None:
    assert comes_back(code) is returns


def test_waits_grow_up_to_ten_seconds_with_jitter_and_begin_anew() -> None:
    backoff = Backoff(random.Random(1))
    waits = [backoff.wait() for _ in range(12)]
    for number, wait in enumerate(waits):
        full = min(10.0, 0.1 * 2**number)
        assert full / 2 <= wait <= full
    backoff.reset()
    assert backoff.wait() <= 0.1
    assert backoff.wait(at_least=3.0) >= 3.0


async def test_a_call_with_a_key_is_made_again_in_a_new_session_and_runs_once() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.wait", a=1, b=2, idempotency_key="k"))
        await here.maths.hanging.wait()
        await forgotten(here, system)
        here.maths.go.set()
        assert (await call).total == 3
        assert (await system.call("maths.wait", a=1, b=2, idempotency_key="k")).total == 3
        assert here.maths.waited == 1


async def test_a_key_does_not_reach_over_a_new_start_of_the_node() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.wait", a=1, b=2, idempotency_key="k"))
        await here.maths.hanging.wait()
        here.wire._epoch = "another"
        await forgotten(here, system)
        with pytest.raises(Unavailable, match="was started anew") as caught:
            await call
        assert caught.value.may_have_run is True
        here.maths.go.set()
        while here.kernel.calls_in_flight():
            await asyncio.sleep(0)


async def test_without_a_link_producers_stand_still_within_the_bounds() -> None:
    async with node(messages=64) as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.count", to=2000, credit=1000)
        assert (await anext(stream)).number == 0
        open_again = shut_out(here)
        await lost(system)
        while not here.wire.waiting:
            await asyncio.sleep(0.01)
        made = -1
        while made != here.maths.made:  # until it makes no more
            made = here.maths.made
            for _ in range(20):
                await asyncio.sleep(0)
        assert made < 200  # of the thousand that the reader would take
        open_again.set()
        assert [item.number async for item in stream] == list(range(1, 2000))


async def test_the_session_lost_longest_ago_makes_room_for_others() -> None:
    async with node(sessions=2) as here:
        tasks = []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                system = await stack.enter_async_context(mk.connect(here.url, ALL))
                call = asyncio.create_task(system.call("maths.hang"))
                tasks.append(call)
                await here.maths.hanging.wait()
                here.maths.hanging.clear()
                system._connection._backoff._next = 100.0
                await lost(system)
                while here.wire.sessions:
                    await asyncio.sleep(0.01)
            assert here.wire.waiting == 2
            await here.maths.until(lambda: here.maths.cancelled == 1)
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_revoked_token_ends_its_sessions_with_a_link_and_without() -> None:
    async def ana(_: str) -> Identity:
        return Identity("ana", Rights(), token_ids=("t1",))

    async with node() as here:
        here.wire._authenticate = ana
        async with mk.connect(here.url, "x") as one, mk.connect(here.url, "x") as two:
            calls = [asyncio.create_task(system.call("maths.hang")) for system in (one, two)]
            while sum(here.kernel.calls_in_flight().values()) < 2:
                await asyncio.sleep(0)
            two._connection._backoff._next = 100.0
            await lost(two)
            while not here.wire.waiting:
                await asyncio.sleep(0.01)
            await here.wire.revoked(Revoked(("t1",)))
            with pytest.raises(Unauthenticated, match="revoked"):
                await calls[0]
            await here.maths.until(lambda: here.maths.cancelled == 2)
            assert here.wire.waiting == 0
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_node_that_closes_ends_sessions_without_a_link_too() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        system._connection._backoff._next = 100.0
        await lost(system)
        while not here.wire.waiting:
            await asyncio.sleep(0.01)
        await here.wire.close(drain=0.0)
        assert here.wire.waiting == 0
        assert here.maths.cancelled == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_messages_of_a_browser_that_asks_for_nothing_are_not_kept() -> None:
    async with node() as here, mk.connect(here.url, ALL, reconnect=False) as system:
        call = asyncio.create_task(system.call("maths.hang"))
        await here.maths.hanging.wait()
        break_link(system)
        await here.maths.until(lambda: here.maths.cancelled == 1)
        assert here.wire.waiting == 0
        await asyncio.gather(call, return_exceptions=True)


async def test_a_close_that_is_cancelled_leaves_no_task() -> None:
    async with node() as here:
        system = System(lambda: asyncio.sleep(0, (f"{here.url}mk", ALL, None)), reconnect=True)
        await system.start()
        closing = asyncio.create_task(system.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert system._connection._task is not None
        assert system._connection._task.done()


async def test_a_client_comes_back_to_a_node_that_keeps_no_sessions() -> None:
    async with node(resume=0.0) as here, mk.connect(here.url, ALL) as system:
        plain = asyncio.create_task(system.call("maths.hang"))
        keyed = asyncio.create_task(system.call("maths.wait", a=1, b=2, idempotency_key="k"))
        while here.maths.waited < 1 or here.kernel.calls_in_flight().get("maths.hang") != 1:
            await asyncio.sleep(0)
        await lost(system)
        with pytest.raises(Unavailable) as caught:
            await plain
        assert caught.value.may_have_run is True
        here.maths.go.set()
        assert (await keyed).total == 3
        assert here.maths.waited == 1
        await here.maths.until(lambda: here.maths.cancelled == 1)


async def test_a_call_that_a_leaving_node_does_not_begin_is_made_on_the_next_link() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        begun = asyncio.create_task(system.call("maths.wait", a=1, b=2))
        await here.maths.hanging.wait()
        booting = asyncio.create_task(here.leave_and_come_back())
        made = []
        while not system._connection.said_bye:  # some are on their way when the node says so
            made.append(asyncio.create_task(system.call("maths.add", a=len(made), b=0)))
            await asyncio.sleep(0)
        made += [asyncio.create_task(system.call("maths.add", a=len(made) + more, b=0)) for more in range(10)]
        await asyncio.sleep(0.05)
        here.maths.go.set()
        assert (await begun).total == 3, "what had begun ends over the link that is about to close"
        assert [(await call).total for call in made] == list(range(len(made)))
        await booting


async def test_no_call_is_lost_or_made_twice_while_a_node_is_booted_anew_again_and_again() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        over, answers = asyncio.Event(), 0

        async def works(client: int) -> None:
            nonlocal answers
            while not over.is_set():
                await system.call("maths.note", a=client, b=0)
                answers += 1

        async with asyncio.TaskGroup() as group:
            for client in range(8):
                group.create_task(works(client))
            for _ in range(10):
                await asyncio.sleep(0.03)
                await here.leave_and_come_back()
            await asyncio.sleep(0.2)
            over.set()
        assert len(here.maths.sent) == answers > 100


async def test_a_stream_that_begins_while_a_node_leaves_waits_for_the_next_link() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        begun = asyncio.create_task(system.call("maths.wait", a=1, b=2))
        await here.maths.hanging.wait()
        booting = asyncio.create_task(here.leave_and_come_back())
        while not system._connection.said_bye:
            await asyncio.sleep(0)
        stream = asyncio.create_task(anext(system.stream("maths.count", to=3)))
        await asyncio.sleep(0.05)
        assert not stream.done()
        here.maths.go.set()
        assert (await stream).number == 0
        await begun
        await booting


async def test_who_does_not_come_back_hears_that_a_leaving_node_begins_nothing() -> None:
    async with node() as here, mk.connect(here.url, ALL, reconnect=False) as system:
        begun = asyncio.create_task(system.call("maths.wait", a=1, b=2))
        await here.maths.hanging.wait()
        booting = asyncio.create_task(here.leave_and_come_back())

        async def call_on() -> None:
            while True:
                await system.call("maths.add", a=1, b=0)

        with pytest.raises(Unavailable, match="about to leave") as caught:
            await call_on()
        assert caught.value.may_have_run is False
        here.maths.go.set()
        assert (await begun).total == 3
        await booting


@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_a_call_that_a_leaving_node_does_not_finish_is_made_again_where_that_does_no_harm(deadline) -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        again = asyncio.create_task(system.call("maths.wait_again", a=1, b=2, deadline=deadline))
        await here.maths.hanging.wait()
        once = asyncio.create_task(system.call("maths.wait", a=1, b=2))
        await here.maths.until(lambda: here.maths.waited == 2)
        await here.leave_and_come_back(drain=0.05)
        with pytest.raises(Unavailable, match="booted anew") as caught:
            await once
        assert caught.value.may_have_run is True
        await here.maths.until(lambda: here.maths.waited == 3)
        here.maths.go.set()
        assert (await again).total == 3
