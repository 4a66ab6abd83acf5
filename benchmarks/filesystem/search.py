"""A search by meaning among many pieces: the vector of the query, every piece compared, names, rights and texts."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from benchmarks.default_model import encoding_node
from benchmarks.embedding.texts import texts_of
from benchmarks.filesystem.node import ReachableFilesystem
from benchmarks.filesystem.place import Place
from benchmarks.messages.stopwatch import percentiles
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.filesystem.paths import TreePath
from services.filesystem.search import table
from services.filesystem.search.pieces import Piece
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.contents import Content, digest_of
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

__all__ = ["Searches"]

SERVICES = (Devices, Memory, Models, Scheduler, Inference, ReachableFilesystem)
PER_FILE = 100
LINE = b"a line of one of many files, as long as a short sentence is\n"


class Searches(Place):
    """Ours, with an index whose vectors are drawn: what they mean costs nothing more or less."""

    async def start(self) -> None:
        """Boot, and have the encoder loaded."""
        await super().start()
        self._system = TestKernel(*SERVICES, settings=encoding_node(), root=self.folder / "state")
        await self._system.__aenter__()
        self._count = 0

    async def stop(self) -> None:
        """Shut down."""
        await self._system.__aexit__(None, None, None)
        await super().stop()

    async def search(self, pieces: int, times: int) -> dict[str, float]:
        """Seconds of a search among so many pieces, p50 and p99."""
        if self._count == 0:
            answer = await self._system.call("inference.embed", texts=["warm"])
            volume = ReachableFilesystem.made[-1].tree.stored(TreePath(()))
            for first in range(0, pieces, PER_FILE * 100):
                await volume.change(partial(_make, first, min(pieces, first + PER_FILE * 100), answer.model))
            await self._system.call("filesystem.index", path="/data")
            await self._system.restart("filesystem")  # it reads what is kept when it is first asked
            self._count = pieces
        spent = []
        for query in ["warm", *texts_of("lines", times)]:
            began = time.perf_counter()
            found = await self._system.call("filesystem.search", path="/", query=query)
            spent.append(time.perf_counter() - began)
            assert len(found) == 10
        taken = percentiles(spent[1:])
        return {"p50": taken["p50"], "p99": taken["p99"]}


def _make(first: int, stop: int, model: str, changes: Changes) -> None:
    generator = np.random.default_rng(first)
    for begin in range(first, stop, PER_FILE):
        content = f"{begin}\n".encode() + LINE * PER_FILE
        entry = changes.put(
            TreePath(("data", str(begin // 10_000), str(begin))),
            Content(digest_of(content), len(content), inline=content),
            None,
        )
        vectors = generator.standard_normal((PER_FILE, 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pieces = [Piece(place * len(LINE), (place + 1) * len(LINE), "") for place in range(PER_FILE)]
        assert entry.content is not None
        rows = [row.tobytes() for row in vectors.astype(np.float16)]
        table.keep(changes, content=entry.content, model=model, pieces=pieces, vectors=rows)
    changes.told.clear()
