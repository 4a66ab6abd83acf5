"""A network in memory: what aiohttp and everybody else sees as TCP, with the faults that TCP has.

Bytes arrive late, in pieces of any size, but in order and once, or the link breaks: at any byte, for both ends at once
or for one of them (a half-open link). Between links nothing is in order. A reader that reads nothing fills the window,
and then the writer's buffer, which pauses its protocol: slow readers are real. Everything is drawn from one seed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from microkernel.testing.link import Address, Link

if TYPE_CHECKING:
    import socket

__all__ = ["Network", "Server"]

Factory = Callable[[], asyncio.BaseProtocol]

LINGER = 10.0  # seconds that links have to close after a scenario
SEGMENT = 16 * 1024  # bytes: the longest piece that arrives at once


class Network:
    """All that listens and all links of one simulated loop.

    `latency` is the least and the most that a piece takes, in seconds; `bandwidth` is in bytes a second. Both hold for
    links opened later. While `refusing`, nobody is let in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        self.latency = (0.0001, 0.002)
        self.bandwidth = 1e9
        self.segments = (1, SEGMENT)
        self.refusing = False
        self.links: dict[int, Link] = {}  # those that are open, in the order they were opened
        self._loop = loop
        self._chance = chance
        self._listeners: dict[Address, Server] = {}
        self._dialled: dict[socket.socket, Address] = {}
        self._opened = 0
        self._next_port = 20_000

    def listen(self, addresses: list[Address], factory: Factory, sock: socket.socket | None = None) -> Server:
        """Accept links at `addresses`; port 0 stands for a free one. A real `sock` is closed with the server."""
        given = [self._with_port(address) for address in addresses]
        for address in given:
            if address in self._listeners:
                raise OSError(98, f"address {address} is in use")
        server = Server(self, given, factory, sock)
        self._listeners.update(dict.fromkeys(given, server))
        return server

    async def dial(self, sock: socket.socket, address: Address) -> None:
        """A connect on a socket, which then stands for `address` in `opened`. Raises `ConnectionRefusedError`."""
        await asyncio.sleep(2 * self.delay())
        self._listener(address)
        self._dialled[sock] = address

    def opened(self, sock: socket.socket, factory: Factory) -> tuple[asyncio.Transport, Any]:
        """The link that was dialled with `sock`, which itself is not needed any more."""
        address = self._dialled.pop(sock)
        sock.close()
        return self._open(address, factory)

    async def connect(self, address: Address, factory: Factory) -> tuple[asyncio.Transport, Any]:
        """A new link to `address`. Raises `ConnectionRefusedError`."""
        await asyncio.sleep(2 * self.delay())
        return self._open(address, factory)

    def delay(self) -> float:
        """How long one piece takes, in seconds."""
        return self._chance.uniform(*self.latency)

    def piece(self, most: int) -> int:
        """How many bytes arrive together, of `most` that wait."""
        least, longest = self.segments
        return max(1, min(most, self._chance.choice((longest, longest, self._chance.randint(least, longest)))))

    def any_link(self) -> Link | None:
        """One of the open links, by chance."""
        return self._chance.choice(list(self.links.values())) if self.links else None

    async def quiet(self, seconds: float = LINGER) -> None:
        """Return when no link is open, or after so many seconds: the last bytes of a close are still on their way."""
        ends = self._loop.time() + seconds
        while self.links and self._loop.time() < ends:  # noqa: ASYNC110 - to look costs nothing in virtual time
            await asyncio.sleep(seconds / 100)

    def forget(self, server: Server) -> None:
        """Stop listening."""
        self._listeners = {address: other for address, other in self._listeners.items() if other is not server}

    def _listener(self, address: Address) -> Server:
        server = self._listeners.get(address)
        if server is None or self.refusing:
            raise ConnectionRefusedError(111, f"nobody listens at {address[0]}:{address[1]}")
        return server

    def _open(self, address: Address, factory: Factory) -> tuple[asyncio.Transport, Any]:
        server = self._listener(address)
        self._opened += 1
        link = Link(self._loop, self, self._opened, address)
        self.links[link.number] = link
        protocol = factory()
        link.client.attach(protocol)
        link.server.attach(server.factory())
        return link.client, protocol

    def _with_port(self, address: Address) -> Address:
        host, port = address
        if port != 0:
            return address
        self._next_port += 1
        return (host, self._next_port)


class Server(asyncio.AbstractServer):
    """What `create_server` returns."""

    def __init__(
        self, network: Network, addresses: list[Address], factory: Factory, sock: socket.socket | None
    ) -> None:
        self.factory = factory
        self._sock = sock
        self._network = network
        self._addresses = addresses
        self._serving = True

    @property
    def sockets(self) -> tuple[_Name, ...]:
        """Names of where it listens; they only have `getsockname`."""
        return tuple(_Name(address) for address in self._addresses) if self._serving else ()

    def close(self) -> None:
        """Accept nobody any more; links go on."""
        self._serving = False
        self._network.forget(self)
        if self._sock is not None:
            self._sock.close()

    def is_serving(self) -> bool:
        """Whether links are accepted."""
        return self._serving

    async def start_serving(self) -> None:
        """It has served since it was made."""

    async def serve_forever(self) -> None:
        """Wait until cancelled."""
        await asyncio.get_running_loop().create_future()

    async def wait_closed(self) -> None:
        """Return at once, as Python 3.11 does: its links may live on."""

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it was made on."""
        return asyncio.get_running_loop()


class _Name:
    """The address of something that listens."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        return self._address
