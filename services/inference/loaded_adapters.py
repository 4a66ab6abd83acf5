"""The adapters of the inference service: each is asked by a name of its own, and computed beside its model.

An adapter is loaded for one model. Where that model has to make room for another, its adapters go with it, and come
back with it when one of them is asked.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from formats.checkpoint.adapter import open_adapter
from microkernel.errors import (
    AlreadyExists,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
    from_exception,
)
from microkernel.service import Service
from services.inference.loaded import Loaded
from services.inference.messages import LoadedModel
from services.inference.place import Places
from services.inference.room import release
from services.inference.settings import InferenceSettings
from services.inference.stored_models import StoredModels
from services.models.messages import Model

__all__ = ["Asked", "LoadedAdapter", "LoadedAdapters", "ModelsOnDevice"]

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:/@-]{0,94}[A-Za-z0-9])?")


class ModelsOnDevice(Protocol):
    """What adapters need of the models."""

    def get(self, name: str | None) -> Awaitable[Loaded]:
        """The model of that name, loaded if it is stored; None is the default one."""
        ...

    def names(self) -> Awaitable[set[str]]:
        """All names of models, loaded or stored."""
        ...

    def has(self, loaded: Loaded) -> bool:
        """Whether the model is still on its device."""
        ...


class LoadedAdapter:
    """An adapter by its name. `loaded` is the model that it lies beside; None while that makes room for others."""

    def __init__(self, name: str, ref: str, digest: str, model: str) -> None:
        self.name = name
        self.ref = ref
        self.digest = digest  # of its files, as the store has it
        self.model = model
        self.loaded: Loaded | None = None
        self.number = 0  # what the engine calls it
        self.bytes = 0
        self.parameters = 0
        self.created = int(time.time())
        self.asking = 0  # answers that use it


class Asked(msgspec.Struct, frozen=True):
    """What a request's model name means: a model, or one with an adapter."""

    loaded: Loaded
    adapter: LoadedAdapter | None = None

    @property
    def name(self) -> str:
        """What it is asked by."""
        return self.loaded.name if self.adapter is None else self.adapter.name

    @property
    def number(self) -> int | None:
        """What the engine calls its adapter."""
        return None if self.adapter is None else self.adapter.number

    @contextmanager
    def stays(self) -> Iterator[None]:
        """It is not taken off the device, from here to the end of the block."""
        with self.loaded.asked():
            if self.adapter is None:
                yield
                return
            self.adapter.asking += 1
            try:
                yield
            finally:
                self.adapter.asking -= 1


