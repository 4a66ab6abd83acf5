"""The answers that are being given: each is a process, made by a model's runner, read as a stream of pieces.

Several answers to one prompt are processes of their own with one reader.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

import msgspec

from microkernel.errors import CallCancelled, MicrokernelError, NotFound, Overloaded, Unavailable
from microkernel.message import Message, convert, may_touch
from microkernel.policy import Claim, ProcessClass
from microkernel.processes import checked_nice
from microkernel.service import Service
from services.inference.context_files import SavedAnswer
from services.inference.engine.context import Context
from services.inference.engine.engine import Engine, Request
from services.inference.generation import Generation, first_of
from services.inference.grammar.matcher import CompiledGrammar
from services.inference.loaded_adapters import Asked
from services.inference.messages import Grammar, Piece, Usage
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.logprobs import LogprobsOfText
from services.inference.text.stops import StopMatcher
from services.scheduler.messages import Exit, Process, ProcessState, Progress, Report, Spawn

__all__ = ["Answers", "Wanted"]

SLOW_READER = 30.0  # seconds that a reader may take nothing while its sequence keeps a place in the batch
SLOW_READER_WHEN_WANTED = 5.0  # the same while others wait for a place


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants said: `continues` where text stands before it, and a first space is kept."""

    kind: str
    title: str
    stop: list[str]
    continues: bool
    grammar: Grammar | None = None
    logprobs: bool = False
    token_ids: bool = False
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    nice: int = 0
    due: float | None = None  # seconds from now


