"""The log of a node: its last records in memory, all of them as JSON lines in a rotated file."""

from __future__ import annotations

import logging
import logging.handlers
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

import orjson

from microkernel.errors import Invalid
from microkernel.message import to_builtins
from services.monitor.messages import LogRecord, ReadLog

__all__ = ["Journal", "level_number"]

RECORDS = 4096
FILE_BYTES = 8 * 1024 * 1024
FILES = 4


def level_number(name: str) -> int:
    """Raises `Invalid` for a name that is no level."""
    number = logging.getLevelNamesMapping().get(name.upper())
    if number is None:
        raise Invalid(f"'{name}' is no log level", remedy="debug, info, warning or error", field="level")
    return number


class Journal(logging.Handler):
    """Keeps records; `added(record)` is told of each. Safe to log to from any thread."""

    def __init__(self, path: Path, added: Callable[[LogRecord], None]) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = logging.handlers.RotatingFileHandler(
            path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", delay=True
        )
        self._file.setFormatter(_JsonLines())
        self._records: deque[tuple[int, LogRecord]] = deque(maxlen=RECORDS)
        self._added = added
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, under this handler's lock."""
        try:
            self._count += 1
            line = as_record(record, self._count)
            self._records.append((record.levelno, line))
            self._file.handle(record)
            self._added(line)
        except Exception:  # noqa: BLE001 - logging's own rule: a record that cannot be written does not stop the work
            self.handleError(record)

    def read(self, ask: ReadLog) -> list[LogRecord]:
        """The last records that fit, oldest first."""
        least = level_number(ask.level)
        if ask.lines < 1:
            raise Invalid(f"lines must be at least 1, not {ask.lines}", field="lines")
        fitting = [line for level, line in tuple(self._records) if level >= least and _of(line, ask.service)]
        return fitting[-ask.lines :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def as_record(record: logging.LogRecord, number: int) -> LogRecord:
    """A record of logging's as ours, with its exception in one line."""
    error = None
    if record.exc_info and record.exc_info[1] is not None:
        error = traceback.format_exception_only(record.exc_info[1])[-1].strip()
    return LogRecord(
        number=number,
        time=record.created,
        level=record.levelname.lower(),
        logger=record.name.removeprefix("microkernel."),
        message=record.getMessage(),
        error=error,
    )


def _of(line: LogRecord, service: str | None) -> bool:
    return service is None or line.logger.partition(".")[0] == service


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = to_builtins(as_record(record, 0))
        del line["number"]
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
