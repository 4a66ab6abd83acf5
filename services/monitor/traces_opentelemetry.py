"""Spans as OpenTelemetry's, and its exporters for them: OTLP over HTTP, or one JSON object a line on stderr.

https://opentelemetry.io/docs/specs/otel/trace/sdk_exporters/; attributes by its conventions for RPC. The packages are
the extra `traces`: they are imported when an exporter is made, which takes a while and belongs on a thread.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from microkernel import __version__
from microkernel.errors import Invalid, PreconditionFailed
from microkernel.message import Message
from microkernel.spans import OK, Span
from services.monitor.messages import TraceExport
from services.monitor.traces import EXPORT_TIMEOUT

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Destination", "OpenTelemetryExporter", "make_exporter", "readable_span"]

PATH = "/v1/traces"  # where OTLP over HTTP takes spans, unless the endpoint names another path
LONGEST_REASON = 300  # characters


class Destination(Message):
    """Which exporter, and where it sends; `endpoint` is empty for what the environment or the default says."""

    export: TraceExport
    endpoint: str
    node: str


def make_exporter(destination: Destination) -> OpenTelemetryExporter:
    """The exporter of the settings. Blocks. Raises `PreconditionFailed` for what is not installed, and `Invalid`."""
    endpoint = full_endpoint(destination.endpoint)
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - a node without traces does without it

        exporter = _console() if destination.export is TraceExport.CONSOLE else _otlp(endpoint)
    except ImportError as error:
        missing = (error.name or "opentelemetry").partition(".")[0]
        raise PreconditionFailed(
            f"the package '{missing}' is not installed", remedy="pip install 'microkernel[traces]'"
        ) from error
    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or "microkernel",
            "service.version": __version__,
            "service.instance.id": destination.node,
        }
    )
    return OpenTelemetryExporter(exporter, resource)


def full_endpoint(endpoint: str) -> str:
    """The whole address for spans; empty stays empty. Raises `Invalid` for what is no http address."""
    if not endpoint:
        return ""
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
        parts = urlsplit("")
    if not has_host or parts.scheme not in {"http", "https"}:
        raise Invalid(
            f"traces_endpoint: '{endpoint}' is no address", remedy="it looks like http://127.0.0.1:4318",
            field="traces_endpoint",
        )  # fmt: skip
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + PATH


class OpenTelemetryExporter:
    """One of OpenTelemetry's exporters, for our spans. What it has to complain of it says here and not in the log."""

    def __init__(self, exporter: SpanExporter, resource: Resource) -> None:
        self._exporter = exporter
        self._resource = resource
        self._complaints = _Complaints()
        self._logger = logging.getLogger(type(exporter).__module__)
        self._logger.addHandler(self._complaints)
        self._former = self._logger.propagate
        self._logger.propagate = False  # a collector that is away would be told of once a second, for hours

    def export(self, spans: Sequence[Span]) -> str:
        """Hand over `spans`; says why they are lost, nothing if they are not."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415 - as above

        self._complaints.first = ""
        try:
            done = self._exporter.export([readable_span(span, self._resource) for span in spans])
        except Exception as error:  # noqa: BLE001 - another's code: what it raises is a reason, and the next batch may fare better
            return f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        return "" if done is SpanExportResult.SUCCESS else self._complaints.first or "the exporter does not say why"

    def shutdown(self) -> None:
        """Give up what is being tried and let go of connections."""
        self._exporter.shutdown()
        self._logger.removeHandler(self._complaints)
        self._logger.propagate = self._former


def readable_span(span: Span, resource: Resource | None = None) -> ReadableSpan:
    """`span`, whose ids have been checked, as OpenTelemetry's."""
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415 - as above
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags  # noqa: PLC0415

    trace_id, sampled = int(span.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
    parent = None
    if span.parent_id is not None:
        parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=True, trace_flags=sampled)
    started = 1000 * round(span.started * 1e6)  # in nanoseconds; Unix time as a float is not exact to one of them
    # A call that went well stays unset: the standard leaves "ok" to people who have looked.
    status = Status(StatusCode.UNSET) if span.code == OK else Status(StatusCode.ERROR, span.code)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=sampled),
        parent=parent,
        resource=resource,
        attributes=attributes_of(span),
        kind=SpanKind.SERVER,  # what is told is the answering of a call
        status=status,
        start_time=started,
        end_time=started + round(span.seconds * 1e9),
        instrumentation_scope=InstrumentationScope("microkernel", __version__),
    )


def attributes_of(span: Span) -> dict[str, Any]:
    """What is told of a span beside its times, by the words of OpenTelemetry where it has some."""
    service, _, method = span.name.partition(".")
    attributes: dict[str, Any] = {
        "rpc.system": "microkernel",
        "rpc.service": service,
        "rpc.method": method,
        "mk.caller": span.caller,
        "mk.priority": span.priority,
    }
    if span.user is not None:
        attributes["enduser.id"] = span.user
    if span.code != OK:
        attributes["error.type"] = span.code
    return attributes


def _console() -> SpanExporter:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415 - as above

    # stderr: with --json, stdout is for others to read.
    return ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n")


def _otlp(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - as above

    return OTLPSpanExporter(endpoint=endpoint or None, timeout=EXPORT_TIMEOUT)


class _Complaints(logging.Handler):
    """Keeps the first thing that the exporter logs: the later ones say that it gave up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()[:LONGEST_REASON]
