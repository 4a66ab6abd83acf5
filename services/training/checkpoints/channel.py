"""What a trainer and its writer say to each other: length-prefixed MessagePack over a stream socket.

Messages are small; facts go through the shared memory. So a trainer never waits for a writer that does not read: what
the socket does not take stays here until the next turn.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeAlias

import msgspec

from microkernel.errors import DataLoss, ErrorReport, Unavailable

__all__ = ["Channel", "Failed", "FromWriter", "Open", "Opened", "ToWriter", "Write", "Written"]

LENGTH = struct.Struct(">I")
LARGEST = 16 << 20  # bytes of a message
AT_ONCE = 64 << 10  # bytes that are read


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Begin. `sizes` are the tensors' elements, `parent` the number and digest of what the job goes on from."""

    folder: str
    job: str
    key: str
    keep: int
    sizes: dict[str, int]
    file_bytes: int
    parent: tuple[int, str] | None = None
    trusted: tuple[bytes, ...] = ()


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Write what is in a slot, unless it was filled again since its `turn`."""

    slot: int
    turn: int


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The writer is ready; `notes` say what it found in the folder that is not as it should be."""

    notes: tuple[str, ...] = ()


class Written(msgspec.Struct, frozen=True, tag="written"):
    """A checkpoint is durable: its number, the manifest's digest, its bytes, and the seconds that it took."""

    slot: int
    turn: int
    step: int
    number: int
    digest: str
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It is not there, and those before are as they were; `turn` 0 is the opening."""

    slot: int
    turn: int
    error: ErrorReport


ToWriter: TypeAlias = Open | Write
FromWriter: TypeAlias = Opened | Written | Failed


class Channel:
    """One end of the socket, which is its own. `kinds` are the types of the messages that come."""

    def __init__(self, link: socket.socket, kinds: object) -> None:
        self._link = link
        self._decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(kinds)
        self._in = bytearray()
        self._out = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes that the socket has not taken."""
        return len(self._out)

    def fileno(self) -> int:
        """For `select`."""
        return self._link.fileno()

    def send(self, message: ToWriter | FromWriter) -> None:
        """Send, or keep for `flush`; raises `Unavailable` where the other end is gone."""
        content = msgspec.msgpack.encode(message)
        self._out += LENGTH.pack(len(content)) + content
        self.flush()

    def flush(self) -> None:
        """Send what is kept, as far as the socket takes it; raises as `send`."""
        try:
            while self._out:
                del self._out[: self._link.send(self._out)]
        except BlockingIOError:
            return
        except OSError as error:
            raise Unavailable("the other end of a checkpoint's channel is gone", may_have_run=True) from error

    def receive(self) -> object | None:
        """The next message; None where a socket that does not block has none.

        Raises `Unavailable` at the end, `DataLoss` for what is no message.
        """
        while True:
            if len(self._in) >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._in)
                if length > LARGEST:
                    raise DataLoss(f"a message of {length} bytes came, {LARGEST} are taken")
                if len(self._in) >= LENGTH.size + length:
                    content = bytes(self._in[LENGTH.size : LENGTH.size + length])
                    del self._in[: LENGTH.size + length]
                    return self._decoded(content)
            try:
                came = self._link.recv(AT_ONCE)
            except BlockingIOError:
                return None
            except OSError as error:
                raise Unavailable("the other end of a checkpoint's channel is gone", may_have_run=True) from error
            if not came:
                raise Unavailable("the other end of a checkpoint's channel is gone", may_have_run=True)
            self._in += came

    def close(self) -> None:
        """Let the other end know that this was all."""
        self._link.close()

    def _decoded(self, content: bytes) -> object:
        try:
            return self._decoder.decode(content)
        except msgspec.MsgspecError as error:
            raise DataLoss(f"what came is no message of a checkpoint's channel: {error}") from error
