"""Spans as OpenTelemetry has them, through its own exporters to a collector."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from otlp_receiver import attributes, receiving

from microkernel import Service, handles
from microkernel.config import Config
from microkernel.errors import Invalid, NotFound, PreconditionFailed
from microkernel.spans import Span
from microkernel.testing import TestKernel
from microkernel.trace import Trace
from services.monitor.messages import TraceExport
from services.monitor.service import Monitor
from services.monitor.traces_opentelemetry import (
    Destination,
    OpenTelemetryExporter,
    full_endpoint,
    make_exporter,
    readable_span,
)

TRACE_ID, SPAN_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
TRACE = Trace(TRACE_ID, PARENT_ID)
SPAN = Span(
    name="kv.get", trace_id=TRACE_ID, span_id=SPAN_ID, parent_id=PARENT_ID,
    started=1_700_000_000.25, seconds=0.5, code="OK", caller="http ana", user="ana", priority=3,
)  # fmt: skip


class Deep(Service):
    name = "deep"

    @handles
    async def outer(self) -> None:
        await self.call("deep.inner")

    @handles
    async def inner(self) -> None:
        raise NotFound("nothing here")


def monitored(**settings: str) -> TestKernel:
    return TestKernel(Monitor, Deep, settings={"monitor": settings})


async def fail_outer(system: TestKernel) -> None:
    with pytest.raises(NotFound):
        await system.call("deep.outer", trace=TRACE)


def test_a_span_keeps_its_ids_its_times_and_what_it_says():
    [exported] = exported_by_sdk(SPAN)
    assert exported.name == "kv.get"
    assert exported.kind is SpanKind.SERVER
    assert f"{exported.context.trace_id:032x}" == TRACE_ID
    assert f"{exported.context.span_id:016x}" == SPAN_ID
    assert exported.context.trace_flags.sampled
    assert f"{exported.parent.span_id:016x}" == PARENT_ID
    assert (exported.start_time, exported.end_time) == (1_700_000_000_250_000_000, 1_700_000_000_750_000_000)
    assert exported.status.status_code is StatusCode.UNSET
    assert exported.resource.attributes["service.name"] == "node"
    assert dict(exported.attributes) == {
        "rpc.system": "microkernel",
        "rpc.service": "kv",
        "rpc.method": "get",
        "enduser.id": "ana",
        "mk.caller": "http ana",
        "mk.priority": 3,
    }


def test_a_span_that_ended_with_an_error_is_one():
    [exported] = exported_by_sdk(msgspec.structs.replace(SPAN, code="OVERLOADED"))
    assert exported.status.status_code is StatusCode.ERROR
    assert exported.status.description == exported.attributes["error.type"] == "OVERLOADED"


def test_a_span_without_a_parent_or_a_user_says_nothing_of_them():
    [exported] = exported_by_sdk(msgspec.structs.replace(SPAN, parent_id=None, user=None))
    assert exported.parent is None
    assert "enduser.id" not in exported.attributes


def exported_by_sdk(*spans: Span):
    memory = InMemorySpanExporter()
    exporter = OpenTelemetryExporter(memory, Resource({"service.name": "node"}))
    assert exporter.export(spans) == ""
    exporter.shutdown()
    return memory.get_finished_spans()


def test_an_exporter_that_raises_is_a_reason_and_no_crash():
    class Raising(InMemorySpanExporter):
        def export(self, spans):
            raise OSError("the disk is full")

    exporter = OpenTelemetryExporter(Raising(), Resource({}))
    assert exporter.export([SPAN]) == "OSError: the disk is full"
    exporter.shutdown()


async def test_a_collector_gets_a_call_and_those_it_makes_with_who_they_are_of():
    with receiving() as receiver:
        async with monitored(traces="otlp", traces_endpoint=receiver.url) as system:
            node = system.kernel.config.node
            await fail_outer(system)
        inner, outer = receiver.spans
    assert (outer.name, inner.name) == ("deep.outer", "deep.inner")
    assert {span.trace_id.hex() for span in (inner, outer)} == {TRACE_ID}
    assert outer.parent_span_id.hex() == PARENT_ID
    assert inner.parent_span_id == outer.span_id
    assert outer.start_time_unix_nano <= inner.start_time_unix_nano
    assert inner.end_time_unix_nano <= outer.end_time_unix_nano
    assert attributes(inner)["mk.caller"] == "deep"
    [resource] = {tuple(sorted(attributes(each.resource).items())) for each in receiver.requests[0].resource_spans}
    assert dict(resource)["service.name"] == "microkernel"
    assert dict(resource)["service.instance.id"] == node


async def test_a_monitor_in_a_process_of_its_own_exports_them_too():
    with receiving() as receiver:
        settings = {"monitor": {"traces": "otlp", "traces_endpoint": receiver.url}}
        config = Config(isolation={"monitor": "process"})
        async with TestKernel(Monitor, Deep, settings=settings, config=config) as system:
            await fail_outer(system)
            await asyncio.to_thread(receiver.arrived.wait, 30)
        assert {span.name for span in receiver.spans} == {"deep.outer", "deep.inner"}


async def test_the_status_counts_what_the_collector_took():
    with receiving() as receiver:
        async with monitored(traces="otlp", traces_endpoint=receiver.url) as system:
            await fail_outer(system)
            await asyncio.to_thread(receiver.arrived.wait, 30)
            while (status := await system.call("monitor.traces")).exported < 2:
                pass
        assert (status.export, status.why, status.failed, status.dropped) == (TraceExport.OTLP, "", 0, 0)


async def test_a_collector_that_refuses_is_named_once_in_the_log_and_by_the_library_never(caplog):
    with receiving() as receiver:
        receiver.status = 400
        async with monitored(traces="otlp", traces_endpoint=receiver.url) as system:
            await fail_outer(system)
            await asyncio.to_thread(receiver.arrived.wait, 30)
            while not (status := await system.call("monitor.traces")).failed:
                pass
            assert "Failed to export spans batch code: 400" in status.why
    warnings = [(record.name, record.getMessage()) for record in caplog.records if record.levelno >= logging.WARNING]
    assert [name for name, text in warnings if "batch code: 400" in text] == ["microkernel.monitor"]
    assert not [name for name, _ in warnings if name.startswith("opentelemetry")]


async def test_the_console_gets_one_json_object_a_line_on_stderr(capfd):
    async with monitored(traces="console") as system:
        await fail_outer(system)
    out, err = capfd.readouterr()
    spans = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [span["name"] for span in spans] == ["deep.inner", "deep.outer"]
    assert spans[0]["attributes"]["error.type"] == "NOT_FOUND"
    assert out == ""


async def test_without_the_setting_no_call_is_traced():
    async with monitored() as system:
        assert not system.kernel.router.bus.subjects.matches("trace.span").everyone
        status = await system.call("monitor.traces")
    assert (status.export, status.why) == (TraceExport.NOWHERE, "")


async def test_a_package_that_is_missing_is_said_with_the_remedy_and_the_monitor_goes_on(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    async with monitored(traces="otlp") as system:
        status = await system.call("monitor.traces")
        assert "'opentelemetry' is not installed (pip install 'microkernel[traces]')" in status.why
        assert await system.call("monitor.log", level="error", service="monitor")
        assert not system.kernel.router.bus.subjects.matches("trace.span").everyone
    assert sum("traces are not exported" in record.getMessage() for record in caplog.records) == 1


async def test_an_endpoint_that_is_no_address_is_said_and_the_monitor_goes_on():
    async with monitored(traces="otlp", traces_endpoint="collector:4318") as system:
        assert "'collector:4318' is no address" in (await system.call("monitor.traces")).why


def test_what_is_missing_is_named_by_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(PreconditionFailed, match="is not installed"):
        make_exporter(Destination(TraceExport.OTLP, "", "node"))


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("", ""),
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://collector/otlp/v1/traces", "https://collector/otlp/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_gets_that_of_the_standard(given, whole):
    assert full_endpoint(given) == whole


@pytest.mark.parametrize("given", ["collector", "collector:4318", "grpc://collector:4317", "http://", "http://c:x/"])
def test_what_is_no_endpoint_is_refused(given):
    with pytest.raises(Invalid, match="is no address"):
        full_endpoint(given)


def test_a_span_needs_no_resource():
    assert readable_span(SPAN).name == "kv.get"
