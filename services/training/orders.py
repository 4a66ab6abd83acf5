"""What the agent tells a worker, and what a worker tells the agent: all messages of that border.

They go over a socket between two processes of one machine, as frames: four bytes of length, and msgpack.
"""

from __future__ import annotations

import struct

import msgspec

from microkernel.errors import DataLoss, ErrorReport
from microkernel.message import Message

__all__ = [
    "Broken", "DataReady", "Evaluated", "Failed", "Finished", "Form", "Formed", "LeftOut", "Noted", "Order", "Prepare",
    "Preparing", "Ready", "Report", "Rest", "Rested", "Save", "Saved", "Start", "Stepped", "Stop", "decode_order",
    "decode_report", "frame", "frames",
]  # fmt: skip

LARGEST = 1 << 20  # bytes of a frame; the longest are errors with their cause
_LENGTH = struct.Struct("!I")


class _Tagged(Message, tag=True, kw_only=True):
    """One message of several that a border has."""


class Start(_Tagged):
    """Read the job's file and make what it says: model and data; then say `Ready`."""

    path: str


class Prepare(_Tagged):
    """Read the file that says what to prepare, and do so; then say `Prepared`."""

    path: str


class Form(_Tagged):
    """Meet the others of this generation at the store on `port`, and go on with them.

    With `restore`, nobody has anything that is worth more than the newest checkpoint: take that, where there is one.
    `faults` of workers were seen in `seconds`. Whoever does not come for `patience` seconds is not waited for.
    """

    generation: int
    rank: int
    world: int
    port: int
    restore: bool = False
    faults: int = 0
    seconds: float = 0.0
    patience: float = 30.0


class Save(_Tagged):
    """Make a checkpoint at the end of this step."""


class Rest(_Tagged):
    """Make a checkpoint at the end of this step, say `Rested` once it is safe, and wait for `Form` or `Stop`."""


class Stop(_Tagged):
    """End at the end of this step, with a checkpoint; a worker that is in no group ends at once."""


class Preparing(_Tagged):
    """How far a preparation is, in bytes, and what came of them."""

    file: str
    done: int
    total: int
    documents: int
    tokens: int


class DataReady(_Tagged):
    """The data are there; `text` is the JSON of `Prepared`."""

    text: str


class Ready(_Tagged):
    """Model and data are there: so many weights, of which `trained` are."""

    parameters: int
    trained: int


class Formed(_Tagged):
    """The group is complete, and all are behind the same step."""

    generation: int
    step: int


class Stepped(_Tagged):
    """A step is done, on all ranks alike. `loss` is the mean of a learned token, `seconds` of this step."""

    step: int
    loss: float
    tokens: int
    learned: int
    norm: float
    rate: float
    seconds: float


class Evaluated(_Tagged):
    """The mean loss of a held-out token, behind `step` steps."""

    step: int
    loss: float
    tokens: int


class Saved(_Tagged):
    """A checkpoint is safe, so many `seconds` after it was begun."""

    step: int
    number: int
    bytes: int
    seconds: float


class Noted(_Tagged):
    """Something to be known: a checkpoint that was not made, or one that is damaged."""

    text: str


class LeftOut(_Tagged):
    """The loss diverged in a step, whose rows are passed over; the state is that behind `step` steps again."""

    diverged: int
    step: int
    why: str


class Rested(_Tagged):
    """It does nothing now; the state is that behind `step` steps."""

    step: int


class Broken(_Tagged):
    """Somebody of the group has gone; this worker is well, behind `step` whole steps."""

    generation: int
    step: int
    why: str


class Finished(_Tagged):
    """All steps are done; `path` is the folder of what was learned, of the worker that has written it."""

    step: int
    path: str


class Failed(_Tagged):
    """It cannot go on."""

    error: ErrorReport


Order = Start | Prepare | Form | Save | Rest | Stop
Report = (
    Preparing
    | DataReady
    | Ready
    | Formed
    | Stepped
    | Evaluated
    | Saved
    | Noted
    | LeftOut
    | Rested
    | Broken
    | Finished
    | Failed
)

_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_reports = msgspec.msgpack.Decoder(Report)


def frame(message: Order | Report) -> bytes:
    """A message as it is sent."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def frames(buffer: bytearray) -> list[bytes]:
    """Take all whole frames out of `buffer`. Raises `DataLoss` for one that is too long to be one."""
    found = []
    while len(buffer) >= _LENGTH.size:
        (size,) = _LENGTH.unpack_from(buffer)
        if size > LARGEST:
            raise DataLoss(f"a frame of {size} bytes comes from a training process: it is not one of ours")
        if len(buffer) < _LENGTH.size + size:
            break
        found.append(bytes(buffer[_LENGTH.size : _LENGTH.size + size]))
        del buffer[: _LENGTH.size + size]
    return found


def decode_order(body: bytes) -> Order:
    """An order. Raises `DataLoss` for what is none."""
    return _decoded(_orders, body)  # type: ignore[return-value] # by its decoder


def decode_report(body: bytes) -> Report:
    """A report. Raises `DataLoss` for what is none."""
    return _decoded(_reports, body)  # type: ignore[return-value] # by its decoder


def _decoded(decoder: msgspec.msgpack.Decoder[Order] | msgspec.msgpack.Decoder[Report], body: bytes) -> Order | Report:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise DataLoss(f"a training process said what is no message: {error}") from error
