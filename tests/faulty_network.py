"""The network between nodes, as it may be: a TCP proxy in front of each node's door, which hinders who comes from whom.

Who opens a connection is read from the passport that passes by in its first websocket frames, so the nodes must not
encrypt.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum

LIMIT = 16 * 1024  # bytes that are passed on at a time
MOST_FIRST = 64 * 1024  # bytes in which a passport is looked for
_PASSPORT = re.compile(rb"mknode1\.([A-Za-z0-9][A-Za-z0-9_-]*)\.[0-9]+\.")


class Fault(StrEnum):
    """What becomes of the bytes from one node to another one.

    `HOLE`: they are held back, and nobody is told; they arrive when the way is open again, as TCP sends them again.
    `RESET`: connections break in the middle of a frame, and new ones as soon as it is known who comes. `REFUSED`: as
    that at once, and nobody listens any more. `SLOW`: they take up to `SLOWEST` seconds.
    """

    HOLE = "black hole"
    RESET = "reset"
    REFUSED = "refused"
    SLOW = "slow"


SLOWEST = 0.1


class FaultyNetwork:
    """All doors."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.doors: dict[str, FaultyDoor] = {}
        self._faults: dict[tuple[str, str], Fault] = {}
        self.changed = asyncio.Event()

    async def door(self, node: str) -> FaultyDoor:
        """A new one, in front of a node that is not there yet."""
        door = self.doors[node] = FaultyDoor(node, self)
        await door.listen()
        return door

    def fault(self, source: str, target: str) -> Fault | None:
        """What becomes of bytes from one node to another."""
        return self._faults.get((source, target))

    async def hinder(self, fault: Fault, *ways: tuple[str, str]) -> None:
        """From now on, on these ways from one node to another."""
        self._faults |= dict.fromkeys(ways, fault)
        await self._look()

    async def heal(self) -> None:
        """No more faults."""
        self._faults.clear()
        await self._look()

    async def close(self) -> None:
        """Break all connections."""
        self._faults.clear()
        for door in self.doors.values():
            await door.close()

    async def _look(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
        for door in self.doors.values():
            await door.look()


class FaultyDoor:
    """Where others find one node. `leads_to` says where the node itself listens."""

    def __init__(self, node: str, network: FaultyNetwork) -> None:
        self.node = node
        self.port = 0
        self._network = network
        self._behind: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None
        self._is_closed = False
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._come, "127.0.0.1", self.port, limit=LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]

    def leads_to(self, port: int) -> None:
        self._behind.set_result(port)

    async def look(self) -> None:
        """The faults are others than before."""
        others = [node for node in self._network.doors if node != self.node]
        refuses = all(self._network.fault(other, self.node) is Fault.REFUSED for other in others)
        if refuses and self._server is not None:
            self._server.close()
            self._server = None
        elif not refuses and self._server is None:
            await self.listen()
        for connection in self._connections.values():
            connection.look()

    async def close(self) -> None:
        self._is_closed = True
        if self._server is not None:
            self._server.close()
        self._behind.cancel()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = self._connections[task] = _Connection(self.node, self._network)
        try:
            with suppress(OSError):
                to_node, into_node = await asyncio.open_connection("127.0.0.1", await self._behind, limit=LIMIT)
                await connection.run((reader, writer), (to_node, into_node))
        except asyncio.CancelledError:
            if not self._is_closed:  # who closes it waits for it; `asyncio.streams` would tell of it
                raise
        finally:
            connection.abort()
            writer.transport.abort()
            del self._connections[task]


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """One connection, in both directions."""

    def __init__(self, target: str, network: FaultyNetwork) -> None:
        self._target = target
        self._network = network
        self._source: str | None = None  # not known before it has shown its passport
        self._first = b""  # what came before that
        self._writers: tuple[asyncio.StreamWriter, ...] = ()

    async def run(self, client: Ends, node: Ends) -> None:
        self._writers = (client[1], node[1])
        there = asyncio.create_task(self._pass(client[0], node[1], back=False), name="proxy there")
        back = asyncio.create_task(self._pass(node[0], client[1], back=True), name="proxy back")
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)

    def look(self) -> None:
        """Break, where nobody is to be there any more."""
        if Fault.REFUSED in self._faults():
            self.abort()

    def abort(self) -> None:
        """End it by RST, in both directions."""
        for writer in self._writers:
            with suppress(OSError):
                connected: socket.socket = writer.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _faults(self) -> tuple[Fault | None, ...]:
        if self._source is None:
            return ()
        return self._network.fault(self._source, self._target), self._network.fault(self._target, self._source)

    def _fault(self, *, back: bool) -> Fault | None:
        faults = self._faults()
        return faults[back] if faults else None

    def _read_source(self, data: bytes) -> None:
        if len(self._first) < MOST_FIRST:
            self._first += data
        for frame in frames_of(self._first.partition(b"\r\n\r\n")[2]):
            if passport := _PASSPORT.search(frame):
                self._source, self._first = passport[1].decode(), b""
                self.look()
                return

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(LIMIT):
                if self._source is None and not back:
                    self._read_source(data)
                while self._fault(back=back) is Fault.HOLE:
                    await self._network.changed.wait()
                fault = self._fault(back=back)
                if fault is Fault.SLOW:
                    await asyncio.sleep(SLOWEST * self._network.chance.random())
                if writer.transport.is_closing():
                    return
                if fault is Fault.RESET:
                    writer.write(data[: len(data) // 2])
                    self.abort()
                    return
                writer.write(data)
                await writer.drain()


def frames_of(data: bytes) -> Iterator[bytes]:
    """What a client's whole frames at the beginning of `data` say (RFC 6455, section 5.2)."""
    place = 0
    while len(data) >= place + 2:
        short = data[place + 1] & 0x7F
        place += 2
        more = {126: 2, 127: 8}.get(short, 0)
        length = int.from_bytes(data[place : place + more]) if more else short
        place += more
        key, body = data[place : place + 4], data[place + 4 : place + 4 + length]
        if len(body) < length or not data[place - more - 1] & 0x80:
            return
        yield bytes(byte ^ key[number % 4] for number, byte in enumerate(body))
        place += 4 + length
