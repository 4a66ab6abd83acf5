"""Room on one device for all of its models: what each has reserved, and who gives way to whom.

A model reserves weights, buffers and pages, each by itself. Of pages it reserves as many as its requests could come to
need, and those that are not in use go to who needs them: a model that is being loaded, or one whose requests wait. So
models that would not fit side by side at their largest share a device at the sizes that they have.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from microkernel.errors import MicrokernelError, NotFound, Overloaded
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device
from services.inference.engine.relief import PagesUse, Relief
from services.inference.fitting import Neighbour, Wish, too_large
from services.inference.loaded import Loaded
from services.inference.opened import Fit
from services.memory.messages import Account, Reservation, Reserve, Resize, Tier

__all__ = ["Given", "Room", "release", "wanted_pages"]

SHORTEST = 1024  # tokens of a context without which no model is loaded
CROWDED = 0.8  # share of its pages in use from which a model gets more


class Given(msgspec.Struct, frozen=True):
    """What a model was given: its size, and the reservations for it."""

    size: Fit
    fixed: list[Reservation]
    pages: Reservation


class Room:
    """The models of one device, as far as memory is concerned."""

    def __init__(
        self,
        service: Service,
        device: str,
        models: Callable[[], Iterable[Loaded]],
        rest: Callable[[Loaded, str], Awaitable[None]],
        wanted: Callable[[Loaded], bool],
    ) -> None:
        """`models` are those on the device, `rest` takes one off it and says for what, `wanted` says that it stays."""
        self._service = service
        self._device = device
        self._models = models
        self._rest = rest
        self._wanted = wanted
        self._one_at_a_time = asyncio.Lock()  # what was found to be free is still free when it is reserved

    async def take(self, name: str, size: Fit, parameters: int) -> Given:
        """Reserve all that a model takes, at the expense of idle ones where need be.

        First go pages of others that are not in use, then what is only cached, then models that nobody asks, the least
        recently asked first: they are loaded again when they are asked, in a moment, and find their long contexts on
        disk. Where that is not enough, the context becomes shorter. Raises `Overloaded` that says what would help.
        """
        wish = Wish(
            name=name,
            device=self._device,
            weight_bytes=size.weight_bytes,
            buffer_bytes=size.buffer_bytes,
            page_bytes=size.page_bytes,
            length=size.length,
            slots=size.slots,
            parameters=parameters,
        )
        shortest = min(size.length, SHORTEST)
        async with self._one_at_a_time:
            free = await self._make_room(wish, wish.fixed_bytes + size.cache_bytes)
            if free < wish.bytes_at(shortest):
                raise too_large(wish, shortest, free, [self._neighbour(loaded) for loaded in self._models()])
            return await self._reserve(wish, size, shortest)

    async def reserve(self, purpose: str, size: int) -> Reservation:
        """Memory for something beside a model, at the expense of pages that are not in use. Raises `Overloaded`."""
        async with self._one_at_a_time:
            for loaded in self._others(None):
                if await self._free() >= size:
                    break
                await self.squeeze(loaded, _with_slack)
            ask = Reserve(purpose=purpose, bytes=size, device=self._device)
            return convert(await self._service.call("memory.reserve", ask), Reservation)

    async def give_back(self, reservations: Iterable[Reservation | None]) -> None:
        """Reservations that are needed no more."""
        for reservation in reservations:
            if reservation is not None:
                await release(self._service, reservation.id)

    async def squeeze(self, loaded: Loaded, pages: Callable[[PagesUse], int]) -> int:
        """Let a model have fewer pages, as many as `pages` says; returns the bytes that are free for others then.

        Of one that leaves meanwhile there is nothing to take.
        """
        before = loaded.pages

        def resize(relief: Relief) -> int:
            use = relief.use()
            return relief.resize(min(pages(use), use.status.pages)) * use.page_bytes if use.elastic else -1

        left = await loaded.with_pages(resize)
        if before is None or left is None or not 0 <= left < before.bytes:
            return 0
        after = await self._resize(loaded, Resize(id=before.id, bytes=left))
        return 0 if after is None else before.bytes - after.bytes

    async def spread(self) -> None:
        """Let models that are short of pages have more of them, from what is free and what others do not use."""
        async with self._one_at_a_time:
            for loaded in tuple(self._models()):
                use = await loaded.with_pages(Relief.use)
                if use is not None and (wanted := wanted_pages(use)) > use.status.pages:
                    await self._grow(loaded, wanted, use)

    async def _grow(self, loaded: Loaded, pages: int, use: PagesUse) -> None:
        if loaded.pages is None:
            return
        size = pages * use.page_bytes
        missing = size - loaded.pages.bytes - await self._free()
        for other in self._others(loaded):
            if missing <= 0:
                break
            missing -= await self.squeeze(other, _with_slack)
        after = await self._resize(loaded, Resize(id=loaded.pages.id, bytes=size, at_least=loaded.pages.bytes))
        if after is not None:
            given = after.bytes // use.page_bytes
            await loaded.with_pages(lambda relief: relief.resize(given))

    async def _resize(self, loaded: Loaded, ask: Resize) -> Reservation | None:
        """Change what is reserved for a model's pages; None where it has left meanwhile, and given all of it back."""
        try:
            loaded.pages = convert(await self._service.call("memory.resize", ask), Reservation)
        except NotFound:
            if loaded in self._models():
                raise
            return None
        return loaded.pages

    async def _make_room(self, wish: Wish, size: int) -> int:
        """See that `size` bytes are free, at least those for one whole context; returns how many are."""
        least = wish.bytes_at(wish.length)
        free = await self._free()
        for enough, kept in ((size, _with_slack), (least, _held)):
            for loaded in self._others(None):
                if free >= enough:
                    return free
                await self.squeeze(loaded, kept)
                free = await self._free()
        idle = [loaded for loaded in self._others(None) if loaded.idle and not self._wanted(loaded)]
        theirs = sum(_bytes(loaded) for loaded in idle)
        if free + theirs < wish.bytes_at(min(wish.length, SHORTEST)):
            return free  # nobody goes in vain
        while idle and free < least:
            loaded = idle.pop(0)
            if loaded.idle and not self._wanted(loaded):  # still
                await self._rest(loaded, f"makes room for '{wish.name}'")
            del loaded  # and with it its weights
            free = await self._free()
        return free

    async def _reserve(self, wish: Wish, size: Fit, shortest: int) -> Given:
        fixed: list[Reservation] = []
        try:
            for purpose, count in (("weights", wish.weight_bytes), ("buffers", wish.buffer_bytes)):
                ask = Reserve(purpose=f"{purpose} of '{wish.name}'", bytes=count, device=self._device)
                fixed.append(convert(await self._service.call("memory.reserve", ask), Reservation))
            ask = Reserve(
                purpose=f"pages of '{wish.name}'",
                bytes=size.cache_bytes,
                device=self._device,
                at_least=wish.bytes_at(shortest) - wish.fixed_bytes,
            )
            pages = convert(await self._service.call("memory.reserve", ask), Reservation)
        except BaseException:
            await self.give_back(fixed)
            raise
        return Given(size.with_pages(pages.bytes // size.page_bytes * size.page_bytes), fixed, pages)

    def _others(self, loaded: Loaded | None) -> list[Loaded]:
        """All but one, the least recently asked first."""
        return sorted((each for each in self._models() if each is not loaded), key=lambda each: each.asked_at)

    def _neighbour(self, loaded: Loaded) -> Neighbour:
        return Neighbour(loaded.name, _bytes(loaded), not loaded.idle or self._wanted(loaded))

    async def _free(self) -> int:
        """What can be reserved now."""
        device = convert(await self._service.call("devices.show", name=self._device), Device)
        for account in convert(await self._service.call("memory.usage"), list[Account]):
            if (account.device, account.tier) == (self._device, Tier.DEVICE):
                return min(account.limit_bytes - account.reserved_bytes, device.memory_free_bytes)
        raise Overloaded(f"there is no memory account for {self._device}")


async def release(service: Service, reservation: int) -> None:
    """Give a reservation back, by its number. Memory that cannot be told reclaims it when this service has ended."""
    try:
        await service.call("memory.release", id=reservation, deadline=1.0)
    except MicrokernelError as error:
        service.log.warning("memory was not told of a release: %s", error)


def wanted_pages(use: PagesUse) -> int:
    """How many pages a model should have: twice as many where its requests wait or they are nearly all in use.

    One that nothing runs in needs no more, however many it has filled: it would take them from those at work.
    """
    taken = use.status.held + use.status.cached
    # Cached pages count: what is forgotten for want of room is computed again.
    crowded = use.waiting > 0 or (use.running > 0 and taken > CROWDED * use.status.pages)
    return min(use.most, 2 * use.status.pages) if crowded else use.status.pages


def _bytes(loaded: Loaded) -> int:
    """All that a model has reserved."""
    reserved = (*loaded.reservations, *loaded.adapters.values(), loaded.pages)
    return sum(each.bytes for each in reserved if each is not None)


def _with_slack(use: PagesUse) -> int:
    """The pages that are in use, and some for the next tokens of what runs."""
    taken = use.status.held + use.status.cached
    return math.ceil(taken / CROWDED) if use.running + use.waiting else taken


def _held(use: PagesUse) -> int:
    return use.status.held
