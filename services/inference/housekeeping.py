"""What the inference service tells memory of its models, and what it does when memory is short.

Reports go out when something has changed, every half second at most; the answer says how short memory is. What a rung
asks for is done on the device's thread, between two steps, the models that were asked least recently first. While a
rung holds, it is done again with each report.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable, Iterable

from microkernel.errors import MicrokernelError, Overloaded
from microkernel.message import convert
from microkernel.service import Service
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.engine.relief import PagesUse, Relief
from services.inference.loaded import Loaded
from services.memory.messages import (
    EVERYBODY,
    Holding,
    OwnerUse,
    Pressure,
    Quotas,
    ReportUse,
    Rung,
    Tier,
    in_units,
)

__all__ = ["Housekeeping", "holding_of"]

COLD = 30.0  # seconds that nobody has asked a model before it leaves because memory is short
COME_BACK = 2.0  # seconds: some looks at what is free, and some answers that have ended
MOST_OWNERS = 256  # that are told of by name, those with the most pages
SAVED = "saved contexts"


class Housekeeping:
    """The models of one device, as memory sees them."""

    def __init__(
        self,
        service: Service,
        device: str,
        ledger: Ledger,
        models: Callable[[], Iterable[Loaded]],
        rest: Callable[[Loaded, str], Awaitable[None]],
    ) -> None:
        """`models` are those on the device; `rest` takes one off it, and is told why."""
        self.saved: SavedPages | None = None
        self.beside: dict[str, Holding] = {}  # what else there is on the device, by name
        self._service = service
        self._device = device
        self._ledger = ledger
        self._models = models
        self._rest = rest
        self._pressure = Pressure(device=device, rung=Rung.CALM, used=0, limit=0)
        self._told: object = None  # what the last report was about
        self._one_at_a_time = asyncio.Lock()

    def check_open(self) -> None:
        """Raise `Overloaded` where memory is so short that nothing new begins beside what runs."""
        pressure = self._pressure
        if pressure.rung >= Rung.CLOSE and any(loaded.runner.generations for loaded in self._models()):
            raise Overloaded(
                f"memory of {self._device} is short: {in_units(pressure.used)} of the {in_units(pressure.limit)} that "
                "this node could have are used",
                remedy="come back when answers have ended",
                retry_after=COME_BACK,
            )

    async def learn_quotas(self) -> None:
        """Ask memory for all quotas, and have running engines keep them from now on."""
        await self.keep(convert(await self._service.call("memory.quotas"), Quotas))

    async def keep(self, quotas: Quotas) -> None:
        """Have running engines keep these quotas."""
        limits = {quota.owner: quota.bytes for quota in quotas.quotas if quota.device == self._device}
        everybody = limits.pop(EVERYBODY, None)
        await self._service.executor(self._device).run(self._ledger.set_limits, limits, everybody)

    async def tick(self) -> bool:
        """Report what has changed, and go on with what the rung asks for; returns whether something had changed."""
        stand = [(loaded.name, loaded.runner.steps, loaded.pages, tuple(loaded.adapters)) for loaded in self._models()]
        stand_beside = tuple(self.beside)
        stand_of_disk = 0 if self.saved is None else self.saved.nbytes
        calm = self._pressure.rung is Rung.CALM
        if calm and (stand, stand_beside, stand_of_disk) == self._told:
            return False
        try:
            await self._report()
            if not (calm and self._pressure.rung is Rung.CALM):
                await self._relieve()
        except MicrokernelError as error:
            self._service.log.warning("memory was not told what models take: %s", error)
            return False
        self._told = (stand, stand_beside, stand_of_disk)
        return True

    async def press(self, pressure: Pressure) -> None:
        """Do what a new rung asks for, at once."""
        if pressure.device == self._device:
            self._pressure = pressure
            await self._relieve()

    async def _report(self) -> None:
        uses = [(loaded, await loaded.with_pages(Relief.use)) for loaded in tuple(self._models())]
        holdings = [holding_of(loaded, use, self._device) for loaded, use in uses if use is not None]
        report = ReportUse(device=self._device, holdings=(*holdings, *self.beside.values()))
        self._pressure = convert(await self._service.call("memory.report", report), Pressure)
        if self.saved is not None:
            on_disk = Holding(name=SAVED, device=self._device, resident_bytes=self.saved.nbytes)
            report = ReportUse(device=self._device, tier=Tier.DISK, holdings=(on_disk,))
            await self._service.call("memory.report", report)

    async def _relieve(self) -> None:
        """Do what the rung asks for; each rung does what those below it do, too."""
        async with self._one_at_a_time:
            rung, excess = self._pressure.rung, self._pressure.excess
            models = sorted(self._models(), key=lambda loaded: loaded.asked_at)
            for loaded in models:
                await loaded.with_pages(lambda relief: relief.admit(rung < Rung.CLOSE))
            if rung >= Rung.DROP:
                for loaded in models:
                    excess -= await loaded.with_pages(_freed(Relief.give_back)) or 0
                for loaded in models:
                    excess -= await self._drop(loaded, excess)
            if rung >= Rung.MOVE and excess > 0:
                for loaded in models:
                    excess -= await loaded.with_pages(_freed(Relief.move_cold)) or 0
                    excess -= await self._drop(loaded, excess)
                await self._rest_idle(models)
            if rung >= Rung.PAUSE and excess > 0:
                await self._pause_one(models)
            self._told = None  # what was done is told at the next look

    async def _drop(self, loaded: Loaded, excess: int) -> int:
        """Have a model forget cached pages, as many as make up for `excess`; returns how many bytes came free."""
        if excess <= 0:
            return 0

        def drop(relief: Relief) -> None:
            relief.shrink(math.ceil(excess / relief.page_bytes))

        return await loaded.with_pages(_freed(drop)) or 0

    async def _rest_idle(self, models: list[Loaded]) -> None:
        """Take models off the device that nobody has asked for a while; never the one that was asked last."""
        now = self._service.clock.now()
        for loaded in models[:-1]:
            if loaded.idle and now - loaded.asked_at > COLD:
                await self._rest(loaded, "gives its memory back")

    async def _pause_one(self, models: list[Loaded]) -> None:
        """Pause one sequence of the model that runs most."""
        for loaded in sorted(models, key=lambda each: each.runner.running, reverse=True):
            if await loaded.with_pages(Relief.pause_cheapest):
                self._service.log.warning("an answer of '%s' is paused: memory is short", loaded.name)
                return


def holding_of(loaded: Loaded, use: PagesUse, device: str) -> Holding:
    """A model as memory counts it, with its adapters and the model that guesses for it."""
    status, page = use.status, use.page_bytes
    largest = heapq.nlargest(MOST_OWNERS, status.owners.items(), key=lambda item: (item[1].used, item[1].hits))
    weights = loaded.size.weight_bytes + sum(adapter.bytes for adapter in loaded.adapters.values())
    buffers = loaded.size.buffer_bytes
    return Holding(
        name=loaded.name,
        device=device,
        weight_bytes=weights,
        buffer_bytes=buffers,
        held_bytes=status.held * page,
        cached_bytes=status.cached * page,
        free_bytes=status.free * page,
        resident_bytes=weights + buffers + use.resident_bytes + use.beside_bytes,
        spare_bytes=use.spare_bytes,
        owners=tuple(
            OwnerUse(owner=owner, bytes=account.used * page, hits=account.hits, misses=account.misses)
            for owner, account in largest
        ),
    )


def _freed(work: Callable[[Relief], object]) -> Callable[[Relief], int]:
    """`work`, and how many bytes fewer count as taken after it."""

    def measured(relief: Relief) -> int:
        before = relief.resident_bytes
        work(relief)
        return before - relief.resident_bytes

    return measured
