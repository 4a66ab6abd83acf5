"""The process that speaks with Ray, as the kernel's process has it: started when there is something to ask.

Ray's client is kept out of the node's own process: it unpickles what the cluster sends, and where the head of the
cluster is gone for 60 s it ends the process that it is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivers.ray.orders import LONGEST, Answer, Close, Connect, Ended, Failed, Order, Seen, encoded
from microkernel.errors import Unavailable, copy_of

__all__ = ["BridgeProcess"]

CONNECTING = 60.0  # seconds; it takes two to four
ANSWERING = 20.0  # seconds for what is not a node's whole life
AGAIN = 10.0  # seconds until a connection is tried again that could not be made; meanwhile all are told why


class BridgeProcess:
    """Answers come to orders by their numbers. When it ends, all that waits is told; the next order starts it anew."""

    def __init__(self, connect: Callable[[int], Connect], environment: Callable[[], dict[str, str]], log: Path) -> None:
        """`connect` makes the first order, by its number; what the process and Ray print goes to the file `log`."""
        self._connect = connect
        self._environment = environment
        self._log = log
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._starting = asyncio.Lock()
        self._refused: tuple[float, Unavailable] | None = None  # until when, and why
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def ask(self, make: Callable[[int], Order], *, patience: float | None = ANSWERING) -> Answer:
        """The answer to an order, which is made with its number. Raises `Unavailable`."""
        async with self._starting:
            if self._process is None:
                await self._start_or_refuse()
        return await self._ask(make, patience)

    def tell(self, order: Order) -> None:
        """Give an order that is not answered; where there is no process, it is of no use any more."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(encoded(order))

    async def close(self, patience: float) -> None:
        """Have it end all nodes and itself; agents that it does not reach in time end as orphans."""
        async with self._starting:
            process, reading = self._process, self._reading
            self.tell(Close())
        if process is None or reading is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.shield(reading)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await reading

    async def _ask(self, make: Callable[[int], Order], patience: float | None) -> Answer:
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            self.tell(make(number))
            async with asyncio.timeout(patience):
                said: Answer = await answer
        except TimeoutError as error:
            raise Unavailable(f"Ray has not answered for {patience:g} s") from error
        finally:
            del self._waiting[number]
        if isinstance(said, Failed):
            raise Unavailable(said.why)
        return said

    async def _start_or_refuse(self) -> None:
        loop = asyncio.get_running_loop()
        if self._refused is not None and loop.time() < self._refused[0]:
            raise copy_of(self._refused[1], Unavailable)
        try:
            await self._start()
        except Unavailable as error:
            self._refused = (loop.time() + AGAIN, error)
            raise

    async def _start(self) -> None:
        environment = self._environment()
        output = await asyncio.to_thread(_open, self._log)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "drivers.ray.bridge"),
                stdin=asyncio.subprocess.PIPE,  # whose end is ours: it ends with this process, however that ends
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env=environment,
                limit=LONGEST,
                start_new_session=True,  # what a terminal tells us is not for it
            )
        except OSError as error:
            raise Unavailable(f"the process that speaks with Ray could not be started: {error.strerror}") from error
        finally:
            os.close(output)
        self._process = process
        self._reading = asyncio.create_task(self._read(process), name="ray answers")
        try:
            await self._ask(self._connect, CONNECTING)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(self._reading)
            raise

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        why = "the process that speaks with Ray was left"
        try:
            while line := await process.stdout.readline():
                answer: Answer = msgspec.json.decode(line, type=Seen | Ended | Failed)
                waiting = self._waiting.get(answer.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            code = await process.wait()
            why = f"the process that speaks with Ray has ended ({code}); its last words are in {self._log}"
        except (ValueError, msgspec.MsgspecError) as error:  # a line that is too long, or none of its own
            why = f"the process that speaks with Ray said what it should not: {error}"
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        finally:
            self._process = None
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(Unavailable(why))


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
