"""The devices that give whole answers: opened, looked after, and asked, each within its places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import msgspec

from microkernel.errors import Code, MicrokernelError, from_exception
from microkernel.model_server import Generated, ModelServer
from microkernel.service import Service
from services.devices.desk import Desk, Seat, Ticket
from services.devices.failover import Given, broken_off, named, verdict, worth_another
from services.devices.messages import AskModel, Device, DeviceState, Served

__all__ = ["ModelServers"]

SOONEST = 0.25  # seconds from one look at a server to the next, whatever happens meanwhile
AFTER_A_DEFECT = 5.0  # seconds until a driver is called again that raised where it must not
LIST_WAITS = 1.0
CLOSE_TIMEOUT = 2.0


class ModelServers:
    """All of this node. Each has a task that looks after it, which begins when it is found."""

    def __init__(self, service: Service) -> None:
        """`service` owns the tasks and tells of what changes."""
        self._service = service
        self._desk = Desk(service.clock.now)
        self._looked: dict[str, asyncio.Event] = {}  # set once a server was asked for the first time
        self._nudged: dict[str, asyncio.Event] = {}  # set to have it asked at once

    def __bool__(self) -> bool:
        return bool(self._looked)

    def __contains__(self, name: object) -> bool:
        return name in self._desk

    async def enter(self, driver: str, server: ModelServer) -> Device:
        """One more server; it is asked for the first time in a while."""
        await server.open()
        seat = Seat(driver, server)
        self._looked[seat.name], self._nudged[seat.name] = asyncio.Event(), asyncio.Event()
        self._desk.enter(seat)
        self._service.spawn(self._look_after(seat), name=f"look after {seat.name}")
        return self._describe(seat)

    async def close(self) -> None:
        """Let go of all; one that takes its time is left."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(seat.server.close() for seat in self._desk))
        except TimeoutError:
            self._service.log.warning("some model servers were not let go of within %g s", CLOSE_TIMEOUT)

    def shown(self) -> list[Device]:
        """All of them."""
        return [self._describe(seat) for seat in self._desk]

    def show(self, name: str) -> Device:
        """One by its name, which is there."""
        return self._describe(self._desk[name])

    async def served(self, name: str | None) -> list[Served]:
        """What can be asked, once each server was asked for the first time.

        Who wants to see all of it is not kept waiting for one that does not answer.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LIST_WAITS if name is None else None):
                await self._all_looked()
        return self._desk.served(name)

    async def answer(self, ask: AskModel) -> AsyncGenerator[Generated, None]:
        """One answer, from the first server that gives it.

        Raises `NotFound`, `Unavailable`, `Overloaded`, and what a server says of a request that nobody could answer.
        """
        await self._all_looked()
        there = asyncio.Event()
        ticket = Ticket(ask.model, ask.where, ask.urgency, there.set)
        given = Given(keep=ask.temperature == 0 and ask.logprobs is None and not ask.tools)
        failures: list[tuple[str, MicrokernelError]] = []
        try:
            while True:
                seat = await self._seat(ticket, there, given, failures)
                try:
                    async with aclosing(self._pieces(seat, ask, given)) as pieces:
                        async for piece in pieces:
                            yield piece
                except MicrokernelError as error:
                    failures.append((seat.name, error))
                    self._failed(seat, error)
                    again = worth_another(error)
                    if given.some and not (again and given.may_be_repeated):
                        raise broken_off(given, failures) from error
                    if not again:
                        raise named(seat.name, error) from error.__cause__
                else:
                    return
                finally:
                    self._desk.leave(ticket)
                ticket.tried.add(seat.name)
                given.again()
        finally:
            self._desk.leave(ticket)

    async def _seat(
        self, ticket: Ticket, there: asyncio.Event, given: Given, failures: list[tuple[str, MicrokernelError]]
    ) -> Seat:
        """A place at a server that was not tried yet. Raises why there is none, or how all that were tried failed."""
        there.clear()
        try:
            self._desk.join(ticket)
            if ticket.seat is None:
                await there.wait()
            if ticket.error is not None:
                raise ticket.error
        except MicrokernelError:
            if not failures:
                raise
            last = failures[-1][1]
            raise (broken_off(given, failures) if given.some else verdict(ticket.model, failures)) from last.__cause__
        assert ticket.seat is not None
        return ticket.seat

    async def _pieces(self, seat: Seat, ask: AskModel, given: Given) -> AsyncGenerator[Generated, None]:
        """The pieces of an answer that the reader does not have yet."""
        try:
            async with aclosing(seat.server.generate(ask)) as pieces:
                async for piece in pieces:
                    text = given.push(piece.text, piece.tokens, ended=piece.finish_reason is not None)
                    given.some = given.some or bool(piece.tool_calls)
                    yield msgspec.structs.replace(piece, text=text, device=seat.name)
        except MicrokernelError:
            raise
        except Exception as error:
            self._service.log.exception("%s raised %s", seat.name, type(error).__name__)
            raise from_exception(error, service=seat.name) from error

    async def _all_looked(self) -> None:
        for looked in self._looked.values():
            await looked.wait()

    async def _look_after(self, seat: Seat) -> None:
        """Ask it how it is, again and again, and tell of changes."""
        nudged = self._nudged[seat.name]
        while True:
            nudged.clear()
            try:
                wait = await seat.server.look()
            except Exception as error:
                self._service.log.exception("%s: to look at it raised %s", seat.name, type(error).__name__)
                wait = AFTER_A_DEFECT
            self._looked[seat.name].set()
            self._changed(seat)
            await self._service.clock.sleep(min(wait, SOONEST))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait - SOONEST):
                    await nudged.wait()

    def _failed(self, seat: Seat, error: MicrokernelError) -> None:
        if worth_another(error):
            self._service.log.warning("%s: %s", seat.name, error.message)
        if error.code in {Code.UNAVAILABLE, Code.NOT_FOUND}:
            self._nudged[seat.name].set()
        self._changed(seat)

    def _changed(self, seat: Seat) -> None:
        """Tell of another state, on `devices.<name>.<state>`, and let those who wait have what is there now."""
        state, why = seat.state
        before, seat.told = seat.told, state
        if state is not before and (before is not None or state is not DeviceState.HEALTHY):
            name = seat.name
            self._service.log.warning("device %s is %s%s", name, state, f": {why}" if why else "")
            self._service.publish(f"devices.{name}.{state}", name=name, state=state.value, why=why)
        self._desk.changed()

    def _describe(self, seat: Seat) -> Device:
        facts = seat.server.facts
        state, why = seat.state
        return Device(
            name=facts.name,
            kind=facts.kind,
            driver=seat.driver,
            model=facts.model,
            state=state,
            why=why,
            cores=facts.cores,
            threads=facts.threads,
            memory_bytes=facts.memory_bytes,
            memory_free_bytes=facts.memory_bytes,
            spread=0,
            running=seat.running,
            queued=self._desk.waiting(seat),
            quanta=seat.ended,
            busy_seconds=seat.busy_seconds(self._service.clock.now()),
            answers=True,
            models=tuple(model.name for model in seat.server.models),
        )
