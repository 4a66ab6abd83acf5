"""Every subject that a node publishes on: what its events say, and when. A test compares this with the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from microkernel.audit import Denial
from microkernel.capability import Revoked
from microkernel.lag import LoopBlocked
from microkernel.message import Message
from microkernel.spans import Span
from services.cluster.messages import ClusterNode
from services.devices.messages import Device, Tuning
from services.filesystem.messages import Change
from services.gateway.messages import Address
from services.inference.messages import LoadedModel
from services.memory.messages import Pressure, Quotas
from services.models.messages import PullProgress
from services.scheduler.messages import Process
from services.training.messages import Job

__all__ = ["EVENTS", "EventKind"]


class EventKind(NamedTuple):
    """What is told on one subject; the body is a message, or fields by name (`?` behind one that may be missing)."""

    subject: str
    body: type[Message] | Mapping[str, Any]
    when: str


EVENTS = (
    EventKind(
        "service.<name>.<state>",
        {"name": str, "state": str, "why": str, "incarnation": int},
        "a service changes state; `<state>` is one of waiting, starting, running, ready, draining, restarting, broken, "
        "quarantined, stopped",
    ),
    EventKind("kernel.shutdown", {"reason": str}, "the node begins to stop"),
    EventKind("kernel.lag", LoopBlocked, "something held the loop for `lag_threshold` or longer"),
    EventKind(
        "kernel.token.revoked", Revoked, "tokens with one of these ids, or all signed ones, are not valid any more"
    ),
    EventKind("audit.denied", Denial, "somebody was denied something; repeats within a second are counted"),
    EventKind(
        "dead.letter",
        {"to": str, "why": str, "subject?": str, "preview?": str, "events?": int},
        "a one-way message or an event was lost; `subject` and `preview` are of one event, `events` counts many",
    ),
    EventKind("trace.span", Span, "a traced call or stream has ended; told only while somebody subscribes"),
    EventKind("gateway.listening", Address, "the gateway listens"),
    EventKind("devices.found", Device, "a driver has found a device"),
    EventKind("devices.broken", {"driver": str, "why": str}, "a driver cannot be used"),
    EventKind("devices.<name>.<state>", {"name": str, "state": str, "why": str}, "a device's health changes"),
    EventKind("devices.tuning", {"name": str}, "numbers of threads of a device are being measured"),
    EventKind("devices.tuned", Tuning, "they were chosen, and are used"),
    EventKind("cluster.<state>", ClusterNode, "a node of the cluster has come, is gone, or is no longer as it was"),
    EventKind(
        "cluster.fenced",
        {"node": str, "by": str, "incarnation": int},
        "the others have taken this node for dead; it ends what it did for them, and comes back with a new life",
    ),
    EventKind("scheduler.policy", {"name": str, "before": str}, "the policy is another one"),
    EventKind("memory.pressure", Pressure, "the memory of a device is on another rung"),
    EventKind("memory.quotas", Quotas, "a quota has changed; the body has all of them"),
    EventKind(
        "filesystem.changed<folders>",
        Change,
        "a file or folder changes; `<folders>` are the names of the folder that it is in, as far as they fit: "
        "`.data.reports`, with odd characters as `:` and their number in hex (`.my:20data`)",
    ),
    EventKind("models.progress", PullProgress, "a pull goes on"),
    EventKind("models.changed", {"name": str, "action": str}, "the store changes; `action` is `pulled` or `removed`"),
    EventKind(
        "inference.loading",
        {"model": str, "stage": str, "bytes?": int},
        "a model is being loaded; `stage` is `preparing` (kernels), `reading`, `loading` (with `bytes`) or `warming`",
    ),
    EventKind("inference.loaded", LoadedModel, "a model has made its first token"),
    EventKind("inference.tuned", Tuning, "the sizes of a model's batch and steps were measured and chosen"),
    EventKind("inference.unloaded", {"model": str}, "a model has left its device"),
    EventKind("inference.adapter.loaded", LoadedModel, "an adapter can be asked; `parent` is its model"),
    EventKind("inference.adapter.unloaded", {"adapter": str, "model": str}, "an adapter has left its device"),
    EventKind("training.progress", Job, "something is new about a training job; at most twice a second"),
    EventKind("training.ended", Job, "a training job is over, or was interrupted with its node"),
    EventKind("process.spawned", Process, "a process begins"),
    EventKind("process.ended", Process, "a process ends"),
)
