"""The section `[services.gateway]` of the configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec

from microkernel.message import Message
from microkernel.wire.limits import Limits

__all__ = ["GatewaySettings"]

MIB = 1 << 20

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Size = Annotated[int, msgspec.Meta(gt=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class GatewaySettings(Message, kw_only=True):
    """Where the gateway listens and what it takes; sizes in bytes.

    `port` 0 takes any free one. `body_limit` is of one request (unpacked), `chat_body_limit` of a chat, `bodies_limit`
    of all that are being read at a time. `allowed_hosts` are names, beside those of this machine itself, under which a
    gateway on a loopback address may be asked; `allowed_origins` are the origins (`https://host:port`, or `*`) whose
    pages may call from a browser. `keepalive_seconds` is how often a silent answer shows that it is alive,
    `idle_seconds` how long a connection may wait for a whole request head, `body_seconds` for its body. A reader that
    takes nothing for `slow_reader_seconds` is cut. Running answers have `drain_seconds` to end when the gateway stops.
    `wire` are the limits of each websocket session. With a `certificate` (a PEM file), everything is encrypted;
    `key` is the file of its private key, where that is not in the same one.
    """

    host: str = "127.0.0.1"
    port: Port = 7070
    connections: Size = 1024
    body_limit: Size = 64 * MIB
    chat_body_limit: Size = 4 * MIB
    bodies_limit: Size = 256 * MIB
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    keepalive_seconds: Seconds = 15.0
    idle_seconds: Seconds = 75.0
    body_seconds: Seconds = 60.0
    slow_reader_seconds: Seconds = 30.0
    # The kernel gives stop() 5 s in all; cutting what is left takes up to 2.
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=3)] = 2.0
    wire: Limits = Limits()
    certificate: str | None = None
    key: str | None = None