class LoadedAdapters:
    """All that were loaded and not unloaded again."""

    def __init__(
        self,
        service: Service,
        settings: InferenceSettings,
        models: ModelsOnDevice,
        stored: StoredModels,
        places: Places,
    ) -> None:
        """Beside `models`, from what is `stored`, in memory of `places`."""
        self._service = service
        self._settings = settings
        self._models = models
        self._stored = stored
        self._places = places
        self._adapters: dict[str, LoadedAdapter] = {}
        # From where a name is found to be free until it is taken, and until what one took is given back. What may take
        # long, to pull files or to load a model, comes before.
        self._lock = asyncio.Lock()

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def find(self, name: str) -> LoadedAdapter:
        """An adapter by its name. Raises `NotFound`."""
        found = self._adapters.get(name)
        if found is None:
            raise NotFound(f"adapter '{name}' is not loaded", field="name")
        return found

    async def load(self, ref: str, model: str | None, name: str | None) -> LoadedAdapter:
        """Put the adapter `ref` beside a model, under `name`; the same once more is the one that is there.

        Raises `Invalid`, `NotFound`, `DataLoss`, `AlreadyExists` where the name is taken, and `Overloaded` where there
        are as many as may be, or memory is short.
        """
        return await self._in_task(self._load(ref, model, name), ref)

    async def get(self, name: str) -> Asked:
        """An adapter and its model, both on the device. Raises `NotFound`."""
        adapter = self.find(name)
        if adapter.loaded is None:
            adapter = await self._in_task(self._bring_back(adapter), name)
        if adapter.loaded is None:
            raise Unavailable(f"adapter '{name}' is being unloaded", retry_after=1.0, may_have_run=False)
        return Asked(adapter.loaded, adapter)

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Take an adapter off the device. Raises `PreconditionFailed` while answers use it."""
        async with self._lock:
            if adapter.asking:
                raise PreconditionFailed(
                    f"{adapter.asking} answers use the adapter '{adapter.name}'", remedy="let them end, or kill them"
                )
            if self._adapters.pop(adapter.name, None) is None:
                raise NotFound(f"adapter '{adapter.name}' is not loaded", field="name")
            loaded, adapter.loaded = adapter.loaded, None
            if loaded is not None:
                reservation = loaded.adapters.pop(adapter.number)
                try:
                    await loaded.remove_adapter(adapter.number)
                finally:
                    await release(self._service, reservation.id)
        self._service.publish("inference.adapter.unloaded", adapter=adapter.name, model=adapter.model)

    def leave(self, loaded: Loaded, *, rests: bool) -> None:
        """A model leaves the device, and its adapters with it; if it only rests, they are found again."""
        for adapter in tuple(self._adapters.values()):
            if adapter.loaded is loaded:
                adapter.loaded = None
            if adapter.model == loaded.name and not rests:
                self._adapters.pop(adapter.name, None)

    def shown(self) -> list[LoadedModel]:
        """All of them, as models are shown."""
        return [self.describe(adapter) for adapter in self._adapters.values()]

    def describe(self, adapter: LoadedAdapter) -> LoadedModel:
        """An adapter as models are shown."""
        loaded = adapter.loaded
        if loaded is None:
            return LoadedModel(name=adapter.name, state="stored", parent=adapter.model, created=adapter.created)
        return msgspec.structs.replace(
            loaded.describe(default=False),
            name=adapter.name,
            parent=adapter.model,
            parameters=adapter.parameters,
            weight_bytes=adapter.bytes,
            cache_bytes=0,
            created=adapter.created,
            running=adapter.asking,
            waiting=0,
        )

    async def _in_task(self, work: Awaitable[LoadedAdapter], what: str) -> LoadedAdapter:
        """Do it to its end, whoever stops waiting for it."""

        async def outcome() -> LoadedAdapter | MicrokernelError:
            try:
                return await work
            except Exception as error:  # noqa: BLE001 - given to who waits
                return from_exception(error, service=self._service.name)

        found: LoadedAdapter | MicrokernelError = await asyncio.shield(
            self._service.spawn(outcome(), name=f"adapter {what}")
        )
        if isinstance(found, MicrokernelError):
            raise found
        return found

    async def _load(self, ref: str, model: str | None, name: str | None) -> LoadedAdapter:
        stored = await self._stored.find(ref)
        if stored.kind != "adapter":
            raise Invalid(f"'{stored.name}' is a model, not an adapter", field="ref", remedy="call inference.load")
        loaded = await self._models.get(model)
        adapter = LoadedAdapter(name or stored.name, ref, stored.digest, loaded.name)
        with loaded.asked():  # it is not to make room for its own adapter
            async with self._lock:
                return await self._enter(adapter, loaded, stored)

    async def _enter(self, adapter: LoadedAdapter, loaded: Loaded, stored: Model) -> LoadedAdapter:
        """Put a new adapter beside its model and into the table; the same once more is the one that is there."""
        known = self._adapters.get(adapter.name)
        if known is not None and (known.digest, known.model) == (adapter.digest, adapter.model):
            return known if known.loaded is not None else await self._put(known, loaded, stored)
        await self._check_name(adapter.name, known)
        if len(self._adapters) >= self._settings.adapters_limit:
            raise Overloaded(
                f"{len(self._adapters)} adapters are loaded, and that many may be",
                remedy="unload one, or raise adapters_limit",
            )
        await self._put(adapter, loaded, stored)
        self._adapters[adapter.name] = adapter
        self._service.log.info("adapter '%s' is loaded beside '%s'", adapter.name, loaded.name)
        self._service.publish("inference.adapter.loaded", self.describe(adapter))
        return adapter

    async def _bring_back(self, adapter: LoadedAdapter) -> LoadedAdapter:
        stored = await self._stored.find(adapter.ref)
        loaded = await self._models.get(adapter.model)
        with loaded.asked():
            async with self._lock:
                if adapter.loaded is None and self._adapters.get(adapter.name) is adapter:
                    await self._put(adapter, loaded, stored)
        return adapter

    async def _check_name(self, name: str, known: LoadedAdapter | None) -> None:
        if NAME.fullmatch(name) is None:
            raise Invalid(f"{name[:64]!r} cannot be the name of an adapter: letters, digits and -_.:/@", field="name")
        if known is not None:
            raise AlreadyExists(
                f"'{name}' is the adapter from {known.ref} for '{known.model}'",
                field="name",
                remedy="unload it first, or give another name",
            )
        if name in await self._models.names():
            raise AlreadyExists(f"'{name}' is the name of a model", field="name", remedy="give another name")

    async def _put(self, adapter: LoadedAdapter, loaded: Loaded, stored: Model) -> LoadedAdapter:
        """Read the files, and give what is in them to the model's engine."""
        rank = self._settings.adapter_rank
        read = await asyncio.to_thread(open_adapter, Path(stored.path), loaded.config, max_rank=rank)
        self._check_there(loaded)
        size = loaded.adapter_bytes(read)
        reservation = await self._places.reserve(f"adapter '{adapter.name}'", size, loaded.device)
        try:
            number = await loaded.add_adapter(read)
            self._check_there(loaded)
        except BaseException:
            await release(self._service, reservation.id)
            raise
        loaded.adapters[number] = reservation
        adapter.loaded, adapter.number = loaded, number
        adapter.bytes, adapter.parameters, adapter.digest = size, read.parameters, stored.digest
        return adapter

    def _check_there(self, loaded: Loaded) -> None:
        """Raise `Unavailable` where a model has left while something was waited for."""
        if not self._models.has(loaded):
            raise Unavailable(f"model '{loaded.name}' was unloaded", retry_after=1.0, may_have_run=False)
