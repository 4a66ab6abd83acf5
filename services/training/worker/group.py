"""The workers of a job as one group: sums over all of them, and bringing those up that are behind.

torch.distributed moves the bytes, by gloo; no collective is written here. A sum is made
of two: each worker is sent everybody's parts of its own stretch of the gradient, adds them up in the order of the
shards, and all gather the sums. That moves as many bytes as a ring does, and the bits do not depend on who is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo

from microkernel.errors import Unavailable
from services.training.data.plan import shards_of
from services.training.worker.sums import Node, PartialSums, ShardTree

__all__ = ["Group", "GroupBroken"]

SEGMENT = 1 << 22  # float32 of a gradient that are summed at a time, 16 MiB: what is held beside it is a few of these


class GroupBroken(Unavailable):
    """A worker of the group has gone, or does not answer."""


class Group:
    """This worker among all; alone it needs nobody."""

    def __init__(self, rank: int = 0, world: int = 1, *, shards: int) -> None:
        self.rank, self.world = rank, world
        everybody = [shards_of(each, world, shards) for each in range(world)]
        self.shards = everybody[rank]
        self.most_shards = max(map(len, everybody))  # of any worker
        self._tree = ShardTree(shards)
        owned = [self._tree.nodes_of(each) for each in everybody]
        self._counts = [len(nodes) for nodes in owned]
        self._nodes = [node for nodes in owned for node in nodes]
        self._in_halves = world == 2 and self._counts == [1, 1]
        self._rooms: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._links: Any = None

    @classmethod
    def join(cls, store: Any, rank: int, world: int, *, shards: int, timeout: float) -> Group:
        """Meet the others at `store`, one of torch.distributed, where nobody has met before.

        Raises `GroupBroken` after `timeout` seconds, and where the store closes.
        """
        group = cls(rank, world, shards=shards)
        if world > 1:
            # Not `init_process_group`: it keeps count of groups in its process, also of those that did not come about,
            # and a worker that has tried once more than another one waits for it in another place.
            try:
                group._links = ProcessGroupGloo(store, rank, world, timedelta(seconds=timeout))
            except RuntimeError as error:
                raise GroupBroken(f"worker {rank} did not meet the others: {_first_line(error)}") from error
        return group

    def leave(self) -> None:
        """Let go of the others, whatever state they are in."""
        self._links = None

    def partial_sums(self) -> PartialSums:
        """Where this worker adds up its shards."""
        return PartialSums(self._tree)

    def total(self, parts: list[tuple[Node, torch.Tensor]], out: torch.Tensor) -> None:
        """Put the sum over all shards of all workers into `out` [n], the same bits everywhere. Raises `GroupBroken`.

        `parts`, each [n], are those of this worker; they may be changed.
        """
        if self.world == 1:
            out.copy_(self._tree.total(parts))
            return
        with _broken("summing gradients"):
            for start in range(0, out.numel(), SEGMENT):
                segment = out[start : start + SEGMENT]
                values = [part[start : start + SEGMENT] for _, part in parts]
                if self._in_halves:
                    segment.copy_(values[0])  # a + b is b + a to the bit: no order to keep
                    self._links.allreduce([segment]).wait()
                else:
                    self._total_segment(values, segment)

    def gather(self, own: Sequence[float]) -> list[list[float]]:
        """Everybody's numbers, by rank; each has as many. Raises `GroupBroken`."""
        mine = torch.tensor(own, dtype=torch.float64)
        if self.world == 1:
            return [mine.tolist()]
        with _broken("gathering"):
            everybody = [torch.empty_like(mine) for _ in range(self.world)]
            self._links.allgather([everybody], [mine]).wait()
        return [each.tolist() for each in everybody]

    def bring_up(self, step: int, facts: bytes, tensors: Sequence[torch.Tensor]) -> bytes | None:
        """Give all what the one has that did most steps: its tensors, in place, and its facts.

        Returns these where this worker was behind, None where it was not. Raises `GroupBroken`.
        """
        told = self.gather([step, len(facts)])
        steps = [int(each[0]) for each in told]
        if min(steps) == max(steps):
            return None
        source = steps.index(max(steps))
        given = self.give(source, facts, int(told[source][1]), tensors)
        return given if step < max(steps) else None

    def give(self, source: int, facts: bytes, size: int, tensors: Sequence[torch.Tensor]) -> bytes:
        """Give all what `source` has, whatever they have: tensors in place, and `size` bytes. Raises `GroupBroken`."""
        if self.world == 1:
            return facts
        text = torch.zeros(size, dtype=torch.uint8)
        if self.rank == source:
            text.copy_(torch.frombuffer(bytearray(facts), dtype=torch.uint8))
        with _broken("bringing workers up to the others"):
            for tensor in (text, *tensors):
                self._links.broadcast(tensor, source).wait()
        return text.numpy().tobytes()

    def _total_segment(self, values: list[torch.Tensor], out: torch.Tensor) -> None:
        size, world, mine = out.numel(), self.world, len(values)
        chunk = -(-size // world)
        room = self._room(out, chunk, mine)
        sent = room[0].view(world, mine, chunk)  # by who gets it
        for place, value in enumerate(values):
            whole = size // chunk
            sent[:whole, place] = value[: whole * chunk].view(whole, chunk)
            if size % chunk:
                sent[whole, place, : size % chunk] = value[whole * chunk :]
        received = room[1].view(-1, chunk)
        counts = [count * chunk for count in self._counts]
        self._links.alltoall_base(room[1], room[0], counts, [mine * chunk] * world).wait()
        total = self._tree.total(zip(self._nodes, received, strict=True))
        self._links._allgather_base(room[2], total).wait()  # noqa: SLF001 - the backends' one name for it
        out.copy_(room[2][:size])

    def _room(self, like: torch.Tensor, chunk: int, mine: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is sent, received and gathered; kept, since fresh memory costs as much as the sum."""
        key = (chunk, like.device)
        if key not in self._rooms:
            if len(self._rooms) > 1:
                self._rooms.clear()
            sizes = (self.world * mine * chunk, len(self._nodes) * chunk, self.world * chunk)
            sent, received, gathered = (like.new_zeros(size) for size in sizes)
            self._rooms[key] = (sent, received, gathered)
        return self._rooms[key]


@contextlib.contextmanager
def _broken(doing: str) -> Iterator[None]:
    """What torch.distributed raises when somebody has gone, as our error."""
    try:
        yield
    except RuntimeError as error:  # DistError, DistBackendError and gloo's own are all of this kind
        raise GroupBroken(f"{doing}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
