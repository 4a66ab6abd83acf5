"""The audit of a node: its last denials in memory, more of them as JSON lines in rotated files that only grow."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from pathlib import Path

import msgspec

from microkernel.audit import Denial
from microkernel.errors import DataLoss, Invalid
from services.monitor.messages import ReadAudit

__all__ = ["LARGEST", "NAME", "AuditFile", "check_file"]

RECORDS = 1024
FILE_BYTES = 4 * 1024 * 1024
NAME = "audit.jsonl"
FILES = 4  # old ones that are kept beside the one that is written
LONGEST_LINE = 4096  # bytes; a denial's texts are cut long before
LARGEST = (FILES + 2) * FILE_BYTES  # bytes of all files

_NAME = re.compile(rf"{re.escape(NAME)}(\.[1-{FILES}])?")


def check_file(name: str, content: bytes) -> None:
    """Raises `DataLoss` for what is no file of an audit."""
    if not _NAME.fullmatch(name):
        raise DataLoss(f"'{name}' is no file of an audit")
    try:
        for line in content.splitlines():
            msgspec.json.decode(line, type=Denial)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataLoss(f"the audit in '{name}' is damaged: {error}") from error


class AuditFile:
    """Keeps denials. `add` and `read` are of the loop; `load` and `write` block and are for a thread."""

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._records: deque[Denial] = deque(maxlen=RECORDS)
        self._unwritten: deque[Denial] = deque(maxlen=RECORDS)
        self._writing = threading.Lock()
        self._torn = False  # a crash has cut off the last line: the next one begins anew

    def load(self) -> None:
        """Take up what former runs have left. Raises `OSError`. A line that cannot be read is passed over."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines: deque[bytes] = deque(maxlen=RECORDS)
        for path in (self._old(1), self._path):
            if path.exists():
                with path.open("rb") as file:
                    while line := file.readline(LONGEST_LINE):
                        lines.append(line)
        self._torn = self._path.exists() and bool(lines) and not lines[-1].endswith(b"\n")
        for line in lines:
            try:
                self._records.append(msgspec.json.decode(line, type=Denial))
            except msgspec.DecodeError:
                continue  # cut off by a crash; the file itself still has it

    def add(self, denial: Denial) -> None:
        """Keep one more, to be written; the oldest is let go."""
        self._records.append(denial)
        self._unwritten.append(denial)

    def write(self) -> None:
        """Add to the file what is not in it yet; returns when all that was added before is. Raises `OSError`."""
        with self._writing:
            denials = []
            while self._unwritten:  # the loop may add meanwhile
                denials.append(self._unwritten.popleft())
            if not denials:
                return
            try:
                self._append(b"".join(msgspec.json.encode(denial) + b"\n" for denial in denials))
            except OSError:
                self._unwritten.extendleft(reversed(denials))
                raise

    def _append(self, body: bytes) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "ab") as file:
            file.write(b"\n" + body if self._torn else body)
            self._torn = False
            is_full = file.tell() >= self._file_bytes
        if is_full:
            for number in range(FILES - 1, 0, -1):
                if self._old(number).exists():
                    self._old(number).replace(self._old(number + 1))
            self._path.replace(self._old(1))

    def files(self) -> dict[str, bytes]:
        """What is on the disk, by names of files: whole lines, of one moment. It blocks."""
        with self._writing:
            found = {}
            for path in (self._path, *(self._old(number) for number in range(1, FILES + 1))):
                if path.exists():
                    whole, newline, _ = path.read_bytes().rpartition(b"\n")
                    found[path.name] = whole + newline
            return found

    def read(self, ask: ReadAudit) -> list[Denial]:
        """The last records that fit, oldest first. Raises `Invalid`."""
        if ask.lines < 1:
            raise Invalid(f"lines must be at least 1, not {ask.lines}", field="lines")
        fitting = [denial for denial in self._records if ask.user in {None, denial.user}]
        return fitting[-ask.lines :]

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
