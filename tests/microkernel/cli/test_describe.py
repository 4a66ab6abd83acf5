"""`mk describe` can be read on a narrow terminal, and says what is not as usual."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from microkernel import Message, Service, handles, streams
from microkernel.cli.describe import limits, service_lines
from microkernel.cli.output import plain
from microkernel.config import Config
from microkernel.inputs import Inputs
from microkernel.plugins import Plugin
from microkernel.testing import TestKernel


class Order(Message):
    customer: str
    articles: list[str]
    remarks: str | None = None
    delivery_address: str | None = None


class Shop(Service):
    """Sells."""

    name = "shop"
    uses = ("kernel",)

    @handles(deadline=None, concurrency=1, queue=2, idempotent=True)
    async def order(self, message: Order) -> int:
        """Order something."""
        return len(message.articles)

    @handles
    async def close(self) -> None:
        """Go home."""

    @streams(credit=3)
    async def talk(self, inputs: Inputs[str]) -> AsyncIterator[str]:
        """Talk."""
        async for each in inputs:
            yield each


async def described(name: str, config: Config | None = None, *plugins: Any) -> dict[str, Any]:
    async with TestKernel(Shop, *plugins, config=config, wait_ready=not plugins) as system:
        [service] = plain(await system.call("kernel.describe", name=name))
        return service


def handler(service: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in service["handlers"] if each["address"] == f"shop.{name}")


async def test_a_service_is_described_by_blocks_with_what_is_unusual():
    assert service_lines(await described("shop"), 100) == [
        "shop: Sells.",
        "ready",
        "uses kernel",
        "",
        "shop.close() -> null",
        "    Go home.",
        "",
        "shop.order(",
        "    customer: string,",
        "    articles: string[],",
        "    remarks?: string | null,",
        "    delivery_address?: string | null,",
        ") -> integer",
        "    Order something.",
        "    no deadline, 1 at a time, 2 waiting, idempotent",
        "",
        "shop.talk() ->> string",
        "    Talk.",
        "    credit 3, takes inputs: string",
        "",
        "Unless it is said: deadline 60 s, 256 at a time, 1024 waiting, and for a stream (->>) no deadline",
        "and credit 64. `mk describe SERVICE.METHOD` shows more.",
    ]


async def test_all_limits_of_one_handler_are_told():
    service = await described("shop")
    assert limits(handler(service, "close")) == ["deadline 60 s", "256 at a time", "1024 waiting"]
    assert limits(handler(service, "talk"))[-2:] == ["credit 3", "takes inputs: string"]


@pytest.mark.parametrize("width", [60, 80, 100])
async def test_no_line_is_wider_than_the_terminal(width):
    for name in ("kernel", "shop"):
        assert max(map(len, service_lines(await described(name), width))) <= width


async def test_where_a_service_runs_and_how_many_of_it_is_what_the_node_is_set_to():
    service = await described("shop", Config(isolation={"shop": "task"}, instances={"shop": 2}))
    assert (service["isolation"], service["instances"], service["balance"]) == ("task", 2, "round_robin")
    assert service_lines(service, 80)[2:4] == ["2 instances, round robin", "runs in a task of its own"]


async def test_a_broken_service_runs_nowhere():
    plugin = Plugin(name="gone", source="gone.py", broken="no such module")
    service = await described("gone", None, plugin)
    assert (service["isolation"], service["instances"], service["balance"]) == (None, 0, None)
    assert service_lines(service, 80)[1] == "broken: no such module"
