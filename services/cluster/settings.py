"""The section `[services.cluster]` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from microkernel.message import Message

__all__ = ["ClusterSettings"]

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ClusterSettings(Message, kw_only=True):
    """How other nodes reach this one, and which cluster it belongs to.

    Nodes come to `host` and `port`; 0 takes any free one. Beyond this machine that takes certificates, which are made
    by the cluster itself, renewed every half of `certificate_hours`. `advertise` (`host:port`) is how others reach this
    node, where that is not what it listens on. `join` are addresses of members of the cluster to join (`boot --join`);
    `token` is a join token of it, needed once. `join_secret` is a file with a line that the first node and those that
    join it have in common: with it no join token is needed. `join_seconds` is how long a node that joins for the first
    time waits for one that lets it in. `nodes` is how many worker nodes are started beside this one, on this
    machine (`boot --nodes`), each with the arguments `worker`. `launchers` are the sections of those launchers that are
    to start nodes on other systems' machines, by name, and `launched` is the configuration of such nodes, as TOML: by
    default that of this one. A node that leaves has `drain_seconds` to end what runs.
    """

    host: str = "127.0.0.1"
    port: Port = 0
    advertise: str | None = None
    join: tuple[str, ...] = ()
    token: str | None = None
    join_secret: str | None = None
    # The kernel gives start() 60 s in all.
    join_seconds: Annotated[float, msgspec.Meta(ge=0, le=50)] = 0.0
    nodes: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    worker: tuple[str, ...] = ()
    launchers: dict[str, dict[str, Any]] = {}
    launched: str = ""
    certificate_hours: Seconds = 24.0
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
