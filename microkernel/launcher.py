"""What a launcher is: it starts nodes of ours on machines that somebody else's system gives out.

A node that it starts joins the cluster by itself and is a member as any other: how it is, what it has to do and whether
it is taken for dead is between the nodes. The launcher only says which machines there are, and how a node has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from microkernel.message import Message, Nothing

__all__ = ["Launcher", "Machine", "NodeStart"]


class Machine(Message):
    """A place for one node. Its name is unique within the launcher, and part of the node's: letters, digits and '-'."""

    name: str
    address: str = ""


class NodeStart(Message, kw_only=True):
    """What a node is started with: its name, where the cluster is, its join token, and its configuration (TOML).

    The token lets a node in, and expires; it belongs neither into a log nor into a command line.
    """

    node: str
    join: str
    token: str
    config: str = ""

    def __repr__(self) -> str:
        return f"NodeStart(node={self.node!r}, join={self.join!r}, …)"


class Launcher(ABC):
    """Installed by the entry-point group `microkernel.launchers`; made without arguments, and only where it is set.

    `Settings` is the type of its section of the configuration, and `settings` what that says, from before `open` on.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Message]] = Nothing
    settings: Any

    @abstractmethod
    async def open(self, owner: str, folder: Path) -> None:
        """Check the settings; others are not talked to yet. Raises `Invalid` and `PreconditionFailed`.

        `owner` is a word for this node that no other has and that stays over its boots; `folder` is for what it keeps.
        """

    @abstractmethod
    async def machines(self) -> Sequence[Machine]:
        """Those on which a node should run now. Raises `Unavailable`."""

    @abstractmethod
    async def run(self, machine: str, start: NodeStart) -> str:
        """Have a node run there until it ends, and return how it ended, in a few words. Raises `Unavailable`.

        One that runs there since an earlier boot of this node is kept. Cancelled, it tells the node to end, and the
        next one begins there when it has.
        """

    @abstractmethod
    async def close(self) -> None:
        """End all nodes that run, within four seconds or without waiting for the end."""
