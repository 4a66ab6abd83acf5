"""Sums over virtual shards whose bits do not depend on who added what (hot: once a shard).

Floating-point sums depend on their order. Here it is that of one binary tree over the numbers of the shards: a node is
the sum of its two halves, the left one as large a power of two as fits. A worker adds up the parts of the tree that lie
whole in its range; what is left above them is added by whoever has them together, in the same order. So one worker, or
three with one of them replaced, come to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

__all__ = ["Node", "PartialSums", "ShardTree"]


class Node(NamedTuple):
    """The sum of the shards from `start` to before `stop`."""

    start: int
    stop: int


class ShardTree:
    """The tree over so many shards."""

    def __init__(self, shards: int) -> None:
        self.root = Node(0, shards)
        self._parents: dict[Node, tuple[Node, Node, Node]] = {}  # by a left half: itself, the right one, the whole
        self._split(self.root)

    def joined(self, left: Node, right: Node) -> Node | None:
        """The node that has these two as its halves; None where there is none."""
        found = self._parents.get(left)
        return found[2] if found is not None and found[1] == right else None

    def nodes_of(self, shards: Sequence[int] | range) -> list[Node]:
        """The fewest nodes that are together these neighbouring shards, in order."""
        nodes: list[Node] = []
        for shard in shards:
            nodes.append(Node(shard, shard + 1))
            while len(nodes) > 1 and (whole := self.joined(nodes[-2], nodes[-1])) is not None:
                nodes[-2:] = [whole]
        return nodes

    def total(self, parts: Iterable[tuple[Node, torch.Tensor]]) -> torch.Tensor:
        """The sum of all shards, of nodes in order that are together all of them; it is added up in the parts."""
        sums = PartialSums(self)
        for node, part in parts:
            sums.add_node(node, part)
        [(node, total)] = sums.parts
        if node != self.root:
            raise ValueError(f"the parts end at shard {node.stop} of {self.root.stop}")
        return total

    def _split(self, node: Node) -> None:
        size = node.stop - node.start
        if size < 2:
            return
        middle = node.start + (1 << ((size - 1).bit_length() - 1))
        left, right = Node(node.start, middle), Node(middle, node.stop)
        # A left half may have a left half of its own with the same start, never the same stop: the key is unique.
        self._parents[left] = (left, right, node)
        self._split(left)
        self._split(right)


class PartialSums:
    """The parts of the tree that a worker has so far, in as few tensors as there can be."""

    def __init__(self, tree: ShardTree) -> None:
        self.parts: list[tuple[Node, torch.Tensor]] = []
        self._tree = tree
        self._spare: list[torch.Tensor] = []

    def add(self, shard: int, value: torch.Tensor) -> None:
        """Take the value of the shard that follows; `value` may be changed or filled anew afterwards."""
        node = Node(shard, shard + 1)
        if self.parts and (whole := self._tree.joined(self.parts[-1][0], node)) is not None:
            left = self.parts.pop()[1]
            self.add_node(whole, left.add_(value))
            return
        room = self._spare.pop() if self._spare else torch.empty_like(value)
        self.add_node(node, room.copy_(value))

    def add_node(self, node: Node, value: torch.Tensor) -> None:
        """Take a part whose tensor is this object's from now on."""
        while self.parts and (whole := self._tree.joined(self.parts[-1][0], node)) is not None:
            left = self.parts.pop()[1]
            self._spare.append(value)
            node, value = whole, left.add_(value)
        self.parts.append((node, value))

    def clear(self) -> None:
        """Forget all parts, and keep their memory for the next ones."""
        self._spare += [value for _, value in self.parts]
        self.parts.clear()
