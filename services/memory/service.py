"""Gives out the right to use bytes of a device, says who may have how much, and tells when memory is short."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from microkernel.capability import ROOT
from microkernel.errors import DataLoss, Denied, Invalid
from microkernel.events import Event
from microkernel.inputs import Inputs
from microkernel.message import Message, calling_service, calling_user, convert
from microkernel.portable import (
    AHEAD,
    EntryPiece,
    Export,
    Import,
    Imported,
    check_restoring,
    only_root,
    pieces_of,
    put_file,
    read_entry,
)
from microkernel.service import Placement, Service, every, handles, on, streams
from services.devices.messages import Device
from services.memory.accounts import Accounts
from services.memory.ladder import MARGIN, THRESHOLDS, Ladder
from services.memory.messages import (
    EVERYBODY,
    Account,
    OwnerUse,
    Pressure,
    Quota,
    Quotas,
    Release,
    ReportUse,
    Reservation,
    Reserve,
    Resize,
    Rung,
    SetQuota,
    Tier,
    in_units,
)
from services.memory.quotas import OwnerQuotas

__all__ = ["Memory"]

LOOK = 0.5  # seconds between two looks at how much is free
LIVE = "quotas.json"  # what was set live, in the state folder
LARGEST_LIVE = 16 << 20  # bytes of that


class MemorySettings(Message, kw_only=True):
    """`share` is the part of a device's memory that may be reserved; the rest is left to the system and to torch.

    `quotas` says what an owner may have of each device for its pages, `default_quota` what all others may: bytes, or a
    share of the account (0.25); None is as much as there is. `rungs` are the shares of what could be had at which
    cached prefixes are dropped, cold contexts moved, nothing new is admitted and running answers are paused; a rung is
    left `margin` below.
    """

    share: float = 0.8
    quotas: dict[str, int | float] = {}
    default_quota: int | float | None = None
    rungs: tuple[float, float, float, float] = THRESHOLDS
    margin: float = MARGIN


class Memory(Service):
    """Owns every byte that is worth counting: weights, pages, buffers, per device and tier; quotas; pressure."""

    name = "memory"
    placement = Placement.NODE
    needs = ("devices",)
    Settings = MemorySettings

    async def start(self) -> None:
        self._accounts = Accounts()
        self._ladders: dict[str, Ladder] = {}
        self._quotas = OwnerQuotas(self.settings.quotas, self.settings.default_quota)
        Ladder("", self.settings.rungs, self.settings.margin)  # raises here what is wrong with them
        await asyncio.to_thread(self._read_live)

    async def ready(self) -> None:
        await self._open_accounts()

    @handles
    async def reserve(self, message: Reserve) -> Reservation:
        """Take bytes before using them; `OVERLOADED` names how much is missing."""
        await self._open_accounts()
        available = await self._available(message.device, message.tier)
        return self._accounts.reserve(message, calling_service(), available=available)

    @handles
    async def resize(self, message: Resize) -> Reservation:
        """Make a reservation of one's own larger or smaller; `OVERLOADED` names how much is missing."""
        before = self._accounts.find(message.id, calling_service())
        available = await self._available(before.device, before.tier)
        return self._accounts.resize(message, calling_service(), available=available)

    @handles(idempotent=True)
    async def release(self, message: Release) -> None:
        """Give a reservation of one's own back; twice is harmless."""
        self._accounts.release(message.id, calling_service())

    @handles(idempotent=True)
    async def report(self, message: ReportUse) -> Pressure:
        """Tell what a service has of a device and tier; how short it is."""
        await self._open_accounts()
        self._accounts.report(message, calling_service())
        ladder = self._ladders.get(message.device) if message.tier is Tier.DEVICE else None
        if ladder is None:
            return Pressure(device=message.device, rung=Rung.CALM, used=0, limit=0)
        self._look(ladder, convert(await self.call("devices.show", name=message.device), Device))
        return ladder.pressure

    @handles(idempotent=True)
    async def usage(self) -> list[Account]:
        """All accounts: what is reserved of them, what is in use, and by which owner."""
        await self._open_accounts()
        return [self._described(account) for account in self._accounts.accounts()]

    @handles(idempotent=True)
    async def quotas(self) -> Quotas:
        """All quotas."""
        await self._open_accounts()
        return self._all_quotas()

    @handles(idempotent=True)
    async def set_quota(self, message: SetQuota) -> list[Quota]:
        """Change a quota live, also for what runs; it holds until it is taken back, and over restarts."""
        await self._open_accounts()
        user = calling_user()
        if user not in {None, ROOT} and message.owner in {user, EVERYBODY}:
            raise Denied(f"'{user}' may not change what holds for '{user}'", remedy="ask who runs the node")
        self._quotas.set(message.owner, message.quota)
        await asyncio.to_thread(self._write_live)
        self.log.info("the quota of '%s' is %s, set by %s", message.owner, _shown(message.quota), user or "the node")
        quotas = self._all_quotas()
        self.publish("memory.quotas", quotas)
        return [quota for quota in quotas.quotas if quota.owner == message.owner]

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:  # noqa: ARG002
        """The quotas that were set live."""
        only_root("exports quotas")
        if live := self._quotas.live:
            for piece in pieces_of(LIVE, msgspec.json.encode(live)):
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Have the quotas of another node hold here."""
        check_restoring(self)
        if (content := await read_entry(inputs, self.name, LIVE, most=LARGEST_LIVE)) is not None:
            _live_of(content, f"the backup's {LIVE}")
            await asyncio.to_thread(put_file, self._live_file, content)
        yield Imported()

    @every(LOOK)
    async def watch(self) -> None:
        """See how much is free on each device, and tell when it is on another rung."""
        if self._ladders:
            for device in convert(await self.call("devices.list"), list[Device]):
                if device.name in self._ladders:
                    self._look(self._ladders[device.name], device)

    @on("service.*.*")
    async def reclaim(self, event: Event) -> None:
        """What a service had reserved is free once its incarnation is gone."""
        if event.body["state"] in {"restarting", "stopped", "quarantined"}:
            for reservation in self._accounts.release_owner(event.body["name"]):
                self.log.info("%s is free again: '%s' has stopped", reservation.purpose, reservation.owner)

    def _look(self, ladder: Ladder, device: Device) -> None:
        """Let the ladder see what this node has of a device, of what it could have."""
        used = self._accounts.used(device.name, Tier.DEVICE)
        could = used + device.memory_free_bytes + self._accounts.spare(device.name, Tier.DEVICE)
        limit = min(could, self._accounts.limit(device.name, Tier.DEVICE))
        if not ladder.look(used, limit):
            return
        pressure = ladder.pressure
        self.log.log(
            30 if pressure.rung >= Rung.CLOSE else 20,
            "memory of %s: %s of %s are used (%s)",
            device.name,
            in_units(pressure.used),
            in_units(pressure.limit),
            pressure.rung.name.lower(),
        )
        self.publish("memory.pressure", pressure)

    def _described(self, account: Account) -> Account:
        """An account with its rung and with its owners' quotas, also of those who have nothing."""
        if account.tier is not Tier.DEVICE:
            return account
        named = {quota.owner for quota in self._all_quotas().quotas} - {EVERYBODY}
        uses = {name: OwnerUse(owner=name, bytes=0) for name in named} | {use.owner: use for use in account.owners}
        owners = tuple(
            msgspec.structs.replace(use, quota=self._quotas.bytes(name, account.limit_bytes))
            for name, use in sorted(uses.items())
        )
        ladder = self._ladders.get(account.device)
        rung = Rung.CALM if ladder is None else ladder.pressure.rung
        return msgspec.structs.replace(account, owners=owners, rung=rung)

    def _all_quotas(self) -> Quotas:
        devices = [(name, self._accounts.limit(name, Tier.DEVICE)) for name in self._ladders]
        return Quotas(self._quotas.all(devices))

    async def _available(self, device: str, tier: Tier) -> int | None:
        """What can be had of a tier now, as far as its device or file system knows."""
        if tier is Tier.DISK:
            return (await asyncio.to_thread(shutil.disk_usage, self.state_dir)).free
        return convert(await self.call("devices.show", name=device), Device).memory_free_bytes

    async def _open_accounts(self) -> None:
        if self._ladders:
            return
        disk = await asyncio.to_thread(shutil.disk_usage, self.state_dir)
        for device in convert(await self.call("devices.list"), list[Device]):
            if device.answers:
                continue  # nothing of ours is there
            self._accounts.open(device.name, Tier.DEVICE, int(device.memory_bytes * self.settings.share))
            self._accounts.open(device.name, Tier.DISK, int(disk.total * self.settings.share))
            self._ladders[device.name] = Ladder(device.name, self.settings.rungs, self.settings.margin)

    def _read_live(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        try:
            content = self._live_file.read_bytes()
        except FileNotFoundError:
            return
        for owner, quota in _live_of(content, str(self._live_file)).items():
            self._quotas.set(owner, quota)

    def _write_live(self) -> None:
        fresh = self._live_file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(self._quotas.live))
        fresh.replace(self._live_file)

    @property
    def _live_file(self) -> Path:
        return self.state_dir / LIVE


def _live_of(content: bytes, where: str) -> dict[str, int | float]:
    """Quotas by owner. Raises `DataLoss` that says `where` they are damaged."""
    try:
        live = msgspec.json.decode(content, type=dict[str, int | float])
        checked = OwnerQuotas({}, None)
        for owner, quota in live.items():
            checked.set(owner, quota)
    except (msgspec.MsgspecError, UnicodeDecodeError, Invalid) as error:
        raise DataLoss(
            f"{where}: the quotas that were set live cannot be read: {error}", remedy="delete the file"
        ) from error
    return live


def _shown(quota: int | float | None) -> str:
    if quota is None:
        return "what the settings say"
    return f"{quota:.0%} of each device" if isinstance(quota, float) else in_units(quota)
