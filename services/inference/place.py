"""Devices as the inference service has them: what computes there, what models take, and who gives way to whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import torch

from microkernel.errors import MicrokernelError
from microkernel.service import Service
from services.devices.messages import Device
from services.inference.cache.ledger import Ledger
from services.inference.decoders import Computing
from services.inference.housekeeping import Housekeeping
from services.inference.loaded import Loaded
from services.inference.room import Room
from services.inference.settings import InferenceSettings
from services.memory.messages import Holding, Pressure, Quotas, Reservation

__all__ = ["Place", "Places"]


class Place:
    """A device with its models; `ledger` counts what owners have of it, over all of them."""

    def __init__(
        self,
        service: Service,
        device: str,
        computing: Computing,
        models: Callable[[], Iterable[Loaded]],
        rest: Callable[[Loaded, str], Awaitable[None]],
        wanted: Callable[[Loaded], bool],
    ) -> None:
        """`models` are all that are loaded, `rest` takes one off, `wanted` says that one stays."""
        self.device = device
        self.computing = computing
        self.ledger = Ledger()

        def here() -> list[Loaded]:
            return [loaded for loaded in models() if loaded.device == device]

        self.memory = Housekeeping(service, device, self.ledger, here, rest)
        self.room = Room(service, device, here, rest, wanted)


class Places:
    """All devices that models were put on."""

    def __init__(
        self,
        service: Service,
        settings: InferenceSettings,
        models: Callable[[], Iterable[Loaded]],
        rest: Callable[[Loaded, str], Awaitable[None]],
        wanted: Callable[[Loaded], bool],
    ) -> None:
        """Arguments as of `Place`."""
        self._service = service
        self._settings = settings
        self._models = models
        self._rest = rest
        self._wanted = wanted
        self._places: dict[str, Place] = {}

    async def at(self, device: Device) -> Place:
        """The place of `device`, made when the first model goes there."""
        if device.name not in self._places:
            computing = Computing(
                torch.device(device.torch_device),
                device.cores,
                self._service.state_dir,
                spread=device.spread,
                kernels=self._settings.kernels,
                flex=self._settings.flex,
                page_dtype=self._settings.page_dtype,
            )
            self._places[device.name] = place = Place(
                self._service, device.name, computing, self._models, self._rest, self._wanted
            )
            await place.memory.learn_quotas()
        return self._places[device.name]

    def spread(self, device: str, threads: int) -> None:
        """Have models that are put on a device from now on spread torch's operations over so many threads."""
        if device in self._places:
            self._places[device].computing.spread = threads

    async def reserve(self, purpose: str, size: int, device: str) -> Reservation:
        """Memory on a device, from what is free and what its models do not use. Raises `Overloaded`."""
        return await self._places[device].room.reserve(purpose, size)

    async def give_back(self, device: str, reservation: Reservation) -> None:
        """What was reserved on a device is needed no more."""
        await self._places[device].room.give_back([reservation])

    async def left(self, loaded: Loaded) -> None:
        """A model has left its device: what was reserved for it and its adapters is free."""
        reserved = [*loaded.reservations, *loaded.adapters.values(), loaded.pages]
        await self._places[loaded.device].room.give_back(reserved)

    def hold(self, holding: Holding) -> None:
        """Count what is on a device beside the models that write."""
        self._places[holding.device].memory.beside[holding.name] = holding

    def let_go(self, device: str, name: str) -> None:
        """What was counted under that name has left the device."""
        self._places[device].memory.beside.pop(name, None)

    def check_open(self, device: str) -> None:
        """Raise `Overloaded` where memory of a device is so short that nothing new begins beside what runs."""
        self._places[device].memory.check_open()

    async def keep_quotas(self, quotas: Quotas) -> None:
        """Have what runs keep these quotas."""
        for place in tuple(self._places.values()):
            await place.memory.keep(quotas)

    async def press(self, pressure: Pressure) -> None:
        """Do what a new rung asks for, at once."""
        place = self._places.get(pressure.device)
        if place is not None:
            await place.memory.press(pressure)

    async def look_after_memory(self) -> None:
        """Tell memory what has changed, do what it asks for, and let models have the pages that they need."""
        for place in tuple(self._places.values()):
            if await place.memory.tick():
                try:
                    await place.room.spread()
                except MicrokernelError as error:
                    self._service.log.warning("pages stay as they are: %s", error)

    async def close(self) -> None:
        """End the threads of all devices."""
        for name, place in self._places.items():
            with suppress(MicrokernelError):  # its device has gone, and its threads with it
                await self._service.executor(name).finish(place.computing.close)
