"""What the monitor answers: the log."""

from __future__ import annotations

from microkernel.message import Message

__all__ = ["LogRecord", "ReadLog"]


class LogRecord(Message, kw_only=True):
    """One line of the log. `number` counts those of one run of the monitor; `time` is Unix time in seconds.

    `level` is debug, info, warning or error.
    """

    number: int
    time: float
    level: str
    logger: str
    message: str
    error: str | None = None


class ReadLog(Message):
    """The last `lines` records of `level` and above; of one service if it is named."""

    lines: int = 100
    level: str = "info"
    service: str | None = None
