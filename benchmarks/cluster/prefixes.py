"""Conversations over two nodes: sent where their beginning was computed, or to each node in turn."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.cluster.node import Member
from benchmarks.default_model import encoding_node
from benchmarks.messages.process import Process
from services.devices.service import Devices
from services.inference.messages import Usage
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

__all__ = ["ByPrefix", "InTurn", "OtherNode"]

TOPICS = ("bread", "sailing", "bridges", "bees", "glass", "chess", "rivers", "clocks")
FACT = "It is known of {topic} in year {year} that {count} people wrote about it, and most of them were in doubt. "
FACTS = 8  # sentences in the first turn
ANSWER = 12  # tokens


class _Node(Member):
    services = (Devices, Memory, Models, Scheduler, Inference)

    async def start(self) -> None:
        """Boot, with the default model."""
        type(self).settings = encoding_node()
        await super().start()


class OtherNode(_Node):
    """The second node."""

    name = "n2"


class ByPrefix(_Node):
    """The first node, on which all ask; the kernel chooses between the two."""

    targets: ClassVar[tuple[str, ...]] = ("inference.chat",)

    async def start(self) -> None:
        """Boot both."""
        await super().start()
        self._folder = tempfile.TemporaryDirectory(prefix="prefixes-")
        self._run = itertools.count()
        log = Path(self._folder.name) / "n2.log"
        self._other = await asyncio.to_thread(Process, f"{__name__}:OtherNode", log, await self.address())
        await self.until(2, Inference.name, loaded=True)

    async def stop(self) -> None:
        """End both."""
        await asyncio.to_thread(self._other.close)
        self._folder.cleanup()
        await super().stop()

    async def talks(self, turns: int) -> dict[str, float]:
        """Of the prompts' tokens that were seen before in their conversation: the share that was not computed again.

        In each turn all eight ask at once, in an order of its own.
        """
        run, targets = next(self._run), itertools.cycle(self.targets)
        order = random.Random(run)
        talks = [_Talk(topic, run) for topic in TOPICS]
        here, there = time.process_time(), await asyncio.to_thread(self._other.processor_time)
        for _ in range(turns):
            order.shuffle(talks)
            asked = [talk.ask(self.system.stream, next(targets)) for talk in talks]
            await asyncio.gather(*asked)
        seen, cached = sum(talk.seen for talk in talks), sum(talk.cached for talk in talks)
        waits = sorted(wait for talk in talks for wait in talk.waits)
        here = time.process_time() - here
        there = await asyncio.to_thread(self._other.processor_time) - there
        return {"hits": cached / seen, "first": waits[len(waits) // 2], "other": there / (here + there)}


class InTurn(ByPrefix):
    """The same, where each question goes to the node after the last one's."""

    targets = ("inference.chat@n1", "inference.chat@n2")


class _Talk:
    """One conversation: nothing that is said in another one, or in another run, is said here."""

    def __init__(self, topic: str, run: int) -> None:
        self._turns: list[dict[str, str]] = []
        self._questions = _questions(topic, run)
        self._known = 0  # tokens of the last prompt
        self.seen = self.cached = 0
        self.waits: list[float] = []  # seconds to first tokens, of all turns but the first

    async def ask(self, stream: Any, to: str) -> None:
        """The next turn."""
        self._turns.append({"role": "user", "content": next(self._questions)})
        text, usage = "", None
        async for piece in stream(to, messages=self._turns, max_tokens=ANSWER, temperature=0.0):
            text += piece.text
            usage = piece.usage or usage
        assert isinstance(usage, Usage)
        if self._known:
            self.seen += self._known
            self.cached += min(self._known, usage.cached_tokens)
            self.waits.append(usage.first_token_seconds)
        self._known = usage.prompt_tokens
        self._turns.append({"role": "assistant", "content": text})


def _questions(topic: str, run: int) -> Iterator[str]:
    facts = "".join(FACT.format(topic=topic, year=1000 + run * FACTS + each, count=each) for each in range(FACTS))
    yield f"Talk {run} about {topic}. {facts}What do you make of that?"
    for number in itertools.count(2):
        yield f"And question {number} about {topic}: what else comes to your mind, and why that?"
