"""Clients over links that break, stall, crawl and come back: the real server and client, aiohttp's framing included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from simulation.cast import (
    METHODS,
    NAMES,
    Ann,
    Blob,
    Bob,
    Cem,
    Done,
    Ledger,
    Steady,
    Step,
    Work,
    draw_work,
    raise_the_curtain,
    talk,
    witness,
)
from simulation.seeds import batches

from microkernel.capability import Identity, Rights
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.testing.simulation import Simulation, explore
from microkernel.wire.client import connect
from microkernel.wire.limits import Limits
from microkernel.wire.server import WireServer

HOST, PORT = "10.0.0.2", 7070
URL = f"http://{HOST}:{PORT}"
TOKEN = "a-token-for-the-simulation"
HEARD = 60.0  # seconds in which a subscription has brought everything or has ended, through all that is done to it
FOUND_OUT = 30.0  # seconds in which both ends have found out that a link is dead


async def authenticate(token: str) -> Identity | None:
    await asyncio.sleep(0.001)
    return Identity("root", Rights()) if token == TOKEN else None


@asynccontextmanager
async def served(simulation: Simulation, limits: Limits, *, epoch: str = "e1") -> AsyncIterator[WireServer]:
    """The websockets of the booted node, listening on the simulated network."""
    assert simulation.system is not None
    wire = WireServer(simulation.system.kernel.port, authenticate, node="n1", epoch=epoch, limits=limits)
    app = web.Application()
    app.router.add_get("/mk", wire.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, HOST, PORT).start()
    try:
        yield wire
    finally:
        await wire.close(drain=0.5)
        await runner.cleanup()


def drawn_limits(simulation: Simulation) -> Limits:
    chance = simulation.chance
    return Limits(
        heartbeat=chance.choice((0.5, 2.0)),
        inflight=chance.choice((4, 64)),
        buffer=chance.choice((4096, 2**20)),
        messages=chance.choice((16, 1024)),
        slow_after=chance.choice((0.5, 2.0)),
        credit=chance.choice((1, 4, 64)),
        resume=chance.choice((1.0, 5.0)),
        handshake=5.0,
    )


async def links(simulation: Simulation) -> None:
    """Clients by chance over a network that fails by chance."""
    ledger = raise_the_curtain(simulation)
    network, chance = simulation.network, simulation.chance
    network.latency = chance.choice(((0.0001, 0.001), (0.001, 0.1)))
    # 300 kB take less than a heartbeat: a link on which a ping waits longer behind them is dead to both ends.
    network.bandwidth = chance.choice((1e6, 1e7, 1e9))
    network.segments = chance.choice(((1, 20), (1, 16384)))
    async with simulation.boot(Ann, Bob, Cem, Steady), served(simulation, drawn_limits(simulation)) as wire:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as watching:
            watching.create_task(witness(simulation, over))
            async with asyncio.TaskGroup() as group:
                for number in range(chance.randint(1, 4)):
                    simulation.spawn(group, remote(simulation, ledger, number), f"client {number}")
                group.create_task(break_links(simulation), name="faults")
            over.set()
        await everyone_gone(simulation, wire)
        async with connect(URL, TOKEN) as system:  # whatever was, the node takes the next one
            await system.call("steady.echo", Work(0), deadline=5.0)
    ledger.check_claims()
    simulation.note("outcomes", **dict(sorted(ledger.outcomes.items())))


async def remote(simulation: Simulation, ledger: Ledger, number: int) -> None:
    """One client: connects, asks several things at once, is cut off, comes back."""
    chance, keyed = simulation.chance, Keyed(simulation, ledger)
    for _ in range(chance.randint(1, 3)):
        try:
            connecting = connect(URL, TOKEN, reconnect=simulation.happens(0.5))
            async with connecting as system, asyncio.TaskGroup() as group:
                simulation.spawn(group, keyed.ask(system), f"client {number} with keys")
                for place in range(chance.randint(1, 6)):
                    work = chance.choice((ask, ask, read, hear, weigh, discuss))(simulation, ledger, system)
                    simulation.spawn(group, work, f"client {number}.{place}")
        except Unavailable:
            await asyncio.sleep(chance.uniform(0, 1))


async def ask(simulation: Simulation, ledger: Ledger, system: Any) -> None:
    chance = simulation.chance
    for _ in range(chance.randint(1, 4)):
        work = draw_work(simulation, ledger, depth=1)
        target = f"{chance.choice(NAMES)}.{chance.choice(tuple(METHODS))}"
        deadline = chance.choice((None, chance.uniform(0, 0.2), chance.uniform(0, 3)))
        try:
            with ledger.judged(target, work, deadline, None, None, remote=True):
                call = system.call(target, work, deadline=deadline, result_type=Done)
                done = await simulation.promises.call(f"call {work.id} of {target}", call, deadline=deadline)
                if done.id != work.id:
                    simulation.promises.broken(f"call {work.id} got the result of call {done.id}")
        except MicrokernelError:
            continue


class Keyed:
    """Calls of one client under keys, asked again until they are answered: each runs once, whatever is cut."""

    def __init__(self, simulation: Simulation, ledger: Ledger) -> None:
        self.simulation = simulation
        self.ledger = ledger
        self.open: list[tuple[str, Work]] = []

    async def ask(self, system: Any) -> None:
        chance = self.simulation.chance
        for _ in range(chance.randint(0, 2)):
            work = draw_work(self.simulation, self.ledger, depth=0)
            target = f"{chance.choice(NAMES)}.{chance.choice(tuple(METHODS))}"
            self.ledger.judged(target, work, None, None, None, remote=True)
            self.open.append((target, work))
        for asked in tuple(self.open):
            target, work = asked
            call = system.call(target, work, deadline=5.0, idempotency_key=f"key {work.id}", result_type=Done)
            try:
                done = await self.simulation.promises.call(f"call {work.id} of {target}", call, deadline=5.0)
            except Unavailable as error:
                if error.may_have_run is False:
                    continue
                return  # asked again over the next link
            except MicrokernelError:
                pass
            else:
                if done.id != work.id or self.ledger.runs[work.id] != 1:
                    self.simulation.promises.broken(f"call {work.id} ran {self.ledger.runs[work.id]} times: {done}")
            self.open.remove(asked)


async def read(simulation: Simulation, ledger: Ledger, system: Any) -> None:
    chance = simulation.chance
    items = chance.choice((3, 30))
    steps = tuple(Step("sleep", seconds=chance.choice((0.0, 0.01))) for _ in range(items))
    work = Work(ledger.next_id(), steps)
    count, wanted = 0, chance.randint(1, items + 1)
    try:
        with ledger.judged("ann.numbers", work, None, None, None, remote=True):
            async with system.stream("ann.numbers", work, credit=chance.choice((1, 3, 64)), result_type=int) as stream:
                async for number in stream:
                    if number != count:
                        simulation.promises.broken(f"stream {work.id} sent {number} where {count} was due")
                    count += 1
                    if count == wanted:
                        return
                    await asyncio.sleep(chance.choice((0.0, 0.0, 0.2)))
            if count != items:
                simulation.promises.broken(f"stream {work.id} ended well after {count} of {items}")
    except MicrokernelError:
        return


async def weigh(simulation: Simulation, ledger: Ledger, system: Any) -> None:
    """Bytes that go there and back, in parts where they are many, are the same."""
    del ledger
    chance = simulation.chance
    longest = 300_000 if simulation.network.segments[1] > 1000 else 3_000  # in pieces of 20 bytes, 15,000 steps
    blob = Blob(chance.randbytes(chance.choice((10, 3_000, longest))))
    deadline = chance.choice((0.1, 5.0))
    call = system.call("steady.weigh", blob, deadline=deadline, result_type=Blob)
    try:
        back = await simulation.promises.call(f"{len(blob.raw)} bytes", call, deadline=deadline)
    except MicrokernelError:
        return
    if back.raw != blob.raw:
        simulation.promises.broken(f"{len(blob.raw)} bytes came back as {len(back.raw)} other ones")


async def discuss(simulation: Simulation, ledger: Ledger, system: Any) -> None:
    await talk(simulation, ledger, system, remote=True)


async def hear(simulation: Simulation, ledger: Ledger, system: Any) -> None:
    """Events come in order, and none is left out without a word."""
    assert simulation.system is not None
    subject = f"heard.{ledger.next_id()}"
    count, sent = 0, simulation.chance.randint(1, 30)
    try:
        async with system.subscribe(subject) as events, asyncio.timeout(HEARD):
            for number in range(sent):
                simulation.system.publish(subject, number=number)
                if simulation.happens(0.2):
                    await asyncio.sleep(0.05)
            async for event in events:
                if event.body.number != count:
                    simulation.promises.broken(f"{subject} brought {event.body.number} where {count} was due")
                count += 1
                if count == sent:
                    return
            simulation.promises.broken(f"{subject} ended well after {count} of {sent}")
    except MicrokernelError:
        return
    except TimeoutError:
        simulation.promises.broken(f"{subject} stopped after {count} of {sent}, and nobody says why")


async def break_links(simulation: Simulation) -> None:
    """Does things to the network, by chance."""
    chance, network = simulation.chance, simulation.network
    for _ in range(chance.randint(0, 6)):
        await asyncio.sleep(chance.choice((chance.uniform(0, 0.1), chance.uniform(0, 2))))
        what = chance.choice(("cut", "cut", "half", "stall", "refuse", "cancel", "wall"))
        link = network.any_link()
        simulation.note(what, link=None if link is None else link.number)
        if what == "wall":
            simulation.loop.jump_wall(chance.uniform(-1e5, 1e5))
        elif what == "refuse":
            network.refusing = not network.refusing
        elif what == "cancel":
            running = [task for task in simulation.clients.values() if not task.done()]
            if running:
                chance.choice(running).cancel()
        elif link is None:
            continue
        elif what == "cut":
            link.cut()
        elif what == "half":
            link.cut_silently(for_server=simulation.happens(0.5))
        else:
            link.stall(there=simulation.happens(0.7), back=simulation.happens(0.7))
            simulation.loop.call_later(chance.choice((0.1, 1.0, 60.0)), link.flow)
    network.refusing = False


async def everyone_gone(simulation: Simulation, wire: WireServer) -> None:
    """Both ends find out about every link that is dead; what goes on without one, under a key, ends by its deadline."""
    assert simulation.system is not None
    try:
        async with asyncio.timeout(FOUND_OUT):
            while wire.sessions or wire.waiting or simulation.system.calls_in_flight():
                await asyncio.sleep(0.2)
    except TimeoutError:
        simulation.promises.broken(f"{wire.sessions} sessions and {simulation.system.calls_in_flight()} are left")


@pytest.mark.parametrize("seeds", batches(250), ids=str)
def test_links_that_break_end_every_call_and_lose_no_item_in_silence(seeds):
    assert explore(links, seeds) == len(seeds)
