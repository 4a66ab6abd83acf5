"""Keeps services on as many nodes as they should be on: each node sees by itself whether it is one of them.

All come to the same answer without asking, since they know the same members. While they do not, a service is on a node
more or less than it should: what may be on several nodes minds neither.
"""

from __future__ import annotations

import asyncio

import msgspec

from microkernel.errors import MicrokernelError
from microkernel.introspection import ServiceStatus
from microkernel.service import Service
from services.cluster.membership.membership import Membership
from services.cluster.messages import Member, MemberState
from services.cluster.placement import owners

__all__ = ["Replicas", "placed"]

_OPINIONS = (MemberState.SUSPECT, MemberState.QUARANTINED)
AGAIN = 1.0  # seconds until a service is brought again that did not start


class Replicas:
    """What this node has of the services that the cluster places."""

    def __init__(self, service: Service, membership: Membership) -> None:
        self._service = service
        self._membership = membership
        self._look = asyncio.Event()

    def look(self) -> None:
        """The members, or what they have, are not as before."""
        self._look.set()

    async def run(self) -> None:
        """Bring services here, and leave them to others, until cancelled."""
        while True:
            await self._look.wait()
            self._look.clear()
            for status in await self._service.call("kernel.services"):
                if status.replicas:
                    await self._place(status)

    async def _place(self, status: ServiceStatus) -> None:
        members = self._membership.members()
        chosen = placed(status.name, members, status.replicas)
        here = self._service.node in chosen
        try:
            if here and status.state == "elsewhere":
                self._service.log.info("service '%s' comes to this node", status.name)
                await self._service.call("kernel.bring", name=status.name)
            elif not here and status.state in {"running", "ready"} and _have(status.name, members, chosen):
                self._service.log.info("service '%s' is left to %s", status.name, ", ".join(chosen))
                await self._service.call("kernel.leave_to_others", name=status.name)
        except MicrokernelError as error:
            self._service.log.warning("service '%s' could not be placed: %s", status.name, error)
            await asyncio.sleep(AGAIN)
            self.look()


def placed(service: str, members: list[Member], replicas: int) -> list[str]:
    """The nodes that should have a service.

    What one node alone thinks of another, that it is suspect or quarantined, does not count: others think otherwise.
    """
    able = [member for member in members if service in member.card.replicated]
    steady = [
        msgspec.structs.replace(member, state=MemberState.ALIVE) if member.state in _OPINIONS else member
        for member in able
    ]
    return owners(service, steady, replicas)


def _have(service: str, members: list[Member], chosen: list[str]) -> bool:
    """Whether all that are chosen answer the service; there is at least one."""
    answering = {member.node for member in members if service in member.card.services}
    return bool(chosen) and answering.issuperset(chosen)
