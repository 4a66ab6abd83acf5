"""One service that several nodes answer, seen as one (hot: once a call that may go to another node).

Each handler has a gate here, and what it runs chooses a node and calls the handler's gate there, or on this node. What
could not begin on one node is tried on another; so is what is idempotent, and that is also *hedged*: where an answer
takes longer than most have, a second node is asked, and the first answer counts (Dean and Barroso, "The Tail at Scale",
CACM 2013). A stream that says how it is continued goes on elsewhere when its node dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from microkernel.balance import Balance, Balancer, Candidate, affinity_of
from microkernel.breaker import Breaker
from microkernel.errors import CallCancelled, Code, DeadlineExceeded, MicrokernelError, NotFound
from microkernel.gate import Gate, Passage
from microkernel.message import Call, _current, current_call
from microkernel.registry import Binding
from microkernel.service import Continuation, Handler, HandlerKind, Service, handlers_of

if TYPE_CHECKING:
    from microkernel.nodes import Neighbour, Nodes
    from microkernel.router import Router

__all__ = ["Spread"]

MOST_TRIES = 8  # of one call between two pauses, each on another node while there are others
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds, doubled each time, in which a node is found to be gone or back
PATIENCE = 30.0  # seconds that a call waits for a node that answers, where it has no deadline
SAMPLES = 64  # the last answers by which a slow one is told
ENOUGH = 16  # of them
SLOW = 0.95  # the share of answers that are quicker than one that is hedged
LEAST_HEDGE = 0.01  # seconds; a second question sooner than that costs more than it saves
MOST_HEDGES = 0.05  # of all calls: where all are slow, twice as many make it worse
_ELSEWHERE = frozenset({Code.UNAVAILABLE, Code.OVERLOADED})


class _Place:
    """A node where the service answers: this one, or another."""

    def __init__(self, node: str, neighbour: Neighbour | None) -> None:
        self.node = node
        self.number = int.from_bytes(hashlib.blake2b(node.encode(), digest_size=6).digest(), "big")
        self.neighbour = neighbour
        self.breaker = Breaker()
        self.running = 0  # calls and streams of this node's


class _Tries:
    """Where a call was tried since its last pause, and how often; its pauses, and when it first had nowhere to go."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.count = 0
        self.pauses = 0
        self.since: float | None = None


class _Chosen(NamedTuple):
    place: _Place
    gate: Gate


class _Door(Passage):
    """The gate of a spread handler."""

    __slots__ = ("alone",)

    alone: Callable[[tuple[Any, ...], Call], Gate | None]

    def pick(self, message: tuple[Any, ...], call: Call) -> Gate:
        """The gate of this node where no other one answers, as if there were no others at all."""
        return self.alone(message, call) or self


