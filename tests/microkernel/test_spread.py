"""Several nodes that answer one service are one service: balanced, repeated, hedged, and continued."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from answering import Answers, Ask
from linked_nodes import LinkedNode, linked

from microkernel.errors import NotFound, Overloaded, Unavailable


def service_of(node: LinkedNode) -> Any:
    return node.kernel.kernel.instance("answers").service


def meet(*nodes: LinkedNode) -> None:
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.knows(other, "answers")


async def test_calls_one_after_the_other_go_to_all_nodes() -> None:
    async with linked((Answers,), (Answers,), (Answers,)) as nodes:
        meet(*nodes)
        asked = Counter([await nodes[0].call("answers.read", Ask()) for _ in range(30)])
        assert set(asked) == {"n1", "n2", "n3"}
        assert max(asked.values()) <= 12


async def test_a_call_that_names_a_node_stays_there() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        assert {await nodes[0].call("answers.read@n2") for _ in range(5)} == {"n2"}
        assert {await nodes[0].call("answers.read@n1") for _ in range(5)} == {"n1"}


async def test_a_handler_that_is_each_nodes_own_is_not_shared_out() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        assert {await nodes[0].call("answers.own") for _ in range(6)} == {"n1"}


async def test_a_call_for_something_goes_where_that_is() -> None:
    async with linked((Answers,), (Answers,), (Answers,)) as nodes:
        meet(*nodes)
        first, second, third = nodes
        first.nodes.have({"model": frozenset({"usual"})}, {"model": "usual"})
        first.knows(second, "answers", things={"model": frozenset({"usual", "large"})})
        first.knows(third, "answers", things={"model": frozenset({"large"})})

        async def asked(**fields: str) -> set[str]:
            return {await first.call("answers.with_model", Ask(**fields)) for _ in range(24)}

        assert await asked(model="large") == {"n2", "n3"}
        assert await asked() == {"n1", "n2"}
        assert await asked(model="nobody's") == {"n1", "n2", "n3"}


async def test_a_busy_node_gets_less() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        service_of(nodes[0]).slow = True
        waiting = [asyncio.create_task(nodes[0].call("answers.write@n1")) for _ in range(3)]
        await asyncio.sleep(0.02)
        nodes[0].knows(nodes[1], "answers", load=100.0)
        service_of(nodes[0]).slow = False
        assert {await nodes[0].call("answers.write") for _ in range(5)} == {"n1"}
        service_of(nodes[0]).go.set()
        await asyncio.gather(*waiting)


async def test_a_node_that_takes_no_new_work_gets_none() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        nodes[0].knows(nodes[1], "answers", is_open=False)
        assert {await nodes[0].call("answers.read") for _ in range(6)} == {"n1"}


async def test_a_node_of_last_resort_gets_what_no_other_one_takes() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        nodes[0].knows(nodes[1], "answers", is_last_resort=True)
        assert {await nodes[0].call("answers.read") for _ in range(6)} == {"n1"}
        await nodes[0].kernel.kernel.leave_to_others("answers", "goes on elsewhere")
        assert await nodes[0].call("answers.read") == "n2"


async def test_what_could_not_begin_on_one_node_is_done_by_another() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        await nodes[1].kernel.kernel.remove("answers")  # and the other node has not heard of it
        assert {await nodes[0].call("answers.write") for _ in range(6)} == {"n1"}


async def test_what_may_have_run_is_not_done_again_unless_it_is_idempotent() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        service_of(nodes[1]).failing = Unavailable("broken in the middle")
        service_of(nodes[0]).failing = Unavailable("broken in the middle")
        with pytest.raises(Unavailable):
            await nodes[0].call("answers.write")
        assert service_of(nodes[0]).asked + service_of(nodes[1]).asked == 1
        with pytest.raises(Unavailable):
            await nodes[0].call("answers.read")
        assert service_of(nodes[0]).asked + service_of(nodes[1]).asked == 3


async def asked_until_its_link_breaks(first: LinkedNode, other: LinkedNode, to: str) -> asyncio.Task[str]:
    """A call of the only node that answers, which runs there when the link breaks."""
    first.knows(other, "answers")
    service_of(other).slow = True
    asking = asyncio.create_task(first.call(to, deadline=10.0))
    async with asyncio.timeout(10):
        while not service_of(other).asked:
            await asyncio.sleep(0.01)
    first.break_links()
    return asking


async def test_when_the_link_to_the_only_node_breaks_what_is_idempotent_is_asked_there_again() -> None:
    async with linked((), (Answers,)) as (first, other):
        asking = await asked_until_its_link_breaks(first, other, "answers.read")
        async with asyncio.timeout(10):
            while service_of(other).asked < 2 and not asking.done():
                await asyncio.sleep(0.01)
        service_of(other).go.set()
        assert await asking == "n2"


async def test_when_the_link_to_the_only_node_breaks_what_is_not_idempotent_ends_with_the_cause() -> None:
    async with linked((), (Answers,)) as (first, other):
        asking = await asked_until_its_link_breaks(first, other, "answers.write")
        with pytest.raises(Unavailable):
            await asking
        service_of(other).go.set()
        assert service_of(other).asked == 1


async def test_when_the_link_to_the_only_node_breaks_and_the_node_is_gone_another_one_answers() -> None:
    async with linked((), (Answers,), (Answers,)) as (first, gone, other):

        async def refused() -> Any:
            raise Unavailable("nobody listens there", may_have_run=False)

        asking = await asked_until_its_link_breaks(first, gone, "answers.read")
        first.nodes.get(gone.name)._dial = refused
        await asyncio.sleep(0.05)
        await first.forgets(gone)
        first.knows(other, "answers")
        assert await asking == "n3"


async def test_a_link_that_the_other_node_ends_is_lost_as_any() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        first, second = nodes
        meet(*nodes)
        service_of(second).slow = True

        def ask(to: str) -> asyncio.Task[str]:
            return asyncio.create_task(first.call(to, Ask(), deadline=10.0))

        reads = [ask("answers.read") for _ in range(4)]
        named = ask("answers.write@n2")
        while service_of(second).asked < 2:
            await asyncio.sleep(0.005)
        second.wire.end_node("n1", "this node is dead, as the others see it")
        with pytest.raises(Unavailable, match="this node is dead") as caught:
            await named
        assert caught.value.may_have_run is True
        assert {await read for read in reads} == {"n1"}


async def test_an_overloaded_node_is_passed_over() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        service_of(nodes[1]).failing = Overloaded("enough")
        assert {await nodes[0].call("answers.read") for _ in range(6)} == {"n1"}


async def test_an_error_of_the_service_itself_is_the_answer() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        for node in nodes:
            service_of(node).failing = NotFound("no such thing")
        with pytest.raises(NotFound):
            await nodes[0].call("answers.read")
        assert service_of(nodes[0]).asked + service_of(nodes[1]).asked == 1


async def test_a_node_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        service_of(nodes[1]).failing = Unavailable("broken")
        for _ in range(40):
            await nodes[0].call("answers.read")
        assert service_of(nodes[1]).asked <= 6


async def test_an_answer_that_takes_longer_than_most_is_asked_of_a_second_node() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        for _ in range(40):
            await nodes[0].call("answers.read")
        service_of(nodes[1]).slow = True
        answers = [await asyncio.wait_for(nodes[0].call("answers.read"), 5) for _ in range(2)]
        assert set(answers) == {"n1"}
        assert service_of(nodes[1]).cancelled == 1


async def test_what_is_not_idempotent_is_asked_once_however_long_it_takes() -> None:
    async with linked((Answers,), (Answers,)) as nodes:
        meet(*nodes)
        for _ in range(40):
            await nodes[0].call("answers.write")
        before = service_of(nodes[0]).asked + service_of(nodes[1]).asked
        for node in nodes:
            service_of(node).slow = True
        call = asyncio.create_task(nodes[0].call("answers.write"))
        await asyncio.sleep(0.1)
        assert service_of(nodes[0]).asked + service_of(nodes[1]).asked == before + 1
        for node in nodes:
            service_of(node).go.set()
        await call


async def all_of(node: LinkedNode, to: str, stop: int, begun: asyncio.Event) -> list[int]:
    numbers: list[int] = []
    async for number in node.kernel.stream(to, Ask(stop=stop)):
        numbers.append(number)
        if number == stop // 2:
            begun.set()
    return numbers


async def test_a_stream_whose_node_dies_goes_on_elsewhere_without_a_gap() -> None:
    async with linked((), (Answers,), (Answers,)) as nodes:
        first, *others = nodes
        first.installs(Answers)
        for other in others:
            first.knows(other, "answers")
            service_of(other).slow = True
        begun = asyncio.Event()
        reading = asyncio.create_task(all_of(first, "answers.count", 40, begun))
        await begun.wait()
        (had,) = [node for node in others if service_of(node).asked]
        (other,) = [node for node in others if node is not had]
        service_of(other).go.set()
        await first.forgets(had)
        assert await asyncio.wait_for(reading, 10) == list(range(40))
        assert service_of(other).asked == 1


async def test_a_stream_that_does_not_say_how_it_goes_on_ends_with_the_cause() -> None:
    async with linked((), (Answers,), (Answers,)) as nodes:
        first, *others = nodes
        for other in others:
            first.knows(other, "answers")
            service_of(other).slow = True
        begun = asyncio.Event()
        reading = asyncio.create_task(all_of(first, "answers.plain", 40, begun))
        await begun.wait()
        (had,) = [node for node in others if service_of(node).asked]
        await first.forgets(had)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(reading, 10)


async def test_a_node_alone_answers_as_if_there_were_no_cluster() -> None:
    async with linked((Answers,)) as (node,):
        binding = await node.kernel.kernel.router.bind("answers.read", None)
        assert binding.gate.pick((Ask(),), None) is node.kernel.kernel.instance("answers").bindings["read"].gate


async def test_a_service_that_no_node_answers_now_is_waited_for() -> None:
    async with linked((), (Answers,)) as nodes:
        first, other = nodes
        first.installs(Answers)
        waits = asyncio.create_task(first.call("answers.read", deadline=10.0))
        await asyncio.sleep(0.02)
        first.knows(other, "answers")
        assert await waits == "n2"


async def test_a_service_whose_only_node_takes_no_work_now_is_waited_for_where_it_is_not_installed() -> None:
    async with linked((), (Answers,)) as (first, other):
        first.knows(other, "answers", is_open=False)
        waits = asyncio.create_task(first.call("answers.read", deadline=10.0))
        await asyncio.sleep(0.02)
        first.knows(other, "answers", is_open=True)
        assert await waits == "n2"
