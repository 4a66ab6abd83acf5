"""Chooses a model's sizes on its device by trying them, and has devices keep what was chosen."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import msgspec

from microkernel.errors import Overloaded, PreconditionFailed, Unavailable, from_exception
from microkernel.message import convert
from microkernel.policy import Claim, ProcessClass
from microkernel.service import Service
from services.devices.messages import QUIET, Device, KeepTuning, Tuning, beside_others
from services.inference.engine.trials import Trials
from services.inference.loaded import Loaded
from services.inference.loaded_models import LoadedModels
from services.inference.settings import InferenceSettings
from services.inference.sizes import chosen, measured, sizes_of
from services.memory.messages import Reservation

__all__ = ["Tuner"]

MOST_SLOTS = 128
MOST_TOKENS = 4096
AGAIN = 5.0  # seconds after which a model that was busy may be idle
GLANCE = 0.3  # seconds in which it is seen whether others are busy, before anything is tried
LONGEST_REST = 86_400.0  # seconds until something is tried again that others were in the way of, again and again


class _Rest(msgspec.Struct, frozen=True):
    """Since when a model has to be idle before it is tuned, and for how many seconds."""

    since: float
    seconds: float


class Tuner:
    """Tunes one model at a time."""

    def __init__(self, service: Service, settings: InferenceSettings, models: LoadedModels) -> None:
        """`models` are those of the service."""
        self._service = service
        self._settings = settings
        self._models = models
        self._at_work: str | None = None
        self._rests: WeakKeyDictionary[Loaded, _Rest] = WeakKeyDictionary()  # that could not be tuned

    async def tune_idle(self) -> None:
        """Tune a model of which nothing was measured on its device yet, and that was idle for as long as is set.

        Where others were in the way it is tried again after a longer rest, and after twice that; where it failed, not.
        """
        now, after = self._service.clock.now(), self._settings.tune_after
        if not after or self._at_work is not None or (self._settings.slots and self._settings.token_budget):
            return
        for loaded in self._models.all():
            rest = self._rests.get(loaded, _Rest(0.0, after))
            if loaded.sizes.tuned or not loaded.idle or now - max(loaded.asked_at, rest.since) < rest.seconds:
                continue
            try:
                await self.tune(loaded)
            except (Overloaded, Unavailable) as error:
                self._service.log.debug("model '%s' is not tuned yet: %s", loaded.name, error)
                self._rests[loaded] = _Rest(now, min(LONGEST_REST, 2 * rest.seconds))
            except Exception as error:  # noqa: BLE001 - whatever a device's library raises: it answers as it did
                failure = from_exception(error, service=self._service.name)
                self._service.log.warning("model '%s' is not tuned: %s", loaded.name, failure.message)
                self._rests[loaded] = _Rest(now, math.inf)
            return

    async def tune(self, loaded: Loaded, *, anyway: bool = False) -> Tuning:
        """Try sizes on its device, keep those that were chosen, and use them: smaller ones at once.

        Raises `Overloaded` while its device or, unless it is to be done `anyway`, the machine has other work.
        """
        if self._at_work is not None:
            raise PreconditionFailed(f"model '{self._at_work}' is being tuned", remedy="wait until that has ended")
        self._at_work = loaded.name
        try:
            with loaded.kept():
                return await self._tune(loaded, anyway=anyway)
        finally:
            self._at_work = None

    async def _tune(self, loaded: Loaded, *, anyway: bool) -> Tuning:
        before, since = await self._device(loaded), self._service.clock.now()
        if before.running or before.queued or before.tuning or loaded.runner.generations:
            raise Overloaded(
                f"{loaded.device} is at work: what was measured beside it would not hold without",
                remedy="tune while nothing runs",
                retry_after=AGAIN,
            )
        if not anyway:
            await self._service.clock.sleep(GLANCE)
            await self._check_quiet(loaded, before, since)
        found = await self._measure(loaded)
        if not anyway:
            await self._check_quiet(loaded, before, since)
        ask = KeepTuning(
            device=loaded.device,
            subject=loaded.subject,
            title=loaded.name,
            chosen=chosen(found),
            measured=measured(found),
        )
        tuning = convert(await self._service.call("devices.keep_tuning", ask), Tuning)
        await loaded.use(sizes_of(self._settings, tuning))
        told = ", ".join(f"{name} {number}" for name, number in tuning.chosen.items())
        self._service.log.info("model '%s' on %s: %s", loaded.name, loaded.device, told)
        self._service.publish("inference.tuned", tuning)
        return tuning

    async def _check_quiet(self, loaded: Loaded, before: Device, since: float) -> None:
        """Raise `Overloaded` where other processes were in the way since then."""
        after = await self._device(loaded)
        taken = after.others_since(before, self._service.clock.now() - since)
        if taken > QUIET * after.cores:
            raise beside_others(taken, after.cores, retry_after=AGAIN)

    async def _measure(self, loaded: Loaded) -> Trials:
        slots, tokens, reservation = await self._room(loaded)
        places, now = self._models.places, self._service.clock.now()
        try:
            claim = Claim(process_class=ProcessClass.BACKGROUND, nice=19, came=now, since=now)
            return await loaded.try_steps(slots, tokens, claim)
        finally:
            await places.give_back(loaded.device, reservation)

    async def _room(self, loaded: Loaded) -> tuple[int, int, Reservation]:
        """How many slots and tokens may be tried, with memory for them. Raises `Overloaded` where there is none."""
        longest = loaded.context_length - 1
        try:
            return await self._reserve(loaded, MOST_SLOTS, min(MOST_TOKENS, longest))
        except Overloaded:
            return await self._reserve(loaded, loaded.slots, min(loaded.sizes.token_budget, longest))

    async def _reserve(self, loaded: Loaded, slots: int, tokens: int) -> tuple[int, int, Reservation]:
        purpose, size = f"tuning of '{loaded.name}'", loaded.trial_bytes(slots, tokens)
        return slots, tokens, await self._models.places.reserve(purpose, size, loaded.device)

    async def _device(self, loaded: Loaded) -> Device:
        return convert(await self._service.call("devices.show", name=loaded.device), Device)
