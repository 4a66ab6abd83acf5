"""One loaded model at work (hot: once a step): commands to the engine, a step on the device, outputs to readers.

The engine belongs to the device's compute thread. The loop gathers what is asked of it, and each step takes all of that
over at once, runs, and comes back with one list of outputs for the whole batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from microkernel.errors import Internal, MicrokernelError, Unavailable, from_exception
from microkernel.executor import Executor
from services.inference.engine.engine import Engine, Output, Request
from services.inference.generation import Generation

__all__ = ["Runner"]


class Runner:
    """Steps `engine` on `executor` for as long as there is anything to do."""

    def __init__(self, engine: Engine, executor: Executor, now: Callable[[], float]) -> None:
        self._engine = engine
        self._executor = executor
        self._now = now
        self._generations: dict[int, Generation] = {}
        self._commands: list[Callable[[], object]] = []
        self._wake = asyncio.Event()
        self._closed = False
        self.steps = 0

    @property
    def running(self) -> int:
        """How many sequences are in the batch."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """How many requests wait for a place in it."""
        return self._engine.waiting

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All answers that are being made or wait."""
        return tuple(self._generations.values())

    def submit(self, request: Request, generation: Generation) -> None:
        """Have `generation` made; it joins the batch at the next step. Raises `Unavailable` once closed."""
        if self._closed:
            raise Unavailable("the model is being unloaded", retry_after=1.0, may_have_run=False)
        self._generations[request.id] = generation
        generation.hold = self._hold
        self._ask(lambda: self._engine.add(request))

    def cancel(self, generation: Generation) -> None:
        """Nobody reads it any more: its slot is free from the next step on."""
        if self._generations.pop(generation.number, None) is not None:
            self._ask(lambda: self._engine.cancel(generation.number))

    async def run(self) -> None:
        """The loop; ends by cancellation. If a step raises, all answers end with the reason and it is raised."""
        loop = asyncio.get_running_loop()
        self._engine.on_room = partial(loop.call_soon_threadsafe, self._wake.set)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while not await self._step():
                    pass
        except asyncio.CancelledError:
            self._end(Unavailable("the model is being unloaded", retry_after=1.0, may_have_run=True))
            raise
        except Exception as error:
            failure = Internal(f"the engine's step raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._end(failure)
            raise

    async def _step(self) -> bool:
        """One quantum; returns whether there is nothing left to do until somebody asks for more."""
        commands, self._commands = self._commands, []
        outputs, idle, seconds = await self._executor.run(self._on_device, commands)
        self.steps += 1
        now = self._now()
        share = seconds / max(1, len(outputs))
        for output in outputs:
            generation = self._generations.get(output.id)
            if generation is None:
                continue  # cancelled while the step ran
            generation.device_seconds += share
            if generation.joined is None:
                generation.joined = now - seconds
            try:
                generation.push(output, now)
            except Exception as error:  # noqa: BLE001 - text of one answer that cannot be made ends that answer only
                generation.fail(from_exception(error, service="inference"))
            if generation.ended:
                self._retire(generation, output)
        return idle and not self._commands

    def _on_device(self, commands: list[Callable[[], object]]) -> tuple[list[Output], bool, float]:
        """On the compute thread."""
        began = time.perf_counter()
        for command in commands:
            command()
        outputs = [] if self._engine.idle else self._engine.step()
        return outputs, self._engine.idle, time.perf_counter() - began

    def _retire(self, generation: Generation, output: Output) -> None:
        del self._generations[generation.number]
        if output.finish_reason is None and output.error is None:
            # It met a stop string, of which the engine knows nothing.
            self._ask(lambda: self._engine.cancel(generation.number))

    def _hold(self, generation: Generation) -> None:
        held = generation.held_since is not None
        self._ask(lambda: self._engine.hold(generation.number, held=held))

    def _ask(self, command: Callable[[], object]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _end(self, reason: MicrokernelError) -> None:
        self._closed = True
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation.fail(reason)
