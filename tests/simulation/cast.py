"""The services and callers of the simulations.

A call carries a small program (`Work`): sleep, call others, stream, raise, compute on a thread, publish. Programs are
drawn from the seed, and what becomes of them is written into the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from simulation.ledger import Done, Ledger, Step, Work

from microkernel import Message, Service, handles, streams
from microkernel.errors import MicrokernelError, NotFound
from microkernel.executor import Executor
from microkernel.inputs import Inputs
from microkernel.testing.simulation import Simulation
from microkernel.trace import new_trace

NAMES = ("ann", "bob", "cem")
METHODS = {"one": (1, 4), "few": (3, 3), "many": (256, 1024)}  # concurrency and queue


class Player(Service):
    """Does what it is told."""

    ledger: ClassVar[Ledger]
    restart_policy = "permanent"

    @property
    def who(self) -> str:
        """Which instance of which incarnation: what a limit holds for."""
        return f"{self.instance}.{self.incarnation}"

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        if self.ledger.failing_starts[self.name] > 0:
            self.ledger.failing_starts[self.name] -= 1
            raise RuntimeError(f"{self.name} does not start")

    @handles(concurrency=METHODS["one"][0], queue=METHODS["one"][1], deadline=20.0)
    async def one(self, work: Work) -> Done:
        return await self.perform(work, "one")

    @handles(concurrency=METHODS["few"][0], queue=METHODS["few"][1], deadline=20.0)
    async def few(self, work: Work) -> Done:
        return await self.perform(work, "few")

    @handles(deadline=30.0)
    async def many(self, work: Work) -> Done:
        return await self.perform(work, "many")

    @streams(concurrency=2, queue=3)
    async def numbers(self, work: Work) -> AsyncIterator[int]:
        where = f"{self.name}.numbers"
        self.ledger.began(work, where, self.who, 2)
        try:
            for number, step in enumerate(work.steps):
                await self.do(step, catches=False)
                yield number
        finally:
            self.ledger.left(where, self.who)

    @streams(concurrency=4, queue=4, credit=3)
    async def mirror(self, work: Work, inputs: Inputs[int]) -> AsyncIterator[int]:
        where = f"{self.name}.mirror"
        self.ledger.began(work, where, self.who, 4)
        due = 0
        try:
            async for number in inputs:
                if number != due:
                    self.ledger.broken(f"the inputs of stream {work.id} brought {number} where {due} was due")
                due += 1
                yield number
        finally:
            self.ledger.left(where, self.who)

    async def perform(self, work: Work, method: str) -> Done:
        where = f"{self.name}.{method}"
        self.ledger.began(work, where, self.who, METHODS[method][0])
        try:
            for step in work.steps:
                await self.do(step, catches=work.catches)
            return Done(work.id)
        finally:
            self.ledger.left(where, self.who)

    async def do(self, step: Step, *, catches: bool) -> None:
        match step.kind:
            case "sleep":
                await asyncio.sleep(step.seconds)
            case "thread":
                await asyncio.to_thread(int)
            case "compute":
                assert await self.executor("cpu0").run(sum, (1, 2)) == 3
            case "raise":
                raise NotFound("what was asked for is not here")
            case "fail":
                raise ZeroDivisionError("as it was told to")
            case "publish":
                self.publish("play.noted", name=self.name)
            case "crash":
                self.spawn(self.crash(), name="crash")
            case "both":
                await self.both(step)
            case "call":
                assert step.work is not None
                try:
                    await self.ledger.ask(self.port, step.target, step.work, deadline=step.deadline)
                except MicrokernelError:
                    if not catches:
                        raise

    async def both(self, step: Step) -> None:
        """Call in two tasks at once, as a service does that fans out."""
        assert step.work is not None
        works = (self.ledger.again(step.work), self.ledger.again(step.work))
        await asyncio.gather(*(self.do(Step("call", target=step.target, work=work), catches=True) for work in works))

    async def crash(self) -> None:
        raise RuntimeError(f"{self.name} has a defect")


class Ann(Player):
    name = "ann"
    uses = ("bob", "cem")


class Bob(Player):
    name = "bob"
    uses = ("ann", "cem")


class Cem(Player):
    name = "cem"
    uses = ("ann", "bob")


class Device(Service):
    """Has compute threads, few and with a short queue, as long as it runs."""

    name = "device"

    async def start(self) -> None:
        await self.executors.add(Executor("cpu0", threads=2, queue=4))

    async def stop(self) -> None:
        await self.executors.remove("cpu0")


class Blob(Message):
    """Bytes, of which many go in parts over a link."""

    raw: bytes


class Steady(Service):
    """Has nothing to do with the others, and must always answer."""

    name = "steady"

    @handles(deadline=1.0)
    async def echo(self, work: Work) -> Done:
        await asyncio.sleep(0.001)
        return Done(work.id)

    @handles
    async def weigh(self, blob: Blob) -> Blob:
        return blob


def raise_the_curtain(simulation: Simulation) -> Ledger:
    """A new ledger, which all players write into."""
    Player.ledger = Ledger(simulation)
    return Player.ledger


def draw_work(simulation: Simulation, ledger: Ledger, *, depth: int = 3, crashes: bool = False) -> Work:
    """A program, by chance."""
    chance = simulation.chance
    number = ledger.next_id()
    kinds = (
        ["sleep"] * 6 + ["call"] * (4 if depth else 0) + ["thread", "compute", "compute", "raise", "fail", "publish"]
    )
    if depth:
        kinds.append("both")
    if crashes:
        kinds.append("crash")
    steps = []
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        kind = chance.choice(kinds)
        inner = draw_work(simulation, ledger, depth=depth - 1) if kind in {"call", "both"} else None
        steps.append(
            Step(
                kind,
                seconds=chance.choice((0.0, 0.001, chance.uniform(0, 0.5), chance.uniform(0, 3))),
                target=f"{chance.choice(NAMES)}.{chance.choice(tuple(METHODS))}",
                work=inner,
                deadline=chance.choice((None, None, chance.uniform(0, 2))),
            )
        )
    return Work(number, tuple(steps), catches=simulation.happens(0.3))


async def client(simulation: Simulation, ledger: Ledger, name: str, *, calls: int, crashes: bool = False) -> None:
    """Makes calls by chance: one after another, or many at once."""
    chance = simulation.chance
    for _ in range(calls):
        await asyncio.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 0.3))))
        if simulation.happens(0.15):
            await read_some(simulation, ledger)
        elif simulation.happens(0.1):
            assert simulation.system is not None
            await talk(simulation, ledger, simulation.system.kernel.port)
        elif simulation.happens(0.15):
            target = any_target(simulation)
            async with asyncio.TaskGroup() as burst:
                for _ in range(chance.randint(2, 12)):
                    burst.create_task(call_once(simulation, ledger, target, crashes=False))
        else:
            await call_once(simulation, ledger, any_target(simulation), crashes=crashes)


def any_target(simulation: Simulation) -> str:
    return f"{simulation.chance.choice(NAMES)}.{simulation.chance.choice(tuple(METHODS))}"


async def call_once(simulation: Simulation, ledger: Ledger, target: str, *, crashes: bool) -> None:
    chance = simulation.chance
    assert simulation.system is not None
    try:
        await ledger.ask(
            simulation.system.kernel.port,
            target,
            draw_work(simulation, ledger, crashes=crashes),
            deadline=chance.choice((None, chance.uniform(0, 0.1), chance.uniform(0, 3))),
            priority=chance.choice((None, 0, 3, 9)),
            trace=chance.choice((None, new_trace())),
        )
    except MicrokernelError:
        return  # judged where it ended


async def read_some(simulation: Simulation, ledger: Ledger) -> None:
    chance = simulation.chance
    assert simulation.system is not None
    steps = tuple(Step("sleep", seconds=chance.uniform(0, 0.2)) for _ in range(chance.randint(0, 8)))
    try:
        await ledger.read(
            simulation.system.kernel.port,
            f"{chance.choice(NAMES)}.numbers",
            Work(ledger.next_id(), steps),
            items=chance.randint(1, 10),
            deadline=chance.choice((None, chance.uniform(0, 3))),
        )
    except MicrokernelError:
        return  # judged where it ended


async def talk(simulation: Simulation, ledger: Ledger, port: Any, *, remote: bool = False) -> None:
    """Send numbers into a stream and read them back: in order, once each, all of them if it ends well."""
    chance = simulation.chance
    work, target, sent = Work(ledger.next_id()), f"{chance.choice(NAMES)}.mirror", chance.randint(0, 20)
    due = 0

    async def send(stream: Any) -> None:
        for number in range(sent):
            try:
                await stream.send(number)
            except MicrokernelError as error:
                simulation.note("not sent", stream=work.id, number=number, why=repr(error))
                return  # the reader hears why
            await asyncio.sleep(chance.choice((0.0, 0.0, 0.02)))
        await stream.finish()
        simulation.note("finished", stream=work.id, sent=sent)

    try:
        with ledger.judged(target, work, None, None, None, remote=remote):
            options = {"result_type": int} if remote else {}
            async with port.stream(target, work, **options) as stream:
                sending = asyncio.create_task(send(stream), name=f"inputs of {work.id}")
                try:
                    async for number in stream:
                        if number != due:
                            ledger.broken(f"stream {work.id} gave back {number} where {due} was due")
                        due += 1
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            if due != sent:
                ledger.broken(f"stream {work.id} ended well after {due} of {sent}")
    except MicrokernelError:
        return


async def witness(simulation: Simulation, until: asyncio.Event) -> None:
    """Calls the service that has nothing to do with the others: it must answer, whatever becomes of them."""
    system = simulation.system
    assert system is not None
    number = 0
    while not until.is_set():
        number += 1
        done = await simulation.promises.call("steady.echo", system.call("steady.echo", Work(number), deadline=0.5))
        if done.id != number:
            simulation.promises.broken(f"steady answered {done.id} to {number}")
        await asyncio.sleep(0.2)
