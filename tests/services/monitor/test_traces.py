"""Spans leave in batches, on a thread, and what does not leave is counted."""

from __future__ import annotations

import asyncio
import logging
import threading

import msgspec
import pytest

from microkernel.errors import Invalid
from microkernel.events import Bus
from microkernel.spans import SUBJECT, Span
from services.monitor import traces
from services.monitor.messages import TraceExport
from services.monitor.traces import BATCH, Traces, check_ids

SPAN = Span(
    name="kv.get", trace_id="0af7651916cd43dd8448eb211c80319c", span_id="b7ad6b7169203331", parent_id=None,
    started=1.0, seconds=0.5, code="OK", caller="test", user=None, priority=5,
)  # fmt: skip


class Held:
    """An exporter that is told what to do with each batch."""

    def __init__(self) -> None:
        self.batches: list[list[Span]] = []
        self.threads: set[str] = set()
        self.reasons: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.began = threading.Event()
        self.is_shut = False

    def export(self, spans: list[Span]) -> str:
        self.began.set()
        self.go_on.wait(30)
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(spans))
        return self.reasons.pop(0) if self.reasons else ""

    def shutdown(self) -> None:
        self.is_shut = True
        self.go_on.set()  # as a real one gives up what it is trying


class Node:
    """A bus, and the export of its spans, as the monitor runs it."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.exporter = Held()
        spans = self.bus.subscribe(SUBJECT, limit=traces.MOST_WAITING)
        self.traces = Traces(TraceExport.OTLP, self.exporter, spans, logging.getLogger("microkernel.monitor"))
        self.tasks = [asyncio.create_task(self.traces.read()), asyncio.create_task(self.traces.export())]

    def tell(self, count: int = 1, **changed: object) -> None:
        for _ in range(count):
            self.bus.publish(SUBJECT, msgspec.structs.replace(SPAN, **changed))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.traces.stop()


@pytest.fixture
async def node():
    running = Node()
    yield running
    if not running.exporter.is_shut:
        await running.stop()


async def test_a_full_batch_leaves_at_once_on_a_thread_of_its_own(node):
    node.tell(BATCH)
    await asyncio.to_thread(node.exporter.began.wait, 30)
    await node.stop()
    assert [len(batch) for batch in node.exporter.batches] == [BATCH]
    assert node.exporter.threads == {"monitor-traces_0"}


async def test_what_waits_at_the_end_is_exported_and_the_thread_is_gone(node):
    node.tell(BATCH + 3)
    await node.stop()
    assert sum(len(batch) for batch in node.exporter.batches) == BATCH + 3
    assert node.traces.status.exported == BATCH + 3
    assert node.exporter.is_shut
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("monitor-traces")]


async def test_an_exporter_that_hangs_costs_the_oldest_spans_and_counts_them(node, monkeypatch):
    monkeypatch.setattr(traces, "MOST_WAITING", 2 * BATCH)
    node.exporter.go_on.clear()
    node.tell(BATCH)
    await asyncio.to_thread(node.exporter.began.wait, 30)
    for number in range(2 * BATCH + 5):
        node.tell(name=f"kv.{number}")
    while node.traces.status.waiting + node.traces.status.dropped < 2 * BATCH + 5:
        await asyncio.sleep(0)
    assert (node.traces.status.waiting, node.traces.status.dropped) == (2 * BATCH, 5)
    node.exporter.go_on.set()
    await node.stop()
    assert [span.name for batch in node.exporter.batches[1:] for span in batch] == [
        f"kv.{number}" for number in range(5, 2 * BATCH + 5)
    ]


async def test_an_exporter_that_hangs_at_the_end_does_not_keep_the_node(node, monkeypatch, caplog):
    monkeypatch.setattr(traces, "FLUSH_TIMEOUT", 0.01)
    node.exporter.go_on.clear()
    node.tell()
    await node.stop()
    assert node.exporter.is_shut
    assert "the last traces are not exported" in caplog.text


async def test_what_is_lost_is_counted_and_said_once_until_it_goes_again(node, caplog):
    caplog.set_level(logging.INFO, "microkernel.monitor")
    node.exporter.reasons = ["the collector is away", "the collector is away"]
    node.tell(3 * BATCH)
    await node.stop()
    status = node.traces.status
    assert (status.failed, status.exported, status.why) == (2 * BATCH, BATCH, "")
    assert [record.getMessage() for record in caplog.records] == [
        "traces cannot be exported: the collector is away",
        f"traces are exported again; {2 * BATCH} spans were lost",
    ]


async def test_what_is_no_span_is_counted_and_takes_no_other_with_it(node):
    node.bus.publish(SUBJECT, {"name": "forged"})
    node.tell(trace_id="not hex")
    node.tell()
    await node.stop()
    assert node.exporter.batches == [[SPAN]]
    assert node.traces.status.failed == 2


@pytest.mark.parametrize(
    "changed", [{"trace_id": "0" * 32}, {"span_id": "0" * 16}, {"parent_id": "x" * 16}, {"span_id": "B7AD6B7169203331"}]
)
def test_ids_that_the_standard_does_not_know_are_refused(changed):
    with pytest.raises(Invalid, match="which is none"):
        check_ids(msgspec.structs.replace(SPAN, **changed))
