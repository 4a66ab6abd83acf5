"""The process that speaks with Ray: it takes orders on standard input and answers on standard output.

When its standard input ends without a word, whoever started it was killed: it ends too, and leaves the agents to the
next one, which finds them by their names. Run by `drivers.ray.launcher`, with `python -m drivers.ray.bridge`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any, BinaryIO

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drivers.ray.agent import Agent, Placed
from drivers.ray.orders import LONGEST, Answer, Close, Connect, End, Ended, Failed, Look, Order, Run, Seen, encoded
from drivers.ray.settings import place_of
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.launcher import Machine, NodeStart

__all__ = ["Bridge", "main"]

NAME = 12  # letters of a node's id in Ray that it is called by
REACHING = 5.0  # seconds
PLACING = 300.0  # seconds that Ray has to start an agent; it may install packages first
STOPPING = 2.7  # seconds; the agent's own limit is less, and that of who waits for all of them more
TEND = 5.0  # seconds from one word to an agent to the next
MOST_SAID = 300  # letters of an error; the advice of some goes on for a page
CALLS = 64  # that an agent takes at a time


class Bridge:
    """Carries out orders until it is told to close, or nobody is left to tell it."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._settings: Any = None
        self._owner = ""
        self._machines: dict[str, dict[str, Any]] = {}  # what Ray tells of each, by our name
        self._ends: dict[int, asyncio.Event] = {}  # of what runs, by the number of its order
        self._turns: dict[str, asyncio.Lock] = {}  # one after the other on a machine
        self._runs: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Take orders; returns when all is over."""
        orders = asyncio.StreamReader(limit=LONGEST)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        while line := await orders.readline():
            order: Order = msgspec.json.decode(line, type=Order)
            match order:
                case Connect() | Look():
                    self._say(self._look(order))
                case Run():
                    self._ends[order.id] = asyncio.Event()
                    run = asyncio.create_task(self._run(order), name=f"run on {order.machine}")
                    self._runs.add(run)
                    run.add_done_callback(self._runs.discard)
                case End():
                    if order.id in self._ends:
                        self._ends[order.id].set()
                case Close():
                    for end in self._ends.values():
                        end.set()
                    if self._runs:
                        await asyncio.wait(self._runs)
                    self._end_the_rest()
                    return

    def _look(self, order: Connect | Look) -> Answer:
        try:
            if isinstance(order, Connect):
                self._connect(order)
            found = [node for node in ray.nodes() if node["Alive"] and self._suits(node["Resources"])]
        except Exception as error:  # noqa: BLE001 - Ray raises of every kind; all of it is told
            return Failed(order.id, f"Ray at {self._settings.address}: {_one_line(error)}")
        self._machines = {node["NodeID"][:NAME]: node for node in found}
        machines = [Machine(name, node["NodeManagerAddress"]) for name, node in self._machines.items()]
        return Seen(order.id, tuple(machines))

    def _connect(self, order: Connect) -> None:
        settings = self._settings = order.settings
        self._owner = order.owner
        if settings.address != "auto":
            socket.create_connection(place_of(settings.address), REACHING).close()  # Ray tries for a minute
        ray.init(address=settings.address, namespace=f"microkernel-{order.owner}", log_to_driver=False)

    def _suits(self, has: dict[str, float]) -> bool:
        settings = self._settings
        wants = {"CPU": settings.num_cpus, "GPU": settings.num_gpus, **settings.resources}
        return all(has.get(name, 0.0) >= amount for name, amount in wants.items())

    async def _run(self, order: Run) -> None:
        try:
            async with self._turns.setdefault(order.machine, asyncio.Lock()):
                how = await self._through_an_agent(order, self._ends[order.id])
            self._say(Ended(order.id, how))
        except Exception as error:  # noqa: BLE001 - as above
            self._say(Failed(order.id, _one_line(error)))
        finally:
            del self._ends[order.id]

    async def _through_an_agent(self, order: Run, end: asyncio.Event) -> str:
        """Have a node run until it ends or is told to."""
        machine = self._machines.get(order.machine)
        if machine is None:
            raise Unavailable("its node in Ray is gone")
        if end.is_set():
            return "was told to end before it began"
        agent, keep = self._agent(order.machine, machine["NodeID"]), False
        ending = asyncio.create_task(end.wait(), name="told to end")
        tending = asyncio.create_task(self._tend(agent), name="tend")
        try:
            placing = _soon(agent.tend.remote())
            await asyncio.wait({placing, ending}, timeout=PLACING, return_when=asyncio.FIRST_COMPLETED)
            if not placing.done():
                return "was not placed before it was told to end" if ending.done() else self._not_placed()
            placing.result()
            running = _soon(agent.run.remote(self._placed(order.start, machine["NodeManagerAddress"])))
            await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                with contextlib.suppress(TimeoutError, RayError):
                    async with asyncio.timeout(STOPPING):
                        await _soon(agent.stop.remote())
                        return str(await running)
                return "did not end when it was told to, and was killed"
            return str(running.result())
        except (ActorUnavailableError, asyncio.CancelledError):
            keep = True  # it may be there all the same, or we are to go: the next run looks for it
            raise
        finally:
            ending.cancel()
            tending.cancel()
            await asyncio.gather(ending, tending, return_exceptions=True)
            if not keep:
                ray.kill(agent, no_restart=True)

    def _agent(self, machine: str, node: str) -> Any:
        """The agent on a node of Ray's: the one that is there, or a new one."""
        settings = self._settings
        options = ray.remote(Agent).options(
            name=f"agent-{machine}",
            lifetime="detached",
            get_if_exists=True,
            max_restarts=0,  # attempts are counted in one place, and that is not here
            max_task_retries=0,
            max_concurrency=CALLS,
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            resources=settings.resources or None,
            runtime_env=settings.runtime_env or None,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        return options.remote(settings.orphan_seconds)

    def _placed(self, start: NodeStart, address: str) -> Placed:
        root, beyond = self._settings.root.rstrip("/"), start.join.startswith("https")
        return Placed(
            start=start,
            folder=f"{root}/{self._owner}/{start.node}",
            models=f"{root}/models",
            host=address if beyond else None,
            port=self._settings.port if beyond else 0,
        )

    def _not_placed(self) -> str:
        wants = f"num_cpus={self._settings.num_cpus:g}, num_gpus={self._settings.num_gpus:g}"
        return f"Ray has found no room for it in {PLACING:g} s: it asks for {wants}"

    async def _tend(self, agent: Any) -> None:
        """Tell an agent now and then that it is not forgotten, one word at a time."""
        while True:
            await asyncio.sleep(TEND)
            with contextlib.suppress(RayError):
                await _soon(agent.tend.remote())

    def _end_the_rest(self) -> None:
        """End agents of an earlier boot that nobody has asked for yet: their nodes see their input end."""
        if ray.is_initialized():
            for name in ray.util.list_named_actors():
                with contextlib.suppress(RayError, ValueError):  # it is gone meanwhile
                    ray.kill(ray.get_actor(name), no_restart=True)

    def _say(self, answer: Answer) -> None:
        self._answers.write(encoded(answer))
        self._answers.flush()


def _soon(reference: Any) -> asyncio.Future[Any]:
    """What a call of an agent's gives, as this loop waits for it."""
    return asyncio.wrap_future(reference.future())


def _one_line(error: BaseException) -> str:
    """What went wrong and why, without Ray's colours and tracebacks."""
    if isinstance(error, MicrokernelError):
        return str(error)
    before, _, trace = str(error).partition("Traceback (most recent call last):")
    raised = [line for line in trace.splitlines() if line.strip() and not line.startswith(" ")]
    said = " ".join((before + " ".join(raised[-1:])).split())[:MOST_SAID]
    why = f" ({_one_line(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {said or 'without a word'}{why}"


def main() -> None:
    """Serve, then leave without waiting for Ray's threads."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints does not come between the answers
    asyncio.run(Bridge(answers).serve())
    os._exit(0)


if __name__ == "__main__":
    main()
