"""Keeps the log of the node and the audit of what was denied, shows them, and has traces exported."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from microkernel.audit import Denial
from microkernel.errors import MicrokernelError
from microkernel.events import Event
from microkernel.inputs import Inputs
from microkernel.message import Message, convert
from microkernel.portable import (
    AHEAD,
    EntryPiece,
    Export,
    Import,
    Imported,
    check_restoring,
    only_root,
    pieces_of,
    put_file,
    read_entries,
)
from microkernel.service import Placement, Service, handles, on, streams
from microkernel.spans import SUBJECT
from services.monitor.audit_file import LARGEST, NAME, AuditFile, check_file
from services.monitor.journal import Journal, level_number
from services.monitor.messages import LogRecord, ReadAudit, ReadLog, TraceExport, TracesStatus
from services.monitor.traces import MOST_WAITING, Traces
from services.monitor.traces_opentelemetry import Destination, make_exporter

__all__ = ["Monitor"]

FOLLOW_LIMIT = 1024


class MonitorSettings(Message):
    """`level` is the least that is kept. `traces` says where the spans of traced calls go.

    `traces_endpoint` is the collector's address, for `otlp`; left out, `OTEL_EXPORTER_OTLP_ENDPOINT` or
    `http://localhost:4318`.
    """

    level: str = "info"
    traces: TraceExport = TraceExport.NOWHERE
    traces_endpoint: str = ""


class Monitor(Service):
    """The log: what has happened on this node, in memory and in `monitor/log.jsonl`; the audit in `audit.jsonl`."""

    name = "monitor"
    placement = Placement.NODE
    Settings = MonitorSettings

    async def start(self) -> None:
        self._followers: set[_Follower] = set()
        self._audit = AuditFile(self.state_dir / NAME)
        self._audit_is_kept = True
        await asyncio.to_thread(self._audit.load)
        loop = asyncio.get_running_loop()

        def added(record: LogRecord) -> None:
            # Logging happens on compute threads as well.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._deliver, record)

        self._journal = Journal(self.state_dir / "log.jsonl", added)
        self._journal.setLevel(level_number(self.settings.level))
        logger = logging.getLogger("microkernel")
        self._former_level = logger.level
        logger.setLevel(min(logger.level or logging.WARNING, self._journal.level))
        logger.addHandler(self._journal)
        self._traces: Traces | None = None
        self._no_traces = ""
        if self.settings.traces is not TraceExport.NOWHERE:
            await self._export_traces()

    async def stop(self) -> None:
        if self._traces is not None:
            await self._traces.stop()
        logger = logging.getLogger("microkernel")
        logger.removeHandler(self._journal)
        logger.setLevel(self._former_level)
        await self._write_audit()
        self._journal.close()

    @handles(name="log", idempotent=True)
    async def read(self, message: ReadLog) -> list[LogRecord]:
        """The last records, oldest first."""
        return self._journal.read(message)

    @streams
    async def follow(self, message: ReadLog) -> AsyncIterator[LogRecord]:
        """The last records, and then each as it is written."""
        least = level_number(message.level)
        follower = _Follower()
        self._followers.add(follower)
        seen = 0
        try:
            for record in self._journal.read(message):
                seen = record.number
                yield record
            while True:
                record = await follower.next()
                of_service = message.service in {None, record.logger.partition(".")[0]}
                # What was written while the past was read out comes both ways.
                if of_service and record.number > seen and level_number(record.level) >= least:
                    yield record
        finally:
            self._followers.discard(follower)

    @handles(name="audit", idempotent=True)
    async def read_audit(self, message: ReadAudit) -> list[Denial]:
        """What was denied lately, oldest first."""
        return self._audit.read(message)

    @handles(name="traces", idempotent=True)
    async def traces_status(self) -> TracesStatus:
        """How the export of traces goes."""
        if self._traces is None:
            return TracesStatus(export=self.settings.traces, why=self._no_traces)
        return self._traces.status

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:  # noqa: ARG002
        """The audit; the log stays, which tells of this machine."""
        only_root("exports the audit")
        for name, content in sorted((await asyncio.to_thread(self._audit.files)).items()):
            for piece in pieces_of(name, content):
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Go on with the audit of another node."""
        check_restoring(self)
        entries = await read_entries(inputs, self.name, most=LARGEST)
        for name, content in entries.items():
            await asyncio.to_thread(check_file, name, content)
        for name, content in entries.items():
            await asyncio.to_thread(put_file, self.state_dir / name, content)
        yield Imported()

    @on("audit.denied")
    async def keep_denial(self, event: Event) -> None:
        """Keep what was denied; the kernel sees to it that these are not many."""
        denial = convert(event.body, Denial, what=event.subject)
        self._audit.add(denial)
        await self._write_audit()

    async def _export_traces(self) -> None:
        """Begin to; where it cannot be done the log says why, and all else goes on."""
        destination = Destination(self.settings.traces, self.settings.traces_endpoint, self.node)
        try:
            exporter = await asyncio.to_thread(make_exporter, destination)
        except MicrokernelError as error:
            self._no_traces = str(error)
            self.log.error("traces are not exported: %s", error)  # noqa: TRY400 - one line for whoever set it
            return
        # Subscribed to only here: while nobody listens, no call pays for its span.
        spans = self.port.subscribe(SUBJECT, limit=MOST_WAITING)
        self._traces = Traces(self.settings.traces, exporter, spans, self.log)
        self.spawn(self._traces.read(), name="traces")
        self.spawn(self._traces.export(), name="export of traces")

    async def _write_audit(self) -> None:
        try:
            await asyncio.to_thread(self._audit.write)
        except OSError as error:
            if self._audit_is_kept:  # said once: a full disk is not to be filled with complaints about it
                self.log.warning("the audit cannot be written: %s", error.strerror)
            self._audit_is_kept = False
        else:
            self._audit_is_kept = True

    def _deliver(self, record: LogRecord) -> None:
        for follower in self._followers:
            follower.add(record)


class _Follower:
    """A bounded queue of one reader; when it falls behind, the oldest records are left out."""

    def __init__(self) -> None:
        self._records: deque[LogRecord] = deque(maxlen=FOLLOW_LIMIT)
        self._wake = asyncio.Event()

    def add(self, record: LogRecord) -> None:
        self._records.append(record)
        self._wake.set()

    async def next(self) -> LogRecord:
        while not self._records:
            self._wake.clear()
            await self._wake.wait()
        return self._records.popleft()
