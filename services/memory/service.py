"""Gives out the right to use bytes of a device, and takes it back when the owner's service ends."""

from __future__ import annotations

from microkernel.events import Event
from microkernel.message import Message, calling_service, convert
from microkernel.service import Service, handles, on
from services.devices.messages import Device
from services.memory.accounts import Accounts
from services.memory.messages import Account, Release, Reservation, Reserve, Tier

__all__ = ["Memory"]


class MemorySettings(Message):
    """`share` is the part of a device's memory that may be reserved; the rest is left to the system and to torch."""

    share: float = 0.8


class Memory(Service):
    """Owns every byte that is worth counting: weights, caches, buffers, per device and tier."""

    name = "memory"
    needs = ("devices",)
    Settings = MemorySettings

    async def start(self) -> None:
        self._accounts = Accounts()
        self._opened = False

    async def ready(self) -> None:
        await self._open_accounts()

    @handles
    async def reserve(self, message: Reserve) -> Reservation:
        """Take bytes before using them; `OVERLOADED` names how much is missing."""
        await self._open_accounts()
        device = convert(await self.call("devices.show", name=message.device), Device)
        return self._accounts.reserve(message, calling_service(), available=device.memory_free_bytes)

    @handles(idempotent=True)
    async def release(self, message: Release) -> None:
        """Give a reservation of one's own back; twice is harmless."""
        self._accounts.release(message.id, calling_service())

    @handles(idempotent=True)
    async def usage(self) -> list[Account]:
        """All accounts."""
        await self._open_accounts()
        return self._accounts.accounts()

    @on("service.*.*")
    async def reclaim(self, event: Event) -> None:
        """What a service had reserved is free once its incarnation is gone."""
        if event.body["state"] in {"restarting", "stopped", "quarantined"}:
            for reservation in self._accounts.release_owner(event.body["name"]):
                self.log.info("%s is free again: '%s' has stopped", reservation.purpose, reservation.owner)

    async def _open_accounts(self) -> None:
        if self._opened:
            return
        for device in convert(await self.call("devices.list"), list[Device]):
            self._accounts.open(device.name, Tier.DEVICE, int(device.memory_bytes * self.settings.share))
        self._opened = True
