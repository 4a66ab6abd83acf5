"""Traces on their way out: the spans of traced calls, in batches, from the node to an exporter.

One task takes spans up into a bounded queue, which lets the oldest go and counts them. Another one hands a batch over
once it is full or a second old; the exporter blocks, so it runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from microkernel.errors import Invalid
from microkernel.events import Event, Subscription
from microkernel.message import convert
from microkernel.spans import Span
from services.monitor.messages import TraceExport, TracesStatus

__all__ = ["MOST_WAITING", "Exporter", "Traces"]

MOST_WAITING = 8192  # spans; some 0.5 KiB each
BATCH = 512  # spans of one request, as OpenTelemetry's own batches
INTERVAL = 1.0  # seconds that a span waits for others
EXPORT_TIMEOUT = 2.0  # seconds that an exporter may try to hand over a batch
FLUSH_TIMEOUT = 1.5  # seconds at the end for what waits; with the line above less than the kernel gives `stop`

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")


class Exporter(Protocol):
    """Where spans go. Both methods block."""

    def export(self, spans: Sequence[Span]) -> str:
        """Hand over `spans`; says why they are lost, nothing if they are not."""

    def shutdown(self) -> None:
        """Give up what is being tried and let go of connections."""


class Traces:
    """Spans of one subscription, exported until `stop`."""

    def __init__(self, kind: TraceExport, exporter: Exporter, spans: Subscription, log: logging.Logger) -> None:
        self._kind = kind
        self._exporter = exporter
        self._spans = spans
        self._log = log
        self._waiting: deque[Span] = deque()
        self._some, self._full = asyncio.Event(), asyncio.Event()  # something waits, a whole batch does
        # One thread: batches leave in order, and a collector that hangs holds one thread, not one for each batch.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitor-traces")
        self._exported = 0
        self._failed = 0
        self._dropped = 0
        self._why = ""

    @property
    def status(self) -> TracesStatus:
        """How the export goes."""
        return TracesStatus(
            export=self._kind,
            why=self._why,
            exported=self._exported,
            failed=self._failed,
            dropped=self._dropped + self._spans.dropped,
            waiting=len(self._waiting),
        )

    async def read(self) -> None:
        """Take up spans until cancelled, or until the subscription ends."""
        while events := await self._spans.take(BATCH):
            for event in events:
                self._add(event)

    async def export(self) -> None:
        """Export until cancelled."""
        while True:
            await self._until_due()
            await self._export()

    async def stop(self) -> None:
        """Export what waits, as far as there is time, and end the thread. `read` and `export` have ended by now."""
        self._spans.close()
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self.read()
                while self._waiting:
                    await self._export()
        except TimeoutError:
            self._log.warning("the last traces are not exported: there is no time left for them")
        finally:
            await asyncio.to_thread(self._end)

    def _add(self, event: Event) -> None:
        try:
            span = convert(event.body, Span, what=event.subject)
            check_ids(span)
        except Invalid as error:  # somebody else has published there what is no span
            self._failed += 1
            self._log.debug("%s", error)
            return
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(span)
        self._some.set()
        if len(self._waiting) >= BATCH:
            self._full.set()

    async def _until_due(self) -> None:
        await self._some.wait()
        try:
            async with asyncio.timeout(INTERVAL):
                await self._full.wait()
        except TimeoutError:
            return  # what has gathered goes

    async def _export(self) -> None:
        spans = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        if not self._waiting:
            self._some.clear()
        if len(self._waiting) < BATCH:
            self._full.clear()
        why = await asyncio.get_running_loop().run_in_executor(self._thread, self._exporter.export, spans)
        if not why:
            self._exported += len(spans)
            if self._why:
                self._log.info("traces are exported again; %d spans were lost", self._failed)
        else:
            self._failed += len(spans)
            if not self._why:  # said once, not once a second
                self._log.warning("traces cannot be exported: %s", why)
        self._why = why

    def _end(self) -> None:
        self._exporter.shutdown()
        self._thread.shutdown(cancel_futures=True)


def check_ids(span: Span) -> None:
    """Raises `Invalid` for ids that W3C Trace Context does not know."""
    parent = [] if span.parent_id is None else [(_SPAN_ID, span.parent_id)]
    for pattern, text in [(_TRACE_ID, span.trace_id), (_SPAN_ID, span.span_id), *parent]:
        if not pattern.fullmatch(text) or not text.strip("0"):
            raise Invalid(f"a span of {span.name} has the id '{text[:64]}', which is none")
