"""A call to another node is the same call: its type, its user, its deadline, its end."""

from __future__ import annotations

import asyncio

import pytest
from linked_nodes import TOKEN, linked
from wire_node import Add, Blob, Count, Maths, Sum

from microkernel import Message, Service, handles
from microkernel.capability import Rights
from microkernel.errors import DeadlineExceeded, Denied, Internal, NotFound, Unavailable
from microkernel.wire.system import System


class Caller(Service):
    """Calls the maths of whichever node has it."""

    name = "caller"
    uses = ("maths",)

    @handles
    async def add(self, message: Add) -> int:
        total: Sum = await self.call("maths.add", message)
        return total.total


async def test_an_address_with_a_node_is_answered_by_that_node() -> None:
    async with linked((Maths(),), (Maths(),)) as (here, there):
        here.knows(there, "maths")
        await here.call("maths.note@n2", Add(7, 0))
        assert (
            here.kernel.kernel.instance("maths").service.sent,
            there.kernel.kernel.instance("maths").service.sent,
        ) == (
            [],
            [7],
        )


async def test_the_result_has_the_type_that_it_has_at_home() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        assert await here.call("maths.add@n2", a=1, b=2) == Sum(3, [1, 2])


async def test_the_own_name_means_this_node() -> None:
    async with linked((Maths,)) as (here,):
        assert await here.call("maths.add@n1", a=1, b=2) == Sum(3, [1, 2])


