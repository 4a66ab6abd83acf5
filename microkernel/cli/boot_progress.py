"""What a boot looks like from outside: events in, steps to be shown out. No loop, no output."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from msgspec import structs

from microkernel.cli.output import plain, size
from microkernel.events import Event
from microkernel.message import Message

__all__ = ["SUBJECTS", "BootProgress", "Step"]

SUBJECTS = ("service.*.*", "devices.*", "models.progress", "inference.*", "gateway.listening")
FAILED = frozenset({"broken", "quarantined", "restarting"})
LOADING = {
    "preparing": "looking for the CPU's kernels, or building them",
    "reading": "reading the file",
    "loading": "putting the weights on the device",
    "warming": "making the first token",
}
BRIEF = 1.0  # seconds


class Step(Message, kw_only=True):
    """One thing that has happened. `mark` is ok, busy or fail; `elapsed` is in seconds since the boot began.

    `done` and `total` are set where something is counted; `unit` is "B" for bytes. `fields` is the event as it came.
    A `brief` step is over at once and worth no line of its own.
    """

    event: str
    text: str
    elapsed: float
    mark: str = "ok"
    brief: bool = False
    done: float | None = None
    total: float | None = None
    unit: str = ""
    fields: dict[str, Any] = {}


class BootProgress:
    """Follows one boot. `elapsed()` is the time since it began, in seconds."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._essential: Collection[str] = ()
        self._expected = 0
        self._started: set[str] = set()
        self._began: dict[str, float] = {}

    def stage(self, text: str, *, mark: str = "ok", **fields: Any) -> Step:
        """A step that the boot itself has made."""
        return Step(event="stage", text=text, elapsed=self._elapsed(), mark=mark, fields=fields)

    def found(self, services: Collection[str], broken: Collection[str], essential: Collection[str] = ()) -> Step:
        """The plugins that were found: which services are to start, and without which the boot fails."""
        self._essential = essential
        self._expected = len(services) - len(broken)
        text = f"found {len(services)} services: {', '.join(sorted(services)) or 'none'}"
        if broken:
            text += f" ({len(broken)} broken)"
        return self.stage(text, services=sorted(services), broken=sorted(broken))

    def take(self, event: Event) -> Step | None:
        """What `event` means to somebody who waits; None if nothing."""
        body = plain(event.body)
        fields = body if isinstance(body, dict) else {"body": body}
        kind = event.subject.partition(".")[0]
        if kind == "service":
            return self._service(fields)
        if event.subject == "devices.found":
            return self._step(event.subject, _device(fields), fields)
        if event.subject == "devices.broken":
            return self._step(event.subject, f"driver {fields.get('driver')}: {fields.get('why')}", fields, mark="fail")
        if event.subject == "models.progress":
            return self._pull(fields)
        if event.subject == "inference.loading":
            return self._loading(fields)
        if event.subject == "gateway.listening":
            return self._step(event.subject, f"listening on {fields.get('url')}", fields)
        if event.subject == "inference.loaded":
            return self._step(event.subject, _loaded(fields), fields)
        if kind == "inference":
            return self._step(event.subject, _sentence(event.subject, fields), fields, mark="busy")
        return None

    def _service(self, fields: dict[str, Any]) -> Step | None:
        name, state, why = str(fields.get("name")), str(fields.get("state")), str(fields.get("why") or "")
        if name == "kernel":
            return None
        if state in FAILED:
            if name in self._essential and state != "restarting":
                return None  # the boot ends with this very error
            return self._step("service", f"service {name} is {state}: {why}", fields, mark="fail")
        if state == "starting":
            self._began[name] = self._elapsed()
        if state == "ready":
            took = self._elapsed() - self._began.get(name, self._elapsed())
            step = self._step("service", f"{name} ready after {took:.1f} s", fields)
            return step if took >= BRIEF else structs.replace(step, mark="busy", brief=True)
        if state == "running":
            self._started.add(name)
            text = f"starting services, {len(self._started)} of {max(self._expected, len(self._started))} ({name})"
            return structs.replace(self._step("service", text, fields, mark="busy"), brief=True)
        return None

    def _pull(self, fields: dict[str, Any]) -> Step:
        stage, ref, done, total = (fields.get(key) for key in ("stage", "ref", "done_bytes", "total_bytes"))
        if stage == "done":
            model = fields.get("model") or {}
            text = f"model {model.get('name', ref)} is stored ({size(model.get('bytes', done))})"
            return self._step("models.progress", text, fields)
        step = self._step("models.progress", f"{stage} {ref}", fields, mark="busy")
        return structs.replace(step, done=done, total=total, unit="B")

    def _loading(self, fields: dict[str, Any]) -> Step:
        stage, taken = str(fields.get("stage")), fields.get("bytes")
        told = LOADING.get(stage, stage) + (f" ({size(taken)})" if taken else "")
        what = f"model {fields['model']}: {told}" if fields.get("model") else told
        step = self._step("inference.loading", what, fields, mark="busy")
        done, total, unit = (fields.get(key) for key in ("done", "total", "unit"))
        return structs.replace(step, done=done, total=total, unit=str(unit or ""))

    def _step(self, event: str, text: str, fields: dict[str, Any], *, mark: str = "ok") -> Step:
        return Step(event=event, text=text, elapsed=self._elapsed(), mark=mark, fields=fields)


def _device(fields: dict[str, Any]) -> str:
    if fields.get("answers"):
        return f"{fields.get('name')}: {fields.get('model')}"
    cores = fields.get("cores")
    return (
        f"{fields.get('name')}: {fields.get('model')}, {cores} core{'' if cores == 1 else 's'}, "
        f"{size(fields.get('memory_free_bytes'))} of {size(fields.get('memory_bytes'))} free"
    )


def _loaded(fields: dict[str, Any]) -> str:
    told = ", ".join(str(fields[key]) for key in ("architecture", "quantization", "device") if fields.get(key))
    taken = f"{size(fields.get('weight_bytes'))} of weights, {size(fields.get('cache_bytes'))} of cache"
    return f"model {fields.get('name')} has made its first token: {told}, {taken}"


def _sentence(subject: str, fields: dict[str, Any]) -> str:
    told = ", ".join(
        f"{key} {value}" for key, value in fields.items() if isinstance(value, str | int | float) and value
    )
    return f"{subject.replace('.', ' ')}: {told}" if told else subject.replace(".", " ")
