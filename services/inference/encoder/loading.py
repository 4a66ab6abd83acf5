"""The encoders of the inference service by name: each is loaded when it is first asked, and stays until it is unloaded,
or memory is short.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from microkernel.errors import MicrokernelError, NotFound, Unavailable, from_exception, from_report
from microkernel.service import Service
from services.devices.messages import Device
from services.inference.encoder.bert import BertEncoder, weight_bytes, working_bytes
from services.inference.encoder.config import ARCHITECTURE
from services.inference.encoder.folder import open_encoder
from services.inference.encoder.loaded import TOKEN_BUDGET, LoadedEncoder
from services.inference.messages import LoadedModel
from services.inference.place import Places
from services.inference.placement import devices_for
from services.inference.settings import InferenceSettings
from services.inference.stored_models import StoredModels
from services.memory.messages import Holding, Pressure, Rung
from services.models.messages import Model

__all__ = ["AT_ONCE", "LoadedEncoders", "is_encoder"]

AT_ONCE = 32  # requests whose texts are computed in turn; others wait


class LoadedEncoders:
    """What one incarnation of the service has."""

    def __init__(self, service: Service, settings: InferenceSettings, places: Places, stored: StoredModels) -> None:
        self._service = service
        self._settings = settings
        self._places = places
        self._stored = stored
        self._loaded: dict[str, LoadedEncoder] = {}
        self._loading: dict[str, asyncio.Task[LoadedEncoder | MicrokernelError]] = {}

    async def get(self, name: str | None) -> LoadedEncoder:
        """The encoder of that name, loaded if it is stored; None is the one in the settings, pulled if it can be.

        Raises `NotFound`, and whatever is in the way of loading it.
        """
        default = self._settings.embedding_model
        wanted = default if name in {None, default, default.removeprefix("pypi:")} else str(name)
        for loaded in self._loaded.values():
            if wanted in {loaded.name, loaded.ref}:
                return loaded
        ref = wanted if wanted == default else await self._ref_of(wanted)
        task = self._loading.get(ref)
        if task is None:
            task = self._loading[ref] = self._service.spawn(self._load(ref), name=f"load {ref}")
        outcome = await asyncio.shield(task)
        if isinstance(outcome, MicrokernelError):
            raise from_report(outcome.report())  # an error of its own for each who waits
        return outcome

    def check_open(self, loaded: LoadedEncoder) -> None:
        """Raise `Overloaded` where memory of its device is so short that nothing new begins beside what runs."""
        self._places.check_open(loaded.device)

    def find(self, name: str) -> LoadedEncoder | None:
        """A loaded encoder by its name."""
        return self._loaded.get(name)

    async def unload(self, loaded: LoadedEncoder) -> None:
        """Take an encoder off its device; who waits for its vectors gets `Unavailable`."""
        if self._loaded.get(loaded.name) is not loaded:
            return
        del self._loaded[loaded.name]
        await loaded.close()
        for reservation in loaded.reservations:
            await self._places.give_back(loaded.device, reservation)
        self._places.let_go(loaded.device, loaded.name)
        self._service.publish("inference.unloaded", model=loaded.name)

    def leave(self, device: str) -> None:
        """Take all encoders off a lost device; nobody waits for their end."""
        for loaded in self._on(device):
            self._service.spawn(self.unload(loaded), name=f"unload {loaded.name}")

    async def press(self, pressure: Pressure) -> None:
        """Where memory is short, encoders that nobody asks leave; they are loaded again when they are asked."""
        if pressure.rung < Rung.MOVE:
            return
        for loaded in self._on(pressure.device):
            if loaded.idle:
                self._service.log.info("model '%s' gives its memory back", loaded.name)
                await self.unload(loaded)

    def shown(self) -> dict[str, LoadedModel]:
        """The loaded ones by name."""
        return {name: loaded.describe() for name, loaded in self._loaded.items()}

    async def close(self) -> None:
        """Unload all."""
        await asyncio.gather(*(self.unload(loaded) for loaded in tuple(self._loaded.values())))

    def _on(self, device: str) -> list[LoadedEncoder]:
        return [loaded for loaded in self._loaded.values() if loaded.device == device]

    async def _ref_of(self, name: str) -> str:
        """What a model that is stored, or the one in the settings, is found by. Raises `NotFound`."""
        if name in {model.name for model in await self._stored.all()}:
            return name
        default = self._settings.embedding_model
        known = await self._stored.known(default)
        if known is None or known.name != name:
            raise NotFound(f"no model is named '{name}'", field="model", remedy="see `mk models` or GET /v1/models")
        return default

    async def _load(self, ref: str) -> LoadedEncoder | MicrokernelError:
        """The loaded encoder, or the error: one that cannot be loaded is no reason to restart the service."""
        try:
            loaded = await self._put(await self._stored.find(ref))
        except Exception as error:  # noqa: BLE001 - given to all who wait for this model
            failure = from_exception(error, service=self._service.name)
            self._service.log.error("model '%s' cannot be loaded: %s", ref, failure)  # noqa: TRY400 - one line, no trace
            return failure
        finally:
            del self._loading[ref]
        self._service.publish("inference.loaded", loaded.describe())
        return loaded

    async def _put(self, model: Model) -> LoadedEncoder:
        """The encoder on the first device that takes it. Raises whatever the last one says."""
        if model.name in self._loaded:  # asked by another ref
            return self._loaded[model.name]
        failure: MicrokernelError = Unavailable("there is no device")
        for device in await devices_for(self._service, self._settings.device):
            try:
                return await self._put_on(model, device)
            except Exception as error:  # noqa: BLE001 - whatever a device's library raises, another may do
                failure = from_exception(error, service=self._service.name)
                self._service.log.warning("model '%s' is not put on %s: %s", model.name, device.name, failure.message)
        raise failure

    async def _put_on(self, model: Model, device: Device) -> LoadedEncoder:
        began = self._service.clock.now()
        executor = self._service.executor(device.name)
        await self._places.at(device)
        self._service.publish("inference.loading", model=model.name, stage="reading")
        folder = await executor.run(open_encoder, Path(model.path))
        sizes = {
            "weights": await executor.run(weight_bytes, folder),
            "buffers": working_bytes(folder.config, max(TOKEN_BUDGET, folder.config.longest), AT_ONCE),
        }
        loaded: LoadedEncoder | None = None
        reservations = []
        try:
            for purpose, size in sizes.items():
                purpose = f"{purpose} of '{model.name}'"  # noqa: PLW2901 - as people read it
                reservations.append(await self._places.reserve(purpose, size, device.name))
            self._service.publish("inference.loading", model=model.name, stage="loading", bytes=sizes["weights"])
            encoder = await executor.run(BertEncoder, folder, torch.device(device.torch_device))
            loaded = LoadedEncoder(model.name, model.ref, folder, encoder, executor, sizes["weights"])
            loaded.reservations = reservations
            await loaded.warm()
        except BaseException:
            if loaded is not None:
                await loaded.close()
            for reservation in reservations:
                await self._places.give_back(device.name, reservation)
            raise
        self._loaded[model.name] = loaded
        self._places.hold(_holding(loaded, sizes["weights"], sizes["buffers"]))
        seconds = self._service.clock.now() - began
        self._service.log.info("model '%s' is ready on %s after %.1f s", model.name, device.name, seconds)
        return loaded


def is_encoder(model: Model) -> bool:
    """Whether a stored model makes vectors, as far as the store knows."""
    return model.architecture == ARCHITECTURE


def _holding(loaded: LoadedEncoder, weights: int, buffers: int) -> Holding:
    """An encoder as memory counts it."""
    return Holding(
        name=loaded.name,
        device=loaded.device,
        weight_bytes=weights,
        buffer_bytes=buffers,
        resident_bytes=weights + buffers,
    )
