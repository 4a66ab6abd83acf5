"""The first token for somebody who waits for it, while work that nobody waits for takes all that the device has.

A node in a process of its own, asked over a link. Prompts of 256 tokens, new ones each time, come one after the other
with pauses of chance between them; the background has class `background`, and is all of the same owner.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.default_model import stored_model
from benchmarks.first_token.contender import Prompt
from benchmarks.first_token.node import Node
from benchmarks.first_token.prompts import Prompts
from benchmarks.messages.stopwatch import P50, percentile
from benchmarks.scheduling.node import map_of
from microkernel.message import convert
from microkernel.wire.client import connect
from services.inference.messages import Piece
from services.scheduler.messages import Mapped, Range

__all__ = ["Interactive"]

P95 = 0.95
TOKENS = 256  # of a prompt
ANSWERS = 16  # in the background
LONG = 400  # tokens of each, after which the next one comes
PATIENCE = 60.0  # seconds for the background to come up, or to go
PAUSE = 0.1  # seconds at most

Work = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


class Interactive:
    """A node with the default model, and its client."""

    async def start(self) -> None:
        """Boot, and have a first answer."""
        model = await asyncio.to_thread(stored_model)
        self._prompts = await asyncio.to_thread(Prompts, model)
        self._folder = tempfile.TemporaryDirectory(prefix="scheduling-")
        root = Path(self._folder.name)
        self._node = await asyncio.to_thread(Node(model, root).start, self._prompts.short()[0])
        self._made = 0  # in the background: pieces of answers, or items
        self._link = connect(root=root)
        self._system = await self._link.__aenter__()

    async def stop(self) -> None:
        """End both."""
        await self._link.__aexit__(None, None, None)
        await asyncio.to_thread(self._node.close)
        self._folder.cleanup()

    async def beside_answers(self, count: int) -> dict[str, float]:
        """First tokens of an idle node, and beside 16 answers that go on and on."""
        prompts = self._prompts.short(ANSWERS)
        return await self._compare(count, [self._answers(prompt) for prompt in prompts])

    async def beside_map(self, count: int) -> dict[str, float]:
        """The same beside a map of torch's products, a millisecond each, on the threads for single cores."""
        return await self._compare(count, [self._map])

    async def _compare(self, count: int, background: list[Work]) -> dict[str, float]:
        idle = await self._first_tokens(count)
        async with self._beside(background):
            before, began = self._made, time.perf_counter()
            beside = await self._first_tokens(count)
            pace = (self._made - before) / (time.perf_counter() - began)
        return {
            "idle": percentile(idle, P95),
            "beside": percentile(beside, P95),
            "longer": percentile(beside, P95) / percentile(idle, P95),
            "median": percentile(beside, P50) / percentile(idle, P50),
            "pace": pace,
        }

    @asynccontextmanager
    async def _beside(self, background: list[Work]) -> AsyncIterator[None]:
        """All of it has begun, and goes on for as long as this is open. Raises what any of it raises."""
        begun = [asyncio.Event() for _ in background]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(event)) for work, event in zip(background, begun, strict=True)]
            async with asyncio.timeout(PATIENCE):
                for event in begun:
                    await event.wait()
            yield
            for task in tasks:
                task.cancel()
        async with asyncio.timeout(PATIENCE):
            while await self._system.call("scheduler.list"):  # noqa: ASYNC110 - what is left is in another process
                await asyncio.sleep(0.05)

    async def _first_tokens(self, count: int) -> list[float]:
        """Seconds to the first text, in order; one more comes first, and does not count."""
        prompts = [self._prompts.long(TOKENS) for _ in range(count + 1)]
        chance = random.Random(count)
        found = []
        for prompt in prompts:
            await asyncio.sleep(chance.uniform(0.0, PAUSE))
            found.append(await self._first_token(prompt))
        return sorted(found[1:])

    async def _first_token(self, prompt: Prompt) -> float:
        began, first = time.perf_counter(), 0.0
        # Four tokens and not one: an answer of one would be flushed by its end.
        async with self._chat(prompt, max_tokens=4, process_class="interactive") as pieces:
            async for piece in pieces:
                if convert(piece, Piece).text and not first:
                    first = time.perf_counter() - began
        if not first:
            raise RuntimeError("an answer had no text")
        return first

    def _answers(self, prompt: Prompt) -> Work:
        """The same question again and again: it is read once, and answered each time."""

        async def work(begun: asyncio.Event) -> None:
            while True:
                ask = self._chat(prompt, max_tokens=LONG, process_class="background", ignore_eos=True)
                async with ask as pieces:
                    async for piece in pieces:
                        if convert(piece, Piece).text:
                            self._made += 1
                            begun.set()

        return work

    async def _map(self, begun: asyncio.Event) -> None:
        arguments = {"size": 256, "times": 1}
        ask = map_of("multiply", Range(0, 10**9), process_class="background", ordered=False, arguments=arguments)
        async with self._system.stream("scheduler.imap", ask) as pieces:
            async for piece in pieces:
                done = convert(piece, Mapped)
                self._made += done.stop - done.start
                begun.set()

    def _chat(self, prompt: Prompt, **fields: Any) -> Any:
        return self._system.stream("inference.chat", messages=prompt.messages, temperature=0.0, **fields)