async def test_a_service_that_is_not_here_is_called_where_it_is() -> None:
    async with linked((Caller,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        assert await here.call("caller.add", a=20, b=22) == 42


async def test_of_a_service_that_is_not_installed_here_the_result_is_a_record() -> None:
    async with linked((), (Maths,)) as (here, there):
        here.knows(there, "maths")
        assert (await here.call("maths.add", a=1, b=2)).parts == [1, 2]


async def test_a_service_that_is_here_is_not_called_elsewhere() -> None:
    async with linked((Maths(),), (Maths(),)) as (here, there):
        here.knows(there, "maths")
        await here.call("maths.note", Add(7, 0))
        assert there.kernel.kernel.instance("maths").service.sent == []


async def test_a_node_that_is_not_known_is_named_with_those_that_are() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        with pytest.raises(NotFound, match="no node is named 'n9' .*n1, n2"):
            await here.call("maths.add@n9", a=1, b=2)


async def test_a_handler_that_is_not_there_is_named_with_those_that_are() -> None:
    async with linked((), (Maths,)) as (here, there):
        here.knows(there, "maths")
        with pytest.raises(NotFound, match=r"has no handler 'divide' .*add, "):
            await here.call("maths.divide@n2")


@pytest.mark.parametrize(("method", "kind"), [("fail", NotFound), ("crash", Internal)])
async def test_an_error_comes_back_as_what_it_is(method: str, kind: type[Exception]) -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        with pytest.raises(kind) as raised:
            await here.call(f"maths.{method}@n2")
        assert raised.value.service == "maths"


async def test_long_bytes_arrive_whole() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        blob = Blob(bytes(range(256)) * 20_000)
        assert await here.call("maths.echo@n2", blob) == blob


async def test_priority_user_and_deadline_go_along() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        port = here.kernel.kernel.port.narrow(caller="session s1", rights=Rights(allow=("maths.*",)), user="ana")
        who = await port.call("maths.who@n2", priority=2, deadline=5.0)
        assert (who["user"], who["priority"], who["timed"]) == ("ana", 2, True)


async def test_what_this_node_does_for_itself_is_done_for_no_user() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        who = await here.call("maths.who@n2")
        assert (who["user"], who["caller"]) == (None, "node n1")


async def test_rights_to_a_handler_hold_on_every_node() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        port = here.kernel.kernel.port.narrow(caller="session s1", rights=Rights(allow=("maths.add",)), user="ana")
        assert (await port.call("maths.add@n2", a=1, b=1)).total == 2
        with pytest.raises(Denied):
            await port.call("maths.who@n2")


async def test_a_client_that_is_no_node_cannot_say_on_whose_behalf_it_calls() -> None:
    async with linked((Maths,)) as (here,):
        here.wire._authenticate = _as_user

        async def find() -> tuple[str, str, None]:
            return here.url, TOKEN, None

        system = System(find)
        await system.start()
        try:
            number = system._session.call("maths.who", None, deadline=None, priority=None, user="root")
            system._connection.touch()
            with pytest.raises(Denied, match="only another node"):
                await system._pending.expect(number)
        finally:
            await system.aclose()


async def _as_user(token: str) -> object:
    from microkernel.capability import ALL, Identity

    return Identity("ana", ALL)


async def test_a_cancelled_call_ends_there_too() -> None:
    async with linked((Maths(),), (Maths(),)) as (here, there):
        here.knows(there, "maths")
        maths = there.kernel.kernel.instance("maths").service
        hanging = asyncio.create_task(here.call("maths.hang@n2"))
        await maths.hanging.wait()
        hanging.cancel()
        await maths.until(lambda: maths.cancelled == 1)


async def test_the_deadline_ends_a_call_that_the_other_node_does_not_answer() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        with pytest.raises(DeadlineExceeded):
            await here.call("maths.hang@n2", deadline=0.05)


async def test_a_stream_comes_item_by_item_and_is_closed_there_when_it_is_left_here() -> None:
    async with linked((Maths(),), (Maths(),)) as (here, there):
        here.knows(there, "maths")
        maths = there.kernel.kernel.instance("maths").service
        async with here.kernel.stream("maths.count@n2", Count(10_000)) as stream:
            assert [(await anext(stream))["number"] for _ in range(3)] == [0, 1, 2]
        await maths.until(lambda: maths.closed == 1)
        assert maths.made < 200


async def test_what_is_sent_into_a_stream_reaches_its_handler() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        async with here.kernel.stream("maths.add_up@n2", Count(0)) as stream:
            totals = asyncio.create_task(_all(stream))
            for number in range(1, 51):
                await stream.send(number)
            await stream.finish()
            assert (await totals)[-1] == 1275


async def _all(stream: object) -> list[int]:
    return [item async for item in stream]  # type: ignore[attr-defined]


async def test_a_lost_link_ends_its_calls_and_the_next_one_goes_over_another() -> None:
    async with linked((Maths(),), (Maths(),)) as (here, there):
        here.knows(there, "maths")
        maths = there.kernel.kernel.instance("maths").service
        hanging = asyncio.create_task(here.call("maths.hang@n2"))
        await maths.hanging.wait()
        here.break_links()
        with pytest.raises(Unavailable) as raised:
            await hanging
        assert raised.value.may_have_run is True
        assert (await here.call("maths.add@n2", a=1, b=2)).total == 3


async def test_a_node_that_is_gone_ends_the_calls_to_it_though_its_link_stands() -> None:
    async with linked((Maths(),), (Maths(),)) as (here, there):
        here.knows(there, "maths")
        maths = there.kernel.kernel.instance("maths").service
        hanging = asyncio.create_task(here.call("maths.hang@n2"))
        await maths.hanging.wait()
        await here.forgets(there)
        with pytest.raises(Unavailable, match="node 'n2' was lost"):
            await hanging


async def test_a_node_that_comes_back_is_reached_by_who_called_it_before() -> None:
    async with linked((Caller,), (Maths,)) as (here, there):
        here.knows(there, "maths")
        assert await here.call("caller.add", a=1, b=2) == 3
        await here.forgets(there)
        waits = asyncio.create_task(here.call("caller.add", a=3, b=4, deadline=10.0))
        await asyncio.sleep(0.02)
        here.knows(there, "maths")
        assert await waits == 7


async def test_a_node_that_nobody_answers_for_says_so() -> None:
    async with linked((Maths,), (Maths,)) as (here, there):
        there.url = "ws://127.0.0.1:9/mk"
        here.knows(there, "maths")
        with pytest.raises(Unavailable) as raised:
            await here.call("maths.add@n2", a=1, b=2)
        assert raised.value.may_have_run is not True


class Note(Message):
    text: str


class Pad(Service):
    name = "pad"

    async def start(self) -> None:
        self.notes: list[str] = []

    @handles
    async def write(self, message: Note) -> int:
        self.notes.append(message.text)
        return len(self.notes)


async def test_a_call_under_a_key_runs_once_there() -> None:
    async with linked((), (Pad(),)) as (here, there):
        here.knows(there, "pad")
        first = await here.call("pad.write", Note("once"), idempotency_key="k1")
        again = await here.call("pad.write", Note("once"), idempotency_key="k1")
        assert (first, again) == (1, 1)


class Waits(Service):
    """Answers when it is told to."""

    name = "waits"

    async def start(self) -> None:
        self.begun, self.released = asyncio.Event(), asyncio.Event()

    @handles
    async def wait(self) -> str:
        self.begun.set()
        await self.released.wait()
        return "done"


async def test_what_is_under_way_to_a_node_that_is_let_go_gently_still_arrives_and_nothing_new_goes_there() -> None:
    async with linked((), (Waits,)) as (here, there):
        here.knows(there, "waits")
        waits = there.kernel.kernel.instance("waits").service
        under_way = asyncio.create_task(here.call("waits.wait@n2"))
        await waits.begun.wait()
        gone = here.nodes.detach("n2", "has left", at_once=False)
        with pytest.raises(NotFound):
            await here.call("waits.wait@n2")
        waits.released.set()
        await gone.ended(30.0)
        assert await under_way == "done"
        await gone.aclose()


async def test_what_does_not_end_in_time_is_told_why_the_node_is_gone() -> None:
    async with linked((), (Waits,)) as (here, there):
        here.knows(there, "waits")
        under_way = asyncio.create_task(here.call("waits.wait@n2"))
        await there.kernel.kernel.instance("waits").service.begun.wait()
        gone = here.nodes.detach("n2", "has left", at_once=False)
        await gone.ended(0.01)
        with pytest.raises(Unavailable, match="node 'n2' has left"):
            await under_way
        await gone.aclose()
