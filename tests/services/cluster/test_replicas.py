"""A service with replicas is on so many nodes, whichever, and on another one when one of them is gone."""

from __future__ import annotations

import asyncio

from clustered import Clustered, clustered

from microkernel import Service, handles
from services.cluster.messages import Card, Member, MemberState
from services.cluster.placement import owners


class Steady(Service):
    """Keeps nothing: any node will do."""

    name = "steady"
    replicas = 1

    @handles(idempotent=True)
    async def where(self) -> str:
        return self.node


class Twice(Steady):
    name = "twice"
    replicas = 2


def having(cluster: Clustered, service: str) -> set[str]:
    return {name for name, node in cluster.nodes.items() if node.state(service) in {"running", "ready"}}


async def settled(cluster: Clustered, service: str, count: int) -> set[str]:
    """Return when so many nodes have it, and all others know that."""
    async with asyncio.timeout(20):
        while True:
            found = having(cluster, service)
            told = [
                {each.node for each in await node.call("cluster.list") if service in each.services}
                for node in cluster.nodes.values()
            ]
            if len(found) == count and all(each == found for each in told):
                return found
            await asyncio.sleep(0.02)


async def test_a_service_is_on_as_many_nodes_as_it_should_be() -> None:
    async with clustered() as cluster:
        await cluster.found("n1", Steady, Twice)
        for name in ("n2", "n3", "n4"):
            await cluster.join(name, Steady, Twice)
        await settled(cluster, "steady", 1)
        await settled(cluster, "twice", 2)


async def test_every_node_calls_it_wherever_it_is() -> None:
    async with clustered() as cluster:
        await cluster.found("n1", Steady)
        for name in ("n2", "n3"):
            await cluster.join(name, Steady)
        (place,) = await settled(cluster, "steady", 1)
        assert {await node.call("steady.where") for node in cluster.nodes.values()} == {place}


async def test_calls_of_two_replicas_go_to_both() -> None:
    async with clustered() as cluster:
        await cluster.found("n1", Twice)
        for name in ("n2", "n3"):
            await cluster.join(name, Twice)
        places = await settled(cluster, "twice", 2)
        for node in cluster.nodes.values():
            assert {await node.call("twice.where") for _ in range(16)} == places


def at(node: str, *nodes: str, **attributes: object) -> type[Steady]:
    """A service whose place is `node` while `nodes` are there."""
    members = [
        Member(node=each, incarnation=1, life=1, state=MemberState.ALIVE, address="", card=Card(weight=2.0))
        for each in nodes
    ]
    name = next(name for number in range(100) if owners(name := f"steady{number}", members) == [node])
    return type("Placed", (Steady,), {"name": name, **attributes})


async def test_when_its_node_is_gone_it_comes_up_on_another_and_no_call_is_lost() -> None:
    kind = at("n2", "n1", "n2", "n3")
    async with clustered() as cluster:
        first = await cluster.found("n1", kind)
        for name in ("n2", "n3"):
            await cluster.join(name, kind)
        while await settled(cluster, kind.name, 1) != {"n2"}:  # it may have been where it was until all had come
            await asyncio.sleep(0.02)

        async def ask() -> list[str]:
            answers = []
            while not answers or answers[-1] == "n2":
                answers.append(await first.call(f"{kind.name}.where", deadline=20.0))
                await asyncio.sleep(0)
            return answers

        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        await cluster.stop("n2")
        assert set(await asking) - {"n2"} <= {"n1", "n3"}


async def test_what_cannot_start_on_a_node_is_tried_again_and_answered_where_it_was_meanwhile() -> None:
    tries = []

    async def start(self: Service) -> None:
        if self.node == "n2":
            tries.append(self.node)
            if len(tries) == 1:
                raise RuntimeError("not yet")

    kind = at("n2", "n1", "n2", start=start)
    async with clustered() as cluster:
        first = await cluster.found("n1", kind)
        await cluster.join("n2", kind)
        async with asyncio.timeout(60):
            while await first.call(f"{kind.name}.where") != "n2":
                await asyncio.sleep(0.02)
        assert await settled(cluster, kind.name, 1) == {"n2"}
        assert len(tries) == 2
