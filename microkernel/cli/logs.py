"""Where log records go in a booted node: warnings as one line to stderr, all of them to whoever else listens."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from microkernel.cli.output import clean

__all__ = ["OneLine", "quiet_logs"]


class OneLine(logging.Handler):
    """Writes warnings and errors to stderr.

    During the boot the kernel's own are left to the boot's display, and errors of `essential` services are held back:
    where one of them ends the boot, the command says it once, at its end.
    """

    def __init__(self, *, debug: bool) -> None:
        super().__init__(logging.DEBUG if debug else logging.WARNING)
        self._debug = debug
        self._booted = debug
        self._held: list[logging.LogRecord] = []
        self.essential: Collection[str] = ()

    def tell_all(self) -> None:
        """The boot is over: write what was held back, and everything from now on."""
        self._booted = True
        for record in self._held:
            self.emit(record)
        self._held.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is to be written."""
        return self._booted or record.name != "microkernel.kernel"

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        service = record.name.removeprefix("microkernel.").partition(".")[0]
        if not self._booted and record.levelno >= logging.ERROR and service in self.essential:
            self._held.append(record)
            return
        # sys.stderr is asked for each time: while the boot is shown live, lines go above what moves.
        sys.stderr.write(self.line(record) + "\n")

    def line(self, record: logging.LogRecord) -> str:
        """`record` as one line; with its traceback when debugging."""
        text = " ".join(clean(record.getMessage()).split())
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and str(error) not in text:
            text += f" ({type(error).__name__}: {' '.join(clean(str(error)).split())})"
        line = f"{record.levelname.lower()}: {record.name.removeprefix('microkernel.')}: {text}"
        if self._debug and record.exc_info:
            line += "\n" + logging.Formatter().formatException(record.exc_info)
        return line


@contextmanager
def quiet_logs(level: str) -> Iterator[OneLine]:
    """Have logging write to stderr in one line a record, and take it back at the end."""
    debug = level == "debug" or os.environ.get("MICROKERNEL_DEBUG", "0") not in {"", "0"}
    handler = OneLine(debug=debug)
    root, ours = logging.getLogger(), logging.getLogger("microkernel")
    former = ours.level
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").propagate = debug  # a library's warnings are for developers
    root.addHandler(handler)
    ours.setLevel(level.upper())
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        ours.setLevel(former)
        logging.captureWarnings(capture=False)
