"""The models of the inference service by name: which are loaded, are being loaded, rest, or are only stored."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from microkernel.errors import (
    AlreadyExists,
    Invalid,
    MicrokernelError,
    NotFound,
    from_exception,
    from_report,
)
from microkernel.service import Service
from services.inference.encoder.loading import LoadedEncoders, is_encoder
from services.inference.loaded import Loaded
from services.inference.loaded_adapters import Asked, LoadedAdapters
from services.inference.loader import Loader
from services.inference.messages import LoadedModel
from services.inference.place import Places
from services.inference.settings import InferenceSettings
from services.inference.stored_models import StoredModels
from services.models.messages import Model

__all__ = ["LoadedModels"]

CLOSE_TIMEOUT = 4.0  # seconds for the steps that run to end; 5 are what a service has to stop


class LoadedModels:
    """What one incarnation of the service has. `default` answers who names none."""

    def __init__(self, service: Service, settings: InferenceSettings, numbers: itertools.count[int]) -> None:
        """`numbers` gives each answer one, and each first token."""
        self.default: str | None = None
        self._service = service
        self._settings = settings
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[Loaded | MicrokernelError]] = {}
        self._unloading: dict[Loaded, asyncio.Task[None]] = {}
        self._failed: dict[str, str] = {}
        self._resting: dict[str, str] = {}  # refs of models that made room for others and are loaded when asked
        self._ready = asyncio.Event()
        self._waited_for: Counter[str] = Counter()  # by name: who waits for a model is to find it
        self._stored = StoredModels(service)
        self.places = Places(service, settings, self._loaded.values, self._rest, self._is_waited_for)
        self._loader = Loader(service, settings, self.places, self._stored, numbers)
        self.adapters = LoadedAdapters(service, settings, self, self._stored, self.places)
        self.encoders = LoadedEncoders(service, settings, self.places, self._stored)

    async def load_default(self) -> None:
        """Load the model that answers who names none, before which they wait; then its adapters."""
        loaded = await self.load(self._settings.model)
        for name, ref in self._settings.adapters.items():
            await self.adapters.load(ref, loaded.name, name)
        self.default = loaded.name
        self._ready.set()

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    def answer_elsewhere(self, name: str) -> None:
        """Have a model that other devices serve be the one that answers who names none."""
        self.default = name
        self._ready.set()

    async def is_here(self, name: str) -> bool:
        """Whether that is a model or an adapter of this node, loaded or not."""
        if name in self._loaded or name in self.adapters or name in self._loading or name in self._resting:
            return True
        return name in await self._stored.names()

    async def default_name(self) -> str:
        """The model that answers who names none, once it is there."""
        await self._ready.wait()
        assert self.default is not None
        return self.default

    def stored_anew(self) -> None:
        """Other models are stored than before."""
        self._stored.forget()

    def find(self, name: str) -> Loaded:
        """A loaded model by its name. Raises `NotFound`."""
        loaded = self._loaded.get(name)
        if loaded is None:
            raise NotFound(f"model '{name}' is not loaded", field="name")
        return loaded

    def all(self) -> tuple[Loaded, ...]:
        """All that are loaded."""
        return tuple(self._loaded.values())

    async def asked(self, name: str | None) -> Asked:
        """The model or adapter of that name. Raises `NotFound`."""
        if self.default is None and name not in self._loaded:
            await self._ready.wait()
        if name is not None and name in self.adapters:
            return await self.adapters.get(name)
        return Asked(await self.get(name))

    async def get(self, name: str | None) -> Loaded:
        """The model of that name, loaded if it is stored. Raises `NotFound`."""
        if name is None:
            await self._ready.wait()
            name = self.default
        loaded = self._loaded.get(name or "")
        if loaded is not None:
            return loaded
        if name in self._resting:  # also at the start: the default model may have made room before its adapters came
            return await self.load(self._resting[name])
        if self.default is None:
            await self._ready.wait()
            return await self.get(name)
        if name not in {model.name for model in await self._stored.all() if model.kind != "adapter"}:
            raise NotFound(f"no model is named '{name}'", field="model", remedy="see `mk models` or GET /v1/models")
        return await self.load(str(name))

    async def load(self, ref: str) -> Loaded:
        """Load once, however many ask at the same time."""
        model = await self._stored.find(ref)
        if model.name in self._loaded:
            return self._loaded[model.name]
        if model.kind == "adapter":
            raise Invalid(f"'{model.name}' is an adapter", field="ref", remedy="call inference.load_adapter")
        if model.name in self.adapters:
            raise AlreadyExists(f"'{model.name}' is the name of an adapter", field="ref", remedy="unload that first")
        task = self._loading.get(model.name)
        if task is None:
            task = self._loading[model.name] = self._service.spawn(self._load_model(model), name=f"load {model.name}")
        self._waited_for[model.name] += 1
        try:
            outcome = await asyncio.shield(task)
        finally:
            self._waited_for[model.name] -= 1
        if isinstance(outcome, MicrokernelError):
            raise from_report(outcome.report())  # an error of its own for each who waits
        return outcome

    async def unload(self, loaded: Loaded) -> None:
        """Take a model off the device; its answers end with `Unavailable`. Who comes second waits for the first."""
        self._begin_to_unload(loaded, rests=False)
        await self._unloaded(loaded)

    def leave(self, device: str) -> None:
        """Take all models off `device`, which is lost; each is loaded again when it is asked.

        Nobody waits for their end: the device may never get to it.
        """
        for loaded in [loaded for loaded in self._loaded.values() if loaded.device == device]:
            self._service.log.warning("model '%s' leaves %s", loaded.name, device)
            self._begin_to_unload(loaded, rests=True)
        self.encoders.leave(device)

    async def shown(self) -> list[LoadedModel]:
        """All models and adapters that can be asked, the default one first."""
        shown = {name: self.describe(loaded) for name, loaded in self._loaded.items()}
        shown |= {adapter.name: adapter for adapter in self.adapters.shown()}
        shown |= self.encoders.shown()
        for name in self._loading:
            shown.setdefault(name, LoadedModel(name=name, state="loading"))
        for name in self._resting:
            shown.setdefault(name, LoadedModel(name=name, state="stored", default=name == self.default))
        for model in await self._stored.all():
            if model.kind == "adapter":
                continue  # for which model it is, only who loads it knows
            why = self._failed.get(model.name, "")
            shown.setdefault(
                model.name,
                LoadedModel(
                    name=model.name,
                    state="failed" if why else "stored",
                    why=why,
                    created=int(model.pulled_at),
                    embeds=is_encoder(model),
                ),
            )
        return sorted(shown.values(), key=lambda model: (not model.default, model.state != "ready", model.name))

    async def close(self) -> None:
        """Unload all, and end the threads of their devices and of the disk; a device that does not answer is left."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                leaving = (*self._unloading, *self._loaded.values())
                await asyncio.gather(self.encoders.close(), *(self._take_off(loaded) for loaded in leaving))
                await self.places.close()
        except TimeoutError:
            self._service.log.warning("models leave when their devices get to it: they have not in %g s", CLOSE_TIMEOUT)
        await self._loader.close()

    async def names(self) -> set[str]:
        """All names of models, loaded or stored."""
        stored = {model.name for model in await self._stored.all() if model.kind != "adapter"}
        return {*self._loaded, *self._loading, *self._resting, *stored}

    def has(self, loaded: Loaded) -> bool:
        """Whether the model is still on its device."""
        return self._loaded.get(loaded.name) is loaded

    def describe(self, loaded: Loaded) -> LoadedModel:
        """A loaded model as it is shown."""
        return loaded.describe(default=loaded.name == self.default)

    async def _load_model(self, model: Model) -> Loaded | MicrokernelError:
        """The loaded model, or the error: a model that cannot be loaded is no reason to restart the service."""
        try:
            loaded = await self._loader.put(model, self._enter)
        except Exception as error:  # noqa: BLE001 - given to all who wait for this model
            failure = from_exception(error, service=self._service.name)
            self._failed[model.name] = failure.message
            self._service.log.error("model '%s' cannot be loaded: %s", model.name, failure)  # noqa: TRY400 - one line, no trace
            return failure
        finally:
            del self._loading[model.name]
        self._failed.pop(model.name, None)
        self._service.publish("inference.loaded", self.describe(loaded))
        return loaded

    def _enter(self, loaded: Loaded) -> None:
        self._loaded[loaded.name] = loaded
        self._resting.pop(loaded.name, None)

    async def _rest(self, loaded: Loaded, why: str) -> None:
        """Take a model off the device until it is asked again. One that leaves already is only waited for."""
        if self.has(loaded):
            self._service.log.info("model '%s' %s", loaded.name, why)
            self._begin_to_unload(loaded, rests=True)
        await self._unloaded(loaded)

    def _begin_to_unload(self, loaded: Loaded, *, rests: bool) -> None:
        """From here on it is not found any more; nothing where that has begun already."""
        if not self.has(loaded):
            return
        # In a task of the service: who asked may not wait for its end, and its memory is given back all the same.
        self._unloading[loaded] = self._service.spawn(self._take_off(loaded), name=f"unload {loaded.name}")
        del self._loaded[loaded.name]
        if rests:
            self._resting[loaded.name] = loaded.ref
        self.adapters.leave(loaded, rests=rests)

    async def _unloaded(self, loaded: Loaded) -> None:
        """Wait until a model that leaves has left."""
        task = self._unloading.get(loaded)
        if task is not None:
            await asyncio.shield(task)

    async def _take_off(self, loaded: Loaded) -> None:
        await loaded.close()
        await self.places.left(loaded)
        self._unloading.pop(loaded, None)
        self._service.publish("inference.unloaded", model=loaded.name)

    def _is_waited_for(self, loaded: Loaded) -> bool:
        return self._waited_for[loaded.name] > 0
