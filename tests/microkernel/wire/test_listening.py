"""Events and monitors over a link: replay, rights, rates, and tokens that end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from wire_node import ALL, break_link, node

import microkernel as mk
from microkernel.capability import Identity, Rate, Rights
from microkernel.errors import Denied, Gone, MicrokernelError, NotFound, Overloaded, Unauthenticated
from microkernel.monitors import Down, Up


async def test_events_since_an_offset_come_first_and_then_the_new_ones() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        await here.kernel.kernel.restart("maths")
        async with system.subscribe("service.maths.*", since=0) as events:
            states = [(await anext(events)).body.state for _ in range(3)]
            assert states[:2] == ["starting", "running"]
            await here.kernel.kernel.restart("maths")
            offsets = [(await anext(events)).offset for _ in range(4)]
            assert offsets == sorted(set(offsets))


async def test_events_that_are_not_kept_are_refused_with_a_reason() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        await system.publish("a.b", number=1)
        with pytest.raises(MicrokernelError, match=r"a\.b"):
            async for _ in system.subscribe("a.b", since=0):
                pass


async def test_a_monitor_hears_how_a_service_is_and_then_what_becomes_of_it() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system, system.monitor("maths") as changes:
        assert await anext(changes) == Up("maths", 1)
        await here.kernel.kernel.restart("maths")
        down = await anext(changes)
        assert isinstance(down, Down)
        assert (down.service, down.incarnation) == ("maths", 1)
        assert down.reason
        assert await anext(changes) == Up("maths", 2)


async def test_a_monitor_of_nobody_is_an_error_and_one_that_is_closed_is_gone() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        with pytest.raises(NotFound, match="nobody"):
            async for _ in system.monitor("nobody"):
                pass
        async with system.monitor("maths"):
            assert here.kernel.kernel.router.monitors._monitors
        async with system.subscribe("a.b"):  # a round trip
            assert not here.kernel.kernel.router.monitors._monitors


def identity(**more: Any) -> Any:
    async def authenticate(_: str) -> Identity:
        return Identity("ana", **{"rights": Rights(), **more})

    return authenticate


async def test_the_rate_of_a_token_holds_over_all_its_links() -> None:
    async with node() as here:
        here.wire._authenticate = identity(rates=(Rate("t1", 0.001, 5),))
        async with mk.connect(here.url, "x") as one, mk.connect(here.url, "x") as two:
            for system in (one, two, one, two, one):
                await system.call("maths.add", a=1, b=1)
            for system in (one, two):
                with pytest.raises(Overloaded, match="token's rate") as caught:
                    await system.call("maths.add", a=1, b=1)
                assert caught.value.may_have_run is False
                assert caught.value.retry_after is not None


async def test_a_token_that_expires_ends_its_session() -> None:
    async with node() as here:
        here.wire._authenticate = identity(expires=time.time() + 0.15)
        async with mk.connect(here.url, "x") as system:
            here.wire._authenticate = refused
            with pytest.raises(Unauthenticated, match="expired"):
                await system.call("maths.hang")
        await here.maths.until(lambda: here.maths.cancelled == 1)
        assert here.wire.waiting == 0


async def refused(_: str) -> Identity:
    raise Unauthenticated("the token has expired")


async def test_the_right_to_call_is_not_the_right_to_hear_or_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    async with node() as here:
        here.wire._authenticate = identity(rights=Rights(allow=("maths.*",), publish=("a.*",), subscribe=("b.>",)))
        async with mk.connect(here.url, "x") as system:
            assert (await system.call("maths.add", a=1, b=1)).total == 2
            with pytest.raises(Denied):
                async for _ in system.subscribe("a.b"):
                    pass
            async with system.subscribe("b.c"):
                await system.publish("b.c")
                await system.call("maths.add", a=1, b=1)
        assert "no right to b.c" in caplog.text


async def test_equal_group_names_of_two_users_are_two_groups() -> None:
    async with node() as here, mk.connect(here.url, ALL) as root:
        here.wire._authenticate = identity()
        async with (
            mk.connect(here.url, "x") as ana,
            root.subscribe("a.b", "workers") as ours,
            ana.subscribe("a.b", "workers") as theirs,
        ):
            await root.publish("a.b", number=1)
            assert (await anext(ours)).body.number == (await anext(theirs)).body.number == 1


async def test_a_subscription_goes_on_in_a_new_session_where_its_events_are_kept() -> None:
    async with (
        node() as here,
        mk.connect(here.url, ALL) as system,
        system.subscribe("service.maths.*", since=0) as events,
    ):
        heard = [await anext(events) for _ in range(2)]
        (work,) = here.wire._kept.values()
        here.wire._kept.clear()
        break_link(system)
        await here.kernel.kernel.restart("maths")
        async with system.subscribe("service.maths.*", since=0) as everything:
            heard += [await anext(events) for _ in range(6)]
            assert [event.offset for event in heard] == [(await anext(everything)).offset for _ in range(8)]
        await here.wire._end(work)


async def test_a_gap_ends_a_subscription_with_gone() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system, system.subscribe("a.b") as events:
        await system.publish("a.b", number=1)
        assert (await anext(events)).body.number == 1
        (work,) = here.wire._kept.values()
        here.wire._kept.clear()
        break_link(system)
        with pytest.raises(Gone, match=r"events of a\.b were lost with the link"):
            async for _ in events:
                pass
        await here.wire._end(work)
        await asyncio.sleep(0)