class Spread:
    """The nodes that answer one service, and what calls to it go through."""

    def __init__(self, name: str, kind: type[Service] | None, router: Router, nodes: Nodes) -> None:
        """`kind` is its class, where the service is installed here too."""
        self.name = name
        self.kind = kind
        self._router = router
        self._nodes = nodes
        self._known = {} if kind is None else {handler.name: handler for handler in handlers_of(kind)}
        balance = Balance.TWO_CHOICES if kind is None else Balance(kind.balance)
        self._field = "" if kind is None else kind.balance_field
        self._balance = Balance.LEAST_BUSY if balance is Balance.ROUND_ROBIN else balance
        self._balancer = Balancer(self._balance)
        self._places: dict[str, _Place] = {}
        self._bindings: dict[str, Binding] = {}
        self._seconds: deque[float] = deque(maxlen=SAMPLES)  # that answers took
        self._calls = self._hedges = 0

    async def bind(self, method: str) -> Binding:
        """What answers a handler. Raises `NotFound`, and `Unavailable` where no node can be asked."""
        binding = self._bindings.get(method)
        if binding is None:
            handler = await self._handler(method)
            run = self._streaming(handler) if handler.kind is HandlerKind.STREAM else self._calling(handler)
            gate = _Door(
                f"{self.name}.{method}",
                run,
                concurrency=2 * handler.concurrency,
                queue=handler.queue,
                deadlines=self._router.deadlines,
                waits=self._router.waits,
                budget=self._router.budget,
            )
            gate.alone = functools.partial(self._alone, method)
            binding = self._bindings[method] = Binding(handler, gate)
        return binding

    def _alone(self, method: str, message: tuple[Any, ...], call: Call) -> Gate | None:
        """The gate of this node, if no other one answers the service."""
        entry = self._router.registry.get(self.name)
        if entry is None or not entry.state.answers or self._nodes.knows(self.name):
            return None
        return entry.bindings[method].gate.pick(message, call)

    def known(self, method: str) -> Handler | None:
        """A handler, where it is installed here too, or a node that answers has told of it."""
        return self._known.get(method)

    async def _handler(self, method: str) -> Handler:
        if method not in self._known:
            if self.kind is None:
                self._known = await self._described()
            if method not in self._known:
                known = ", ".join(sorted(self._known)) or "none"
                raise NotFound(
                    f"service '{self.name}' has no handler '{method}'", service=self.name, remedy=f"it has: {known}"
                )
        return self._known[method]

    async def _described(self) -> dict[str, Handler]:
        """What a node that answers says of the handlers; none where no node has the service any more.

        One that may have no work now is waited for, as by a call.
        """
        expires = self._router.clock.now() + PATIENCE
        while self._nodes.knows(self.name):
            others = self._nodes.answering(self.name)
            if others:
                return await others[0].describe(self.name)
            await self._router.until_changed(self.name, expires)
        return {}

    # A call

    def _calling(self, handler: Handler) -> Callable[..., Any]:
        async def run(*message: Any) -> Any:
            call = _current.get()
            assert call is not None
            tries = _Tries()
            while True:
                chosen = await self._choose(handler, message, call, tries.nodes)
                try:
                    return await self._ask(chosen, handler, message, call, tries.nodes)
                except MicrokernelError as error:
                    repeats = error.may_have_run is False or handler.idempotent
                    if not _may_do_elsewhere(error) or not repeats or not await self._tries_again(tries, chosen, error):
                        raise

        return run

    async def _ask(
        self, chosen: _Chosen, handler: Handler, message: tuple[Any, ...], call: Call, tried: set[str]
    ) -> Any:
        """The answer of one node, or of a second one where the first takes long."""
        patience = self._patience() if handler.idempotent and self._may_hedge(tried, chosen) else None
        if patience is None:
            return await self._answer(chosen, message, call)
        first = asyncio.create_task(self._answer(chosen, message, call), name=f"first {chosen.gate.target}")
        asked = {first}
        try:
            await asyncio.wait(asked, timeout=patience)
            if not first.done():
                tried.add(chosen.place.node)
                other = await self._choose(handler, message, call, tried)
                self._hedges += 1
                asked.add(asyncio.create_task(self._answer(other, message, call), name=f"hedge {other.gate.target}"))
            return await _first_good(asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _answer(self, chosen: _Chosen, message: tuple[Any, ...], call: Call) -> Any:
        place, began = chosen.place, self._router.clock.now()
        place.breaker.begin()
        place.running += 1
        try:
            result = await chosen.gate.call(message, call)
        except BaseException as error:
            self._judge(place, error)
            raise
        finally:
            place.running -= 1
        place.breaker.succeeded()
        self._calls += 1
        self._seconds.append(self._router.clock.now() - began)
        return result

    def _patience(self) -> float | None:
        """Seconds after which an answer is late; None where too few are known."""
        if len(self._seconds) < ENOUGH:
            return None
        return max(LEAST_HEDGE, sorted(self._seconds)[int(SLOW * len(self._seconds))])

    def _may_hedge(self, tried: set[str], chosen: _Chosen) -> bool:
        others = bool(self._open_places({*tried, chosen.place.node}))
        return others and self._hedges < 1 + MOST_HEDGES * self._calls

    # A stream

    def _streaming(self, handler: Handler) -> Callable[..., Any]:
        async def run(*message: Any) -> AsyncGenerator[Any, None]:
            call = current_call()
            assert call is not None
            goes_on: Continuation | None = None
            if handler.continues is not None and handler.inputs is None and handler.takes_message:
                goes_on = handler.continues(message[0])
            given, tries = False, _Tries()
            cause: MicrokernelError | None = None
            while True:
                if goes_on is not None:
                    try:
                        following = goes_on.message()
                    except MicrokernelError as error:
                        raise cause or error  # noqa: B904 - the cause is why it would have had to go on
                    if following is None:  # only the end was missing
                        return
                    message = (following,)
                chosen = await self._choose(handler, message, call, tries.nodes)
                try:
                    async with aclosing(self._items(chosen, message, call)) as items:
                        async for item in items:
                            taken = item if goes_on is None else goes_on.take(item)
                            given = True
                            if taken is not None:
                                yield taken
                except MicrokernelError as error:
                    repeats = goes_on is not None or (error.may_have_run is False and not given)
                    if not _may_do_elsewhere(error) or not repeats or not await self._tries_again(tries, chosen, error):
                        raise
                    cause = error
                else:
                    return

        return run

    async def _items(self, chosen: _Chosen, message: tuple[Any, ...], call: Call) -> AsyncGenerator[Any, None]:
        place = chosen.place
        place.breaker.begin()
        place.running += 1
        try:
            async with aclosing(chosen.gate.stream(message, call)) as stream:
                async for item in stream:
                    place.breaker.succeeded()
                    yield item
        except BaseException as error:
            self._judge(place, error)
            raise
        finally:
            place.running -= 1
        place.breaker.succeeded()

    # Which node

    async def _choose(self, handler: Handler, message: tuple[Any, ...], call: Call, without: set[str]) -> _Chosen:
        """The node that suits best, once there is one. Raises `Unavailable`."""
        expires = self._router.clock.now() + PATIENCE if call.deadline is None else call.deadline
        while True:
            places = self._open_places(without)
            if places:
                break
            await self._router.until_changed(self.name, expires)
        places = self._having(handler.where, message, places)
        now = self._router.clock.now()
        allowed = [place for place in places if place.breaker.allows(now)] or places
        candidates = [Candidate(place.number, self._load(place)) for place in allowed]
        affinity = affinity_of(self._balance, self._field, message, call)
        number = self._balancer.choose(candidates, affinity).number
        place = next(place for place in allowed if place.number == number)
        return _Chosen(place, self._gate(place, handler, message, call))

    def _open_places(self, without: set[str]) -> list[_Place]:
        """Where a call may go."""
        registry, nodes = self._router.registry, self._nodes
        entry = registry.get(self.name)
        found = {other.node: other for other in nodes.answering(self.name)}
        others = [other for node, other in found.items() if node not in without]
        names = [other.node for other in others if not other.is_last_resort]
        if entry is not None and entry.state.answers and nodes.own not in without:
            names.append(nodes.own)
        names = names or [other.node for other in others]
        for node in [node for node in self._places if node not in found and node != nodes.own]:
            del self._places[node]
        return [self._place(node, found.get(node)) for node in names]

    def _having(self, kind: str, message: tuple[Any, ...], places: list[_Place]) -> list[_Place]:
        """Those that have what the message names; all of them where nobody has, or nothing is named."""
        if not kind or not message:
            return places
        nodes = self._nodes
        named = getattr(message[0], kind, None) or nodes.usual.get(kind)
        if named is None:
            return places
        having = [
            place
            for place in places
            if named in (nodes.things if place.neighbour is None else place.neighbour.things).get(kind, ())
        ]
        return having or places

    def _place(self, node: str, neighbour: Neighbour | None) -> _Place:
        place = self._places.get(node)
        if place is None or place.neighbour is not neighbour:
            place = self._places[node] = _Place(node, neighbour)
        return place

    def _load(self, place: _Place) -> float:
        """What a node has to do, in calls for a node of weight 1."""
        other = place.neighbour
        return place.running if other is None else max(place.running, other.load) / other.weight

    def _gate(self, place: _Place, handler: Handler, message: tuple[Any, ...], call: Call) -> Gate:
        if place.neighbour is not None:
            return place.neighbour.gate(self.name, handler)
        entry = self._router.registry.entry(self.name)
        return entry.bindings[handler.name].gate.pick(message, call)

    async def _tries_again(self, tries: _Tries, chosen: _Chosen, error: MicrokernelError) -> bool:
        """Whether a call that failed is worth another try: elsewhere, now or, where its node is gone, soon."""
        tries.count += 1
        tries.nodes.add(chosen.place.node)
        if tries.count >= MOST_TRIES:
            return False
        if self._open_places(tries.nodes):
            return True
        now = self._router.clock.now()
        tries.since = now if tries.since is None else tries.since
        tries.nodes.clear()
        if all(place.node != chosen.place.node for place in self._open_places(set())):
            return True
        neighbour = chosen.place.neighbour
        if error.code is not Code.NOT_FOUND and (neighbour is None or neighbour.is_linked):
            return False  # it is there, and nobody else is
        # Its link broke before anybody has said whether it is gone; or the service is on its way to another node; or it
        # takes this node for dead, which begins a new life as soon as it hears of that, and is let in again.
        if now - tries.since > PATIENCE:
            return False
        tries.count = 0
        tries.pauses += 1
        with contextlib.suppress(DeadlineExceeded):
            await self._router.until_changed(self.name, now + min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries.pauses))
        return True

    def _judge(self, place: _Place, error: BaseException) -> None:
        """What the end of a call says of its node."""
        if isinstance(error, MicrokernelError) and not isinstance(error, CallCancelled):
            if error.code in {Code.UNAVAILABLE, Code.DEADLINE}:
                place.breaker.failed(self._router.clock.now())
            else:
                place.breaker.succeeded()
        else:
            place.breaker.abandoned()


def _may_do_elsewhere(error: MicrokernelError) -> bool:
    """Whether another node may answer what this one has not; a service that is gone there may be here."""
    return error.code in _ELSEWHERE or (error.code is Code.NOT_FOUND and error.may_have_run is False)


async def _first_good(asked: set[asyncio.Task[Any]]) -> Any:
    """The first result. Raises the last error where all fail."""
    waiting = set(asked)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        good = next((task for task in done if not task.cancelled() and task.exception() is None), None)
        if good is not None:
            return good.result()
        if not waiting:
            return done.pop().result()
