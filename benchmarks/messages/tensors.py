"""Tensors of 1 MiB from a node to its client, in a process each: views at both ends, and no base64 between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from benchmarks.messages.node import Node
from benchmarks.messages.process import split_address
from benchmarks.messages.service import Count
from benchmarks.messages.stopwatch import rate
from microkernel.buffers import Array
from microkernel.message import Message
from microkernel.service import Service, handles, streams
from microkernel.wire.client import connect

__all__ = ["PACE", "TENSOR", "TensorClient", "TensorNode", "TensorTraffic", "Tensors"]

TENSOR = 2**20  # bytes
CREDIT = 8  # as many as half of the link's buffer holds
PACE = 100  # tensors a second of the traffic beside


class Tensor(Message):
    """An array and nothing else."""

    values: Array


class Tensors(Service):
    """Gives the same tensor again and again."""

    name = "tensors"

    async def start(self) -> None:
        """Make it."""
        self._tensor = Tensor(Array.from_(np.arange(TENSOR // 4, dtype=np.float32)))

    @handles
    async def one(self) -> Tensor:
        """One."""
        return self._tensor

    @streams(credit=CREDIT)
    async def many(self, message: Count) -> AsyncGenerator[Tensor, None]:
        """So many."""
        for _ in range(message.count):
            yield self._tensor


class TensorNode(Node):
    """A node with that service."""

    services = (*Node.services, Tensors)


class TensorClient:
    """Holds one link."""

    def __init__(self, address: str) -> None:
        self._url, self._token = split_address(address)

    async def start(self) -> None:
        """Connect."""
        self._link = connect(self._url, self._token)
        self._system = await self._link.__aenter__()

    async def stop(self) -> None:
        """Close the link."""
        await self._link.__aexit__(None, None, None)

    async def tensors(self, seconds: float, count: int) -> float:
        """Bytes a second: of a stream of `count` tensors at a time, or of one call after the other where it is 1."""

        async def call(_: int) -> None:
            _check((await self._system.call("tensors.one", result_type=Tensor)).values)

        async def stream(batch: int) -> None:
            items = self._system.stream("tensors.many", Count(batch), credit=CREDIT, result_type=Tensor)
            async with items as tensors:
                async for each in tensors:
                    _check(each.values)

        return await rate(call if count == 1 else stream, seconds, batch=count) * TENSOR


class TensorTraffic(TensorClient):
    """Calls for a tensor a hundred times a second while somebody else measures."""

    async def begin(self) -> None:
        """Start."""
        self._seen = 0
        self._task = asyncio.create_task(self._traffic())

    async def end(self) -> int:
        """Stop; how many there were."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self._seen

    async def _traffic(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            _check((await self._system.call("tensors.one", result_type=Tensor)).values)
            self._seen += 1
            due = max(due + 1 / PACE, loop.time())
            await asyncio.sleep(due - loop.time())


def _check(array: Array) -> None:
    """Look at it as its user would: without a copy, and at its end."""
    values = np.asarray(array)
    assert values.nbytes == TENSOR
    assert values[-1] == TENSOR // 4 - 1
