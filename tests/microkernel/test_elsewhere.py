"""A node that joins a cluster leaves to others what has a home there, and takes a service over when it is told to."""

from __future__ import annotations

import msgspec
import pytest
from linked_nodes import linked

from microkernel import Service, handles
from microkernel.config import Config
from microkernel.errors import Invalid, NotFound
from microkernel.plugins import Plugin, checked
from microkernel.service import Placement
from microkernel.testing import TestKernel

JOINS = msgspec.structs.replace(Config(), joins=True)


class Homely(Service):
    name = "homely"

    @handles
    async def where(self) -> str:
        return self.node


class Own(Homely):
    name = "own"
    placement = Placement.NODE


class Broken(Homely):
    name = "broken"

    async def start(self) -> None:
        raise RuntimeError("cannot")


class Needy(Homely):
    name = "needy"
    placement = Placement.NODE
    needs = ("homely",)

    @handles
    async def ask(self) -> str:
        return await self.call("homely.where")


async def test_a_node_alone_has_all_its_services() -> None:
    async with TestKernel(Homely, Own) as node:
        assert (node.state("homely"), node.state("own")) == ("ready", "ready")


async def test_a_node_that_joins_starts_only_what_each_node_has() -> None:
    async with TestKernel(Homely, Own, config=JOINS) as node:
        assert (node.state("homely"), node.state("own")) == ("elsewhere", "ready")


async def test_the_configuration_says_where_a_service_is() -> None:
    config = msgspec.structs.replace(JOINS, placement={"homely": Placement.NODE})
    async with TestKernel(Homely, config=config) as node:
        assert node.state("homely") == "ready"


async def test_a_service_is_brought_to_a_node_and_left_to_others_again() -> None:
    async with TestKernel(Homely, config=JOINS) as node:
        await node.kernel.bring("homely")
        assert await node.call("homely.where") == "node0"
        await node.kernel.leave_to_others("homely", "goes on elsewhere")
        assert node.state("homely") == "elsewhere"
        await node.kernel.bring("homely")
        assert await node.call("homely.where") == "node0"


async def test_a_node_says_at_once_that_it_does_not_have_what_it_left_to_others() -> None:
    async with linked((Homely,), (Homely,)) as (here, there):
        here.knows(there, "homely")
        assert await here.call("homely.where@n2") == "n2"
        await there.kernel.kernel.leave_to_others("homely", "goes on elsewhere")
        with pytest.raises(NotFound, match="is on other nodes, and not on 'n2'") as raised:
            await here.call("homely.where@n2")
        assert raised.value.may_have_run is False


async def test_a_service_that_cannot_be_brought_says_why() -> None:
    async with TestKernel(Broken, config=JOINS) as node:
        with pytest.raises(Exception, match="cannot"):
            await node.kernel.bring("broken")


async def test_a_need_that_another_node_answers_is_fulfilled() -> None:
    async with linked((Homely, Needy), (Homely,), joins=True) as (here, there):
        here.knows(there, "homely")
        await there.kernel.kernel.bring("homely")
        assert await here.call("needy.ask") == "n2"


async def test_who_called_a_service_here_finds_it_where_it_went() -> None:
    async with linked((Homely, Needy), (Homely,)) as (here, there):
        assert await here.call("needy.ask") == "n1"
        here.knows(there, "homely")
        await here.kernel.kernel.leave_to_others("homely", "goes on at n2")
        assert await here.call("needy.ask") == "n2"


@pytest.mark.parametrize(("attribute", "value"), [("placement", "everywhere"), ("replicas", -1), ("replicas", True)])
def test_what_no_service_may_say_of_its_place_is_named(attribute: str, value: object) -> None:
    kind = type("Odd", (Homely,), {attribute: value})
    broken = checked(Plugin("odd", "test", kind=kind)).broken
    assert broken is not None
    assert broken.startswith(f"{attribute} is ")


async def test_a_section_for_a_service_that_is_not_there_is_refused() -> None:
    config = msgspec.structs.replace(Config(), replicas={"nobody": 2})
    with pytest.raises(Invalid, match="no service is named 'nobody'"):
        async with TestKernel(Homely, config=config):
            pass
