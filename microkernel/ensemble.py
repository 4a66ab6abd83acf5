"""Several instances of one service, seen as one: calls are balanced, and one that crashes is replaced by itself.

The instances are children of a supervisor of their own (`one_for_one`); when it gives up, or when none of them answers
any more, the whole has crashed and the node's supervisor decides, as OTP's supervision trees do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from microkernel.balance import Balance, Balancer, Candidate, affinity_of
from microkernel.errors import MicrokernelError, copy_of, from_exception
from microkernel.gate import Closed, Gate
from microkernel.instance import Instance
from microkernel.message import Call
from microkernel.nursery import contained
from microkernel.router import Router
from microkernel.service import Handler, Service
from microkernel.supervisor import Child, RestartAll, Strategy, Supervisor

__all__ = ["Balanced", "Ensemble", "Make"]

Make = Callable[[int, Callable[[Exception], None]], Instance]
"""Makes the instance of a number, which tells of its crash."""


class Balanced:
    """The gates of one handler, an instance each, as one."""

    def __init__(self, target: str, count: int, balance: Balance, field: str) -> None:
        """`field` of the message is what `Balance.HASH` hashes; a message without it goes by who calls."""
        self.target = target
        self.gates: list[Gate | None] = [None] * count
        self._balance = balance
        self._balancer = Balancer(balance)
        self._field = field
        self._shut: Closed | None = None
        self._calls = self._failures = 0  # of gates that are gone

    @property
    def closed(self) -> Closed | None:
        """Why nobody is admitted, None while somebody is."""
        if self._shut is not None or self._open():
            return self._shut
        return Closed(f"no instance of {self.target} answers", retry_after=1.0, may_have_run=False)

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._calls + sum(gate.calls for gate in self.gates if gate is not None)

    @property
    def failures(self) -> int:
        """Calls that have ended badly."""
        return self._failures + sum(gate.failures for gate in self.gates if gate is not None)

    @property
    def in_flight(self) -> int:
        """Calls that were admitted and have not ended."""
        return sum(gate.in_flight for gate in self.gates if gate is not None)

    @property
    def queued(self) -> int:
        """Calls that wait to be admitted."""
        return sum(gate.queued for gate in self.gates if gate is not None)

    def pick(self, message: tuple[Any, ...], call: Call) -> Gate:
        """The gate that this call goes through. Raises `Closed`."""
        gates = self._open()
        if not gates or self._shut is not None:
            assert self.closed is not None
            raise self.closed
        roomy = [number for number in gates if gates[number].has_room] or list(gates)
        candidates = [Candidate(number, gates[number].in_flight + gates[number].queued) for number in roomy]
        affinity = affinity_of(self._balance, self._field, message, call)
        return gates[self._balancer.choose(candidates, affinity).number]

    def replace(self, number: int, gate: Gate) -> None:
        """An instance has a new incarnation."""
        old, self.gates[number] = self.gates[number], gate
        if old is not None:
            self._calls += old.calls
            self._failures += old.failures

    def close(self, reason: MicrokernelError) -> None:
        """See `Gate.close`."""
        self._shut = copy_of(reason, Closed)
        for gate in filter(None, self.gates):
            gate.close(reason)

    def kill(self, reason: MicrokernelError) -> None:
        """See `Gate.kill`."""
        for gate in filter(None, self.gates):
            gate.kill(reason)

    async def drained(self) -> None:
        """See `Gate.drained`."""
        for gate in tuple(filter(None, self.gates)):
            await gate.drained()

    def retire(self) -> None:
        """See `Gate.retire`."""
        for gate in filter(None, self.gates):
            gate.retire()

    def _open(self) -> dict[int, Gate]:
        return {number: gate for number, gate in enumerate(self.gates) if gate is not None and gate.closed is None}


class Ensemble(Instance):
    """`count` instances of a service."""

    def __init__(
        self,
        kind: type[Service],
        router: Router,
        crashed: Callable[[Exception], None],
        incarnation: int,
        make: Make,
        *,
        count: int,
    ) -> None:
        self._count = count
        super().__init__(kind, router, crashed, incarnation)
        self._make = make
        self._members: dict[int, Instance] = {}
        self._supervisor = Supervisor(strategy=Strategy.ONE_FOR_ONE)
        for number in range(count):
            self._supervisor.add(Child(str(number)))

    @property
    def tasks(self) -> int:
        """Tasks that belong to the instances, and those that replace one."""
        return len(self._nursery) + sum(member.tasks for member in self._members.values())

    async def start(self) -> None:
        """Start all instances; raises the first error, and none is left then."""
        try:
            await _all_of(self._start_member(number) for number in range(self._count))
        except BaseException:
            await self._end()
            raise
        self._started = True

    async def ready(self) -> None:
        """Return when all instances are ready."""
        await _all_of(member.ready() for member in tuple(self._members.values()))

    async def _start_member(self, number: int) -> Instance:
        member = self._make(number, lambda error: self._member_crashed(number, member, error))
        await member.start()
        self._members[number] = member
        for name, binding in member.bindings.items():
            balanced, gate = self.bindings[name].gate, binding.gate
            assert isinstance(balanced, Balanced)
            assert isinstance(gate, Gate)
            balanced.replace(number, gate)
        return member

    def _member_crashed(self, number: int, member: Instance, error: Exception, *, starting: bool = False) -> None:
        if self._members.get(number, member) is not member or self._failure is not None:
            return
        member.close(f"crashed: {error}")
        now = self._router.clock.now()
        decision = self._supervisor.crashed(str(number), str(error), now=now, starting=starting)
        others = any(binding.gate.closed is None for binding in self.bindings.values())
        if not isinstance(decision, RestartAll) or not others:
            self.crash(error)
            return
        self.log.warning("instance %d crashed: %s; replacing it in %.1f s", number, error, decision.delay)
        self._nursery.spawn(self._replace(number, member, f"crashed: {error}", decision.delay), f"replace {number}")

    async def _replace(self, number: int, member: Instance, why: str, delay: float) -> None:
        await member.stop(why, drain=0.0)
        await self._router.clock.sleep(delay)
        try:
            fresh = await contained(self._start_member(number))
            await contained(fresh.ready())
        except Exception as error:  # noqa: BLE001 - whatever a service raises, the other instances go on
            failed = self._members.get(number, member)
            self._member_crashed(number, failed, from_exception(error, service=self.name), starting=True)
            return
        self._supervisor.started(str(number))

    def _door(self, handler: Handler) -> Balanced:
        kind = self.kind
        return Balanced(f"{self.name}.{handler.name}", self._count, Balance(kind.balance), kind.balance_field)

    async def _end(self) -> None:
        await self._nursery.close()
        members, self._members = tuple(self._members.values()), {}
        await _all_of(member.stop("ends with the others", drain=0.0) for member in members)


async def _all_of(works: Any) -> None:
    """Run all at once to their ends; raises the first error."""
    tasks: list[Coroutine[Any, Any, Any]] = list(works)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
