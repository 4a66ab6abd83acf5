"""The addresses that the gateway is known by."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from microkernel.wire.listening import in_url
from services.gateway.messages import Address

__all__ = ["LOCAL_NAMES", "address_of"]

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def address_of(host: str, sockets: Sequence[socket.socket], certificate: str | None = None) -> Address:
    """How to reach the gateway that listens on `sockets`, encrypted where there is a `certificate`."""
    scheme = "http" if certificate is None else "https"
    file = None if certificate is None else str(Path(certificate).absolute())
    port: int = sockets[0].getsockname()[1]
    urls = tuple(f"{scheme}://{in_url(each.getsockname()[0])}:{port}" for each in sockets)
    return Address(url=urls[0], urls=urls, host=host, port=port, certificate=file)