class Answers:
    """What runs, by the number of its request."""

    def __init__(self, service: Service, numbers: itertools.count[int], charge: Callable[[str, int], None]) -> None:
        """`charge` is told of the tokens that were computed for an owner, about twice a second and at the end."""
        self._service = service
        self._charge = charge
        self._numbers = numbers
        self._running: dict[int, _Answer] = {}

    def give(self, asked: Asked, wanted: Wanted, requests: list[Request]) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers that `requests`, which have no numbers yet, ask for."""
        numbered = [msgspec.structs.replace(request, id=next(self._numbers)) for request in requests]
        generations = [self._generation(asked, wanted, request) for request in numbered]
        for request, generation in zip(numbered, generations, strict=True):
            if request.begun:  # its reader has the text of these
                generation.recall(request.begun)
                generation.take()

        async def begin() -> None:
            for request, generation in zip(numbered, generations, strict=True):
                first = numbered[0].id
                following = None if request.id == first else first
                request = msgspec.structs.replace(request, fork_of=following, claim=generation.claim)  # noqa: PLW2901
                asked.loaded.runner.submit(request, generation)

        return self._read(asked, wanted, generations, requests[0].owner, begin)

    def go_on(
        self, asked: Asked, saved: SavedAnswer, context: Context, grammar: CompiledGrammar | None, *, replay: bool
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer that was saved; with `replay`, all of its text."""
        wanted = Wanted(
            kind=saved.kind, title=saved.title, stop=saved.stop, continues=saved.continues, grammar=saved.grammar
        )
        number = next(self._numbers)
        # How likely the tokens were that there are already is not kept, and half of it would be of no use.
        context = msgspec.structs.replace(context, request=msgspec.structs.replace(context.request, logprobs=None))
        generation = self._generation(asked, wanted, msgspec.structs.replace(context.request, id=number))
        generation.recall(context.answer)
        if not replay:
            generation.take()

        async def begin() -> None:
            await asked.loaded.runner.restore(context, generation, asked.number, grammar)

        return self._read(asked, wanted, [generation], context.request.owner, begin)

    def find(self, pid: int) -> _Answer:
        """The answer that is process `pid`, if the caller may touch it. Raises `NotFound`."""
        for answer in self._running.values():
            if answer.pid == pid and may_touch(answer.entered.owner):
                return answer
        raise NotFound(f"no answer runs as process {pid}", field="pid", remedy="see `mk ps`")

    def end(self, pid: int, error: MicrokernelError) -> None:
        """End process `pid`. Raises `NotFound`."""
        self.find(pid).end(error)

    async def pause(self, pid: int, *, swap: bool) -> None:
        """Let process `pid` rest. Raises `NotFound`."""
        answer = self.find(pid)
        number = answer.generation.number

        def pause(engine: Engine) -> None:
            engine.pause(number, paused=True)
            if swap:
                engine.swap_out(number)

        answer.generation.paused = True
        await answer.asked.loaded.runner.ask(pause)
        await self._report([answer])

    async def resume(self, pid: int) -> None:
        """Let process `pid` go on. Raises `NotFound`."""
        answer = self.find(pid)
        number = answer.generation.number
        answer.generation.paused = False
        await answer.asked.loaded.runner.ask(lambda engine: engine.pause(number, paused=False))
        await self._report([answer])

    async def renice(self, pid: int, nice: int) -> None:
        """Let process `pid` be that nice from now on. Raises `NotFound`."""
        answer = self.find(pid)
        number = answer.generation.number
        nice = checked_nice(nice, least=answer.generation.claim.nice)
        claim = msgspec.structs.replace(answer.generation.claim, nice=nice)
        answer.generation.claim = claim
        await answer.asked.loaded.runner.ask(lambda engine: engine.renice(number, claim))

    async def why(self, pid: int) -> str:
        """What process `pid` waits for, or that it runs, as the rest of a sentence about it. Raises `NotFound`."""
        answer = self.find(pid)
        generation = answer.generation
        said = await answer.asked.loaded.runner.ask(lambda engine: engine.why(generation.number))
        if said != "runs":
            return said
        return f"runs: it has {generation.tokens} tokens of its answer"

    async def save(self, pid: int) -> SavedAnswer:
        """Process `pid` as it is now; it goes on. Raises `NotFound`."""
        answer = self.find(pid)
        number = answer.generation.number
        context = await answer.asked.loaded.runner.ask(lambda engine: engine.save(number))
        wanted = answer.wanted
        return SavedAnswer(
            model=answer.asked.name,
            kind=wanted.kind,
            title=wanted.title,
            stop=wanted.stop,
            continues=wanted.continues,
            grammar=wanted.grammar,
            prompt_tokens=answer.generation.prompt_tokens,
            context=await asyncio.to_thread(context.dump),
        )

    async def report(self) -> None:
        """Tell the scheduler what each answer has used so far, and cut readers that take nothing."""
        for answer in self._running.values():
            self._cut_if_slow(answer)
            self._count(answer)
        await self._report(self._running.values())

    async def enter_again(self) -> None:
        """A scheduler that has come back has an empty table."""
        for number, answer in tuple(self._running.items()):
            if answer.pid and number in self._running:
                await self._tell_scheduler("scheduler.spawn", answer.spawn(answer.pid))
                if number not in self._running:  # it ended meanwhile, and its exit may have come first
                    progress = _progress(answer.pid, answer.generation, ProcessState.DONE)
                    await self._tell_scheduler("scheduler.exit", Exit(progress=progress))

    def _generation(self, asked: Asked, wanted: Wanted, request: Request) -> Generation:
        return Generation(
            request.id,
            text=IncrementalText(asked.loaded.tokenizer, continues=wanted.continues),
            stops=StopMatcher(wanted.stop),
            prompt_tokens=len(request.prompt),
            began=self._service.clock.now(),
            logprobs=LogprobsOfText(asked.loaded.tokenizer) if wanted.logprobs else None,
            keeps_ids=wanted.token_ids,
        )

    async def _read(
        self,
        asked: Asked,
        wanted: Wanted,
        generations: list[Generation],
        owner: str,
        begin: Callable[[], Awaitable[None]],
    ) -> AsyncGenerator[Piece, None]:
        answers: list[_Answer] = []
        why: dict[int, tuple[ProcessState, str]] = {}
        try:
            for generation in generations:
                spawn = Spawn(
                    kind=wanted.kind,
                    title=wanted.title,
                    owner=owner,
                    device=asked.loaded.device,
                    process_class=wanted.process_class,
                    nice=wanted.nice,
                    due=wanted.due,
                )
                answer = _Answer(await self._enter(spawn), generation, asked, spawn, wanted)
                generation.claim = _claim(answer, generation.began)
                answers.append(answer)
                self._running[generation.number] = answer
            await begin()
            for index, answer in enumerate(answers):
                yield Piece(pid=answer.pid, model=asked.name, index=index)
            open_ = dict(enumerate(answers))
            while open_:
                await first_of([answer.generation for answer in open_.values()])
                for index, answer in tuple(open_.items()):
                    generation = answer.generation
                    if not generation.ready:
                        continue
                    text = generation.take()
                    likely = generation.take_logprobs()
                    piece = Piece(
                        text=text,
                        logprobs=likely,
                        token_ids=generation.take_ids(),
                        pid=answer.pid,
                        model=asked.name,
                        index=index,
                    )
                    if generation.finish_reason is None:
                        yield piece
                        continue
                    del open_[index]
                    reason = generation.finish_reason
                    why[generation.number] = ProcessState.DONE, reason
                    usage = _usage(generation, self._service.clock.now())
                    yield msgspec.structs.replace(piece, finish_reason=reason, usage=usage)
        except CallCancelled as error:
            why = {answer.generation.number: (ProcessState.KILLED, error.message) for answer in answers} | why
            raise
        except MicrokernelError as error:
            why = {answer.generation.number: (ProcessState.FAILED, error.message) for answer in answers} | why
            raise
        finally:
            for answer in answers:
                number = answer.generation.number
                asked.loaded.runner.cancel(answer.generation)
                self._count(answer)
                del self._running[number]
                state, said = why.get(number, (ProcessState.KILLED, "its reader left"))
                if answer.pid:
                    progress = _progress(answer.pid, answer.generation, state, said)
                    await self._tell_scheduler("scheduler.exit", Exit(progress=progress))

    async def _report(self, answers: Iterable[_Answer]) -> None:
        entries = tuple(_progress(answer.pid, answer.generation, ProcessState.RUNNING) for answer in answers)
        if entries:
            await self._tell_scheduler("scheduler.report", Report(entries))

    async def _enter(self, spawn: Spawn) -> int:
        """The pid of a new process; 0 on a node without a scheduler, where nobody can show or kill it."""
        try:
            return convert(await self._service.call("scheduler.spawn", spawn), Process).pid
        except (NotFound, Unavailable):
            return 0

    def _count(self, answer: _Answer) -> None:
        """Charge its owner for what was computed since the last time."""
        generation = answer.generation
        computed = generation.computed
        self._charge(answer.entered.owner, computed - generation.charged)
        generation.charged = computed

    def _cut_if_slow(self, answer: _Answer) -> None:
        generation = answer.generation
        if generation.held_since is None or generation.paused:
            return
        seconds = self._service.clock.now() - generation.held_since
        wanted = answer.asked.loaded.runner.waiting > 0
        if seconds > (SLOW_READER_WHEN_WANTED if wanted else SLOW_READER):
            answer.end(
                Overloaded(
                    f"slow reader: {generation.unread} tokens pending for {seconds:.1f} s"
                    + (", and others wait for the place" if wanted else ""),
                    service=self._service.name,
                )
            )

    async def _tell_scheduler(self, to: str, message: Message) -> None:
        """What is only told must not end an answer: a scheduler that is away learns of it when it is back."""
        try:
            await self._service.call(to, message, deadline=1.0)
        except MicrokernelError as error:
            self._service.log.warning("could not tell %s: %s", to, error)


