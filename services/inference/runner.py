"""One loaded model at work (hot: once a step): commands to the engine, a step on the device, outputs to readers.

The engine belongs to the device's compute thread. The loop gathers what is asked of it, and each step takes all of that
over at once, runs, and comes back with one list of outputs for the whole batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from microkernel.errors import Internal, MicrokernelError, Unavailable, from_exception, from_report
from microkernel.executor import Executor
from microkernel.job import Shares
from microkernel.policy import Claim, Policy
from services.inference.admission import Wait
from services.inference.engine.context import Context
from services.inference.engine.engine import Engine, Request
from services.inference.engine.output import Output
from services.inference.engine.torch_threads import TorchThreads
from services.inference.generation import Generation
from services.inference.grammar.matcher import CompiledGrammar

__all__ = ["Runner"]

T = TypeVar("T")


class Runner:
    """Steps `engine` on `executor` for as long as there is anything to do."""

    def __init__(self, engine: Engine, executor: Executor, now: Callable[[], float]) -> None:
        self._engine = engine
        self._executor = executor
        self._now = now
        self._generations: dict[int, Generation] = {}
        self._commands: list[Callable[[], object]] = []
        self._questions: list[_Question] = []
        self._asked: list[_Question] = []  # on the device now
        self._wake = asyncio.Event()
        self._closed = False
        self._policy: Policy | None = None  # of the executor, as the engine has it
        self._used: dict[str, float] = {}  # seconds of the device, by owner, of those who have answers here
        self._threads = TorchThreads()
        self.wait = Wait()
        self.steps = 0

    @property
    def running(self) -> int:
        """How many sequences are in the batch."""
        return 0 if self._closed else self._engine.running

    @property
    def waiting(self) -> int:
        """How many requests wait for a place in it."""
        return 0 if self._closed else self._engine.waiting

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All answers that are being made or wait."""
        return tuple(self._generations.values())

    def submit(self, request: Request, generation: Generation) -> None:
        """Have `generation` made; it joins the batch at the next step. Raises `Unavailable` once closed."""
        if self._closed:
            raise _unloading(may_have_run=False)
        self._generations[request.id] = generation
        generation.hold = self._hold
        self._ask(lambda: self._engine.add(request))

    async def restore(
        self, context: Context, generation: Generation, adapter: int | None, grammar: CompiledGrammar | None
    ) -> None:
        """Have `generation` go on with a context, its adapter and its grammar. Raises as `Engine.restore`."""
        number = generation.number
        self._generations[number] = generation
        generation.hold = self._hold
        try:
            claim = generation.claim
            await self.ask(
                lambda engine: engine.restore(context, number, adapter=adapter, grammar=grammar, claim=claim)
            )
        except BaseException:
            self.cancel(generation)
            raise

    async def ask(self, question: Callable[[Engine], T]) -> T:
        """What `question` finds out of the engine, between two steps; raises what it raises."""
        if self._closed:
            raise _unloading(may_have_run=False)
        asked = _Question(question, asyncio.get_running_loop().create_future())
        self._questions.append(asked)
        self._ask(lambda: asked.answer(self._engine))
        return await asked.future  # type: ignore[no-any-return] # what the question gives

    def cancel(self, generation: Generation) -> None:
        """Nobody reads it any more: its slot is free from the next step on."""
        if self._generations.pop(generation.number, None) is not None:
            self._ask(lambda: self._engine.cancel(generation.number))

    async def run(self) -> None:
        """The loop; ends by cancellation. If a step raises, all answers end with the reason and it is raised."""
        loop = asyncio.get_running_loop()
        self._engine.on_room = partial(loop.call_soon_threadsafe, self._wake.set)
        step: _Step | None = None
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                step = self._begin()
                while step is not None:
                    outputs, idle, seconds = await step.work
                    done, step = step, None
                    if not idle or self._commands:
                        # The device has its next step while this one's outputs are handed out. What comes of them, such
                        # as an answer that met a stop string, it learns a step later.
                        step = self._begin()
                        await asyncio.sleep(0)
                    self._give(done, outputs, seconds)
                    if step is None and self._commands:
                        step = self._begin()
        except asyncio.CancelledError:
            self._end(_unloading(may_have_run=True))
            raise
        except Exception as error:
            failure = Internal(f"the engine's step raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._end(failure)
            raise
        finally:
            if step is not None and not step.work.done():
                step.work.cancel()
                await asyncio.wait([step.work])

    async def close(self) -> None:
        """Once `run` has ended: weights and pages are free when this returns.

        Who does not wait for that leaves it to be done when the device gets to it. Closing twice is harmless.
        """
        with suppress(MicrokernelError):  # its device may have gone, and all that was there with it
            await self._executor.finish(self._engine.close)

    def _begin(self) -> _Step:
        """Have the device do a quantum with all that was asked for since the last one."""
        commands, self._commands = self._commands, []
        questions, self._questions = self._questions, []
        self._asked += questions
        shares: Shares = {}
        work = self._executor.run(self._on_device, commands, shares, claim=self._claim(), shares=shares)
        return _Step(asyncio.create_task(work), questions)

    def _claim(self) -> Claim:
        """The step's: that of the most urgent whom it may serve, and of these of the owner who had least."""
        now = self._now()
        waiting = [each for each in self._generations.values() if not each.paused and each.held_since is None]
        if not waiting:
            return Claim(came=now, since=now)  # only asked or ended: nobody is to wait for that

        def urgency(generation: Generation) -> tuple[int, float, float]:
            claim = generation.claim
            return claim.process_class.rank, self._used.get(claim.owner, 0.0), claim.came

        claim = min(waiting, key=urgency).claim
        deadlines = [each.claim.deadline for each in waiting if each.claim.deadline is not None]
        return msgspec.structs.replace(claim, since=now, deadline=min(deadlines, default=None))

    def _give(self, step: _Step, outputs: list[Output], seconds: float) -> None:
        """What a quantum has brought, to those who wait for it."""
        del self._asked[: len(step.questions)]  # they are in the order of their steps
        for question in step.questions:
            question.settle()
        self.steps += 1
        now = self._now()
        share = seconds / max(1, len(outputs))
        for output in outputs:
            generation = self._generations.get(output.id)
            if generation is None:
                continue  # cancelled while the step ran
            generation.device_seconds += share
            owner = generation.claim.owner
            self._used[owner] = self._used.get(owner, 0.0) + share
            if generation.joined is None:
                generation.joined = now - seconds
            try:
                generation.push(output, now)
            except Exception as error:  # noqa: BLE001 - text of one answer that cannot be made ends that answer only
                generation.fail(from_exception(error, service="inference"))
            if generation.ended:
                self._retire(generation, output)

    def _on_device(self, commands: list[Callable[[], object]], shares: Shares) -> tuple[list[Output], bool, float]:
        """On the compute thread; fills `shares`."""
        began = time.perf_counter()
        policy = self._executor.policy
        if policy is not self._policy:
            self._policy = policy
            self._engine.schedule_by(policy.fresh())
        with self._threads:
            for command in commands:
                command()
            outputs: list[Output] = []
            if not self._engine.idle:
                outputs = self._engine.step()
                shares.update(self._engine.claims)
        return outputs, self._engine.idle, time.perf_counter() - began

    def _retire(self, generation: Generation, output: Output) -> None:
        del self._generations[generation.number]
        if generation.joined is not None:
            self.wait.note(self._now() - generation.joined)
        if not self._generations:
            self._used.clear()
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
        for question in (*self._asked, *self._questions):
            question.fail(reason)
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation.fail(reason)


class _Step:
    """A quantum on the device, or on its way there."""

    def __init__(self, work: asyncio.Task[tuple[list[Output], bool, float]], questions: list[_Question]) -> None:
        self.work = work
        self.questions = questions


class _Question:
    """What somebody wants to know of the engine, and waits for."""

    def __init__(self, question: Callable[[Engine], Any], future: asyncio.Future[Any]) -> None:
        self.future = future
        self._question = question
        self._found: Any = None
        self._error: Exception | None = None

    def answer(self, engine: Engine) -> None:
        """On the compute thread; what it raises is for who asked, and no reason to end the step."""
        try:
            self._found = self._question(engine)
        except Exception as error:  # noqa: BLE001 - raised where it was asked
            self._error = error

    def settle(self) -> None:
        """On the loop, afterwards."""
        if self.future.done():
            return  # who asked has left
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(self._found)

    def fail(self, reason: MicrokernelError) -> None:
        """It is not going to be answered."""
        if not self.future.done():
            self.future.set_exception(from_report(reason.report()))


def _unloading(*, may_have_run: bool) -> Unavailable:
    return Unavailable("the model is being unloaded", retry_after=1.0, may_have_run=may_have_run)
