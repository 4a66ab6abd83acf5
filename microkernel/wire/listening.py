"""Listening sockets: all addresses of a host on one port, and whether other machines can reach them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Sequence

from microkernel.errors import Invalid, MicrokernelError, PreconditionFailed

__all__ = ["in_url", "is_loopback", "open_sockets"]

BACKLOG = 128


async def open_sockets(host: str, port: int, *, setting: str = "--port") -> list[socket.socket]:
    """Listening sockets on all addresses of `host`, on one port; with port 0 a free one is taken.

    `setting` is what the port is chosen by, for the errors.

    Raises `PreconditionFailed` for a port that is taken or not ours to take, `Invalid` for a host that is not here.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in await _addresses(host):
            # With port 0 the first socket finds a free one, and the others share it.
            sockets.append(_listen(family, address, sockets[0].getsockname()[1] if sockets else port, host, setting))
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def is_loopback(sockets: Sequence[socket.socket]) -> bool:
    """Whether only this machine can reach `sockets`."""
    return all(ipaddress.ip_address(each.getsockname()[0].partition("%")[0]).is_loopback for each in sockets)


async def _addresses(host: str) -> list[tuple[int, str]]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise Invalid(f"the host '{host}' is not known here", remedy="use 127.0.0.1", field="host") from error
    unique = dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found)
    return sorted(unique, key=lambda each: each[0] != socket.AF_INET)  # IPv4 first: it is what people type


def _listen(family: int, address: str, port: int, host: str, setting: str) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        # A port whose last connections are still fading away is free; one that somebody listens on is not.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise _why(error, host, port, setting) from error
    except BaseException:
        listening.close()
        raise
    return listening


def _why(error: OSError, host: str, port: int, setting: str) -> MicrokernelError:
    match error.errno:
        case errno.EADDRINUSE:
            return PreconditionFailed(
                f"port {port} on {host} is taken", remedy=f"choose another with {setting}, or stop what listens there"
            )
        case errno.EACCES:
            return PreconditionFailed(
                f"port {port} on {host} is not ours to take", remedy=f"choose one above 1023 with {setting}"
            )
        case errno.EADDRNOTAVAIL:
            return Invalid(f"{host} is not an address of this machine", remedy="use 127.0.0.1", field="host")
        case _:
            return PreconditionFailed(f"cannot listen on {host}, port {port}: {error.strerror}")


def in_url(address: str) -> str:
    """An address as it stands in a URL; for all addresses, one of this machine's own."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.is_unspecified:  # all addresses: this machine's own is one of them
        parsed = ipaddress.ip_address("127.0.0.1" if parsed.version == 4 else "::1")
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)