class _Answer(msgspec.Struct, frozen=True, gc=False):
    """An answer that is being given. `pid` is 0 on a node without a scheduler."""

    pid: int
    generation: Generation
    asked: Asked
    entered: Spawn
    wanted: Wanted

    def end(self, error: MicrokernelError) -> None:
        """End it with `error`; its place in the batch is free at once, whether or not its reader ever looks again."""
        self.generation.fail(error)
        self.asked.loaded.runner.cancel(self.generation)

    def spawn(self, pid: int) -> Spawn:
        """The message that enters it again as process `pid`."""
        return msgspec.structs.replace(self.entered, pid=pid)


def _claim(answer: _Answer, now: float) -> Claim:
    """What the answer says to the policy when its turn is."""
    entered = answer.entered
    return Claim(
        pid=answer.pid,
        owner=entered.owner,
        process_class=entered.process_class,
        nice=entered.nice,
        came=now,
        since=now,
        deadline=None if entered.due is None else now + entered.due,
    )


def _progress(pid: int, generation: Generation, state: ProcessState, why: str = "") -> Progress:
    if state is ProcessState.RUNNING and generation.paused:
        state, why = ProcessState.PAUSED, "until it is resumed"
    elif state is ProcessState.RUNNING and generation.joined is None:
        state, why = ProcessState.WAITING, "for a place in the batch"
    elif state is ProcessState.RUNNING and generation.held_since is not None:
        state, why = ProcessState.WAITING, "for its reader"
    return Progress(
        pid=pid,
        state=state,
        why=why,
        tokens_in=generation.prompt_tokens,
        tokens_out=generation.tokens,
        device_seconds=generation.device_seconds,
    )


def _usage(generation: Generation, now: float) -> Usage:
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.tokens,
        cached_tokens=generation.cached_tokens,
        queue_seconds=max(0.0, (generation.joined or now) - generation.began),
        first_token_seconds=(generation.first_token or now) - generation.began,
        total_seconds=now - generation.began,
    )
