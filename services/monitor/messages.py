"""What the monitor answers: the log, the audit, and how the export of traces goes."""

from __future__ import annotations

from enum import StrEnum

from microkernel.message import Message

__all__ = ["LogRecord", "ReadAudit", "ReadLog", "TraceExport", "TracesStatus"]


class TraceExport(StrEnum):
    """Where the spans of traced calls go: nowhere, to stderr, or by OTLP over HTTP to a collector."""

    NOWHERE = ""
    CONSOLE = "console"
    OTLP = "otlp"


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


class ReadAudit(Message):
    """The last `lines` denials; of one user if one is named."""

    lines: int = 100
    user: str | None = None


class TracesStatus(Message, kw_only=True):
    """How the export of traces goes; numbers are of spans since the monitor has started.

    `why` says what is wrong, and is empty while nothing is. `failed` were given up by the exporter; `dropped` are the
    oldest, where more came than could leave; `waiting` will leave.
    """

    export: TraceExport
    why: str = ""
    exported: int = 0
    failed: int = 0
    dropped: int = 0
    waiting: int = 0
