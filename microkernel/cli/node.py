"""Where the node is, and how a command gets to talk to it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from microkernel.errors import Unavailable
from microkernel.message import Message
from microkernel.root import Root, default_root

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["Asked", "Items", "Where", "find", "on_node", "root_of", "running_node"]


class Items(Protocol):
    """The items of a stream."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def __aenter__(self) -> Items: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Asked(Protocol):
    """What answers a command: a node over its websocket, or a kernel in this process."""

    async def call(self, to: str, message: Any = None, /, *, deadline: float | None = None, **fields: Any) -> Any:
        """The result of `service.method`."""

    def stream(self, to: str, message: Any = None, /, **fields: Any) -> Items:
        """The items of `service.method`."""


class Where(Message):
    """Where to look for the node: an address, or None for what runs on the state folder."""

    url: str | None
    root: Path


def root_of(args: argparse.Namespace) -> Path:
    """The state folder that the command is about."""
    given = getattr(args, "root", None)
    return Path(given).expanduser().absolute() if given else default_root().absolute()


def find(args: argparse.Namespace) -> Where:
    """By `--url`, a folder given with `--root`, `MICROKERNEL_URL`, or the usual folder. Raises `Unavailable`."""
    url, root = getattr(args, "url", None), root_of(args)
    if url is None and hasattr(args, "root"):  # a folder that is named goes over the environment
        node = running_node(root)
        if node is None:
            raise Unavailable(f"no node is running on {root}", remedy=f"start one with: mk boot --root {root}")
        url = str(node["url"])
    return Where(url, root)


def running_node(root: Path) -> dict[str, object] | None:
    """`url` and `pid` of the node that runs on `root`; None if none does, even if a killed one has left its note."""
    return Root(root).running_node()


def on_node(args: argparse.Namespace, work: Callable[[System], Awaitable[int]]) -> int:
    """Connect, do `work`, disconnect; returns what `work` returns. A link that is lost ends the command.

    With `--on`, its calls go to another node of the cluster.
    """
    where = find(args)

    async def run() -> int:
        from microkernel.wire.client import connect

        async with connect(where.url, root=where.root, reconnect=False) as system:
            system.at = getattr(args, "on", None)
            return await work(system)

    return asyncio.run(run())
