"""What this node tells of itself: which services answer here, and what else is here that others may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from microkernel.errors import MicrokernelError
from microkernel.service import Service
from services.cluster.membership.actions import Action
from services.cluster.membership.membership import Membership
from services.cluster.messages import Card

__all__ = ["OwnCard"]

SETTLE = 0.05  # seconds in which several changes of what is here are told as one
ASKING = 5.0  # seconds for a service to list what it has
MOST_WORDS = 256  # of one kind on a card


class OwnCard:
    """Keeps the card of this node true."""

    def __init__(self, service: Service, membership: Membership, perform: Callable[[Iterable[Action]], None]) -> None:
        self._service = service
        self._membership = membership
        self._perform = perform
        self._is_old = asyncio.Event()

    def look(self) -> None:
        """Something may have come or gone."""
        self._is_old.set()

    async def run(self) -> None:
        """Tell the others what is here whenever that has changed, until cancelled."""
        while True:
            await self._is_old.wait()
            await asyncio.sleep(SETTLE)
            self._is_old.clear()
            card = await self._made()
            if msgspec.structs.replace(card, edition=0) != msgspec.structs.replace(self._membership.me.card, edition=0):
                now = asyncio.get_running_loop().time()
                self._perform(self._membership.describe(card, now))

    async def _made(self) -> Card:
        services = await self._service.call("kernel.services")
        answering = tuple(sorted(each.name for each in services if each.state in {"running", "ready"}))
        models = [each for each in await self._asked("inference.list", answering) if each.state == "ready"]
        devices = await self._asked("devices.list", answering)
        things = {"model": frozenset(each.name for each in models), "device": frozenset(each.name for each in devices)}
        usual = next((each.name for each in models if each.default), None)
        self._service.nodes.have(things, {} if usual is None else {"model": usual})
        return msgspec.structs.replace(
            self._membership.me.card,
            services=answering,
            replicated=tuple(sorted(each.name for each in services if each.replicas))[:MOST_WORDS],
            models=tuple(sorted(things["model"]))[:MOST_WORDS],
            devices=tuple(sorted(things["device"]))[:MOST_WORDS],
        )

    async def _asked(self, to: str, answering: tuple[str, ...]) -> list[Any]:
        """What a service of this node lists; nothing while it does not answer."""
        if to.partition(".")[0] not in answering:
            return []
        try:
            found: list[Any] = await self._service.call(f"{to}@{self._service.node}", deadline=ASKING)
        except MicrokernelError as error:
            self._service.log.debug("%s: %s", to, error)
            return []
        return found
