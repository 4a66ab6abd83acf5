"""What the kernel's process and the one that speaks with Ray tell each other: a JSON text on a line."""

from __future__ import annotations

import msgspec

from drivers.ray.settings import RaySettings
from microkernel.launcher import Machine, NodeStart
from microkernel.message import Message

__all__ = ["LONGEST", "Answer", "Close", "Connect", "End", "Ended", "Failed", "Look", "Order", "Run", "Seen", "encoded"]

LONGEST = 4 << 20  # bytes of a line; the longest are a configuration, and a list of machines


class Connect(Message, tag="connect"):
    """Connect to Ray, and have all agents in a name space of `owner`. Answered with `Seen` or `Failed`."""

    id: int
    settings: RaySettings
    owner: str


class Look(Message, tag="look"):
    """Which machines are there? Answered with `Seen` or `Failed`."""

    id: int


class Run(Message, tag="run"):
    """Have a node run on a machine. Answered with `Ended` or `Failed`, when it is over."""

    id: int
    machine: str
    start: NodeStart


class End(Message, tag="end"):
    """Tell the node to end that was started by that id, if it still runs."""

    id: int


class Close(Message, tag="close"):
    """End all nodes, then yourself."""


class Seen(Message, tag="seen"):
    """The machines that are there."""

    id: int
    machines: tuple[Machine, ...]


class Ended(Message, tag="ended"):
    """A node has ended, in that way."""

    id: int
    how: str


class Failed(Message, tag="failed"):
    """It could not be done."""

    id: int
    why: str


Order = Connect | Look | Run | End | Close
Answer = Seen | Ended | Failed


def encoded(message: Order | Answer) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"
