"""Which model server gets a request, and who waits for one: a plain class without a loop.

A server that is healthy goes before one that is suspect, and of those the one that has the fewest requests for its
weight; equals take turns. A request that finds no place waits for any of the servers that could answer it, so none is
idle while somebody waits behind another.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Callable, Iterator

from microkernel.errors import MicrokernelError, NotFound, Overloaded, Unavailable
from microkernel.model_server import ModelServer
from services.devices.messages import DeviceState, Served

__all__ = ["Desk", "Seat", "Ticket"]

NEWEST = 0.1  # weight of the newest answer in how long one takes
COME_BACK = 5.0  # seconds in which a server may be there again
LONGEST = 60.0  # seconds that somebody is told to come back in, however long the queue is


class Seat:
    """A model server of `driver`, and how busy it is."""

    def __init__(self, driver: str, server: ModelServer) -> None:
        self.driver = driver
        self.server = server
        self.name = server.facts.name
        self.running = 0
        self.ended = 0  # answers
        self.told: DeviceState | None = None  # the state that was told last
        self.turn = 0  # when it last got a request
        self.each = 0.0  # seconds that an answer takes
        self._busy = 0.0
        self._busy_since: float | None = None

    @property
    def state(self) -> tuple[DeviceState, str]:
        """How it is, and why."""
        if lost := self.server.lost():
            return DeviceState.QUARANTINED, lost
        if fault := self.server.fault():
            return DeviceState.SUSPECT, fault
        return DeviceState.HEALTHY, ""

    @property
    def free(self) -> bool:
        """Whether it may have one more request."""
        return self.running < self.server.places

    def busy_seconds(self, now: float) -> float:
        """For how long it has had a request, one at least."""
        return self._busy + (0.0 if self._busy_since is None else now - self._busy_since)

    def begin(self, turn: int, now: float) -> None:
        """It gets one more request."""
        self.turn = turn
        if self.running == 0:
            self._busy_since = now
        self.running += 1

    def end(self, seconds: float, now: float) -> None:
        """A request has left it after so many seconds."""
        self.running -= 1
        self.ended += 1
        self.each = seconds if self.each == 0.0 else self.each + NEWEST * (seconds - self.each)
        if self.running == 0:
            self._busy, self._busy_since = self.busy_seconds(now), None


class Ticket:
    """A request for `model`; `where` is a device or a driver, or "" for any. The least `urgency` goes first.

    `wake` is called once, when it has a `seat`, or an `error` because nobody is left who could answer.
    """

    def __init__(self, model: str, where: str, urgency: int, wake: Callable[[], None]) -> None:
        self.model = model
        self.where = where
        self.tried: set[str] = set()
        self.seat: Seat | None = None
        self.error: MicrokernelError | None = None
        self.wake = wake
        self.order = (urgency, 0)
        self.began = 0.0


class Desk:
    """All model servers of this node. `now` is in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._seats: dict[str, Seat] = {}
        self._waiting: list[Ticket] = []
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats.values())

    def __contains__(self, name: object) -> bool:
        return name in self._seats

    def __getitem__(self, name: str) -> Seat:
        return self._seats[name]

    def enter(self, seat: Seat) -> None:
        """One more server."""
        self._seats[seat.name] = seat

    def waiting(self, seat: Seat) -> int:
        """How many requests wait that it could answer."""
        return sum(self._could(seat, ticket) for ticket in self._waiting)

    def served(self, name: str | None = None) -> list[Served]:
        """What can be asked where; with a `name`, only what that means: a model, or `device/model`, `driver/model`."""
        if name is None:
            return list(self._rows(None, ""))
        if rows := list(self._rows(name, "")):
            return rows
        where, slash, model = name.partition("/")
        return list(self._rows(model, where)) if slash and where else []

    def join(self, ticket: Ticket) -> None:
        """Give it a seat if one is free, or let it wait; again after a failure, with those that it has `tried`.

        Raises `NotFound`, `Unavailable` where none can be asked now, and `Overloaded` where too many wait.
        """
        ticket.seat = ticket.error = None
        number = ticket.order[1] or next(self._numbers)
        ticket.order = (ticket.order[0], number)
        candidates = self._candidates(ticket)
        if not candidates:
            raise self._nobody(ticket)
        if self._give(ticket, candidates):
            return
        if all(self.waiting(seat) >= seat.server.queue for seat in candidates):
            raise self._crowded(ticket, candidates)
        insort(self._waiting, ticket, key=lambda each: each.order)

    def leave(self, ticket: Ticket) -> None:
        """It has ended, or its asker has gone; its place is free, and the next one gets it."""
        if ticket.seat is None:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            return
        now = self._now()
        ticket.seat.end(now - ticket.began, now)
        ticket.seat = None
        self.changed()

    def changed(self) -> None:
        """A place is free, or a server is another than before: give seats to those who wait and now can have one."""
        for ticket in tuple(self._waiting):
            candidates = self._candidates(ticket)
            if not candidates:
                ticket.error = self._nobody(ticket)
            elif not self._give(ticket, candidates):
                continue
            self._waiting.remove(ticket)
            ticket.wake()

    def _rows(self, model: str | None, where: str) -> Iterator[Served]:
        for seat in self._seats.values():
            if where not in {"", seat.name, seat.driver}:
                continue
            state, why = seat.state
            for each in seat.server.models:
                if model in {None, each.name}:
                    yield Served(
                        model=each.name,
                        device=seat.name,
                        driver=seat.driver,
                        state=state,
                        why=why,
                        context_length=each.context_length,
                        created=each.created,
                    )

    def _could(self, seat: Seat, ticket: Ticket) -> bool:
        return (
            ticket.where in {"", seat.name, seat.driver}
            and seat.name not in ticket.tried
            and any(model.name == ticket.model for model in seat.server.models)
            and seat.server.lost() is None
        )

    def _candidates(self, ticket: Ticket) -> list[Seat]:
        return [seat for seat in self._seats.values() if self._could(seat, ticket)]

    def _give(self, ticket: Ticket, candidates: list[Seat]) -> bool:
        free = [seat for seat in candidates if seat.free]
        if not free:
            return False
        seat = min(free, key=_preference)
        ticket.seat, ticket.began = seat, self._now()
        seat.begin(next(self._numbers), ticket.began)
        return True

    def _nobody(self, ticket: Ticket) -> MicrokernelError:
        """Why there is no server for a request."""
        rows = [row for row in self._rows(ticket.model, ticket.where) if row.device not in ticket.tried]
        if not rows:
            where = f" at '{ticket.where}'" if ticket.where else ""
            return NotFound(f"no model is served{where} as '{ticket.model}'", field="model", remedy="see `mk devices`")
        reasons = "; ".join(f"{row.device} is {row.state}: {row.why}" for row in rows)
        return Unavailable(
            f"'{ticket.model}' cannot be asked now: {reasons}", retry_after=COME_BACK, may_have_run=False
        )

    def _crowded(self, ticket: Ticket, candidates: list[Seat]) -> Overloaded:
        waits = [seat.each * (self.waiting(seat) + 1) / seat.server.places for seat in candidates]
        waiting = max(self.waiting(seat) for seat in candidates)
        return Overloaded(
            f"{waiting} requests wait for '{ticket.model}', and no more may",
            retry_after=min(LONGEST, max(1.0, min(waits))),
        )


def _preference(seat: Seat) -> tuple[bool, float, int]:
    return seat.server.fault() is not None, (seat.running + 1) / seat.server.weight, seat.turn
