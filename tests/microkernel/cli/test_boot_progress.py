"""What a boot tells: events in, steps out."""

from __future__ import annotations

from typing import Any

from microkernel.cli.boot_progress import BootProgress
from microkernel.events import Event


def event(subject: str, **body: Any) -> Event:
    return Event(subject, body, 1)


def service(state: str, name: str = "kv", why: str = "") -> Event:
    return event(f"service.{name}.{state}", name=name, state=state, why=why, incarnation=1)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_found_is_counted_and_broken_ones_are_told():
    progress = BootProgress(Time())
    assert progress.found(["kv", "gateway"], []).text == "found 2 services: gateway, kv"
    assert progress.found(["kv"], ["kv"]).text == "found 1 services: kv (1 broken)"
    assert progress.found([], []).text == "found 0 services: none"


def test_a_service_that_starts_is_counted_and_brief():
    progress = BootProgress(Time())
    progress.found(["kv", "gateway"], [])
    step = progress.take(service("running"))
    assert step is not None
    assert (step.text, step.mark, step.brief) == ("starting services, 1 of 2 (kv)", "busy", True)


def test_a_service_that_took_long_to_be_ready_gets_a_line_with_its_time():
    time = Time()
    progress = BootProgress(time)
    assert progress.take(service("starting")) is None
    time.now = 0.5
    quick = progress.take(service("ready"))
    time.now = 4.2
    slow = progress.take(service("ready"))
    assert quick is not None
    assert slow is not None
    assert quick.brief
    assert (slow.text, slow.mark, slow.brief) == ("kv ready after 4.2 s", "ok", False)


def test_a_service_that_fails_is_named_with_its_reason():
    progress = BootProgress(Time())
    for state in ("broken", "quarantined", "restarting"):
        step = progress.take(service(state, why="no disk"))
        assert step is not None
        assert (step.text, step.mark) == (f"service kv is {state}: no disk", "fail")


def test_the_failure_of_an_essential_service_is_left_to_the_error_that_ends_the_boot():
    progress = BootProgress(Time())
    progress.found(["kv"], [], essential={"kv"})
    assert progress.take(service("quarantined")) is None
    assert progress.take(service("restarting")) is not None


def test_the_kernels_own_service_is_not_worth_a_word():
    assert BootProgress(Time()).take(service("ready", name="kernel")) is None


def test_a_pull_is_counted_in_bytes_and_ends_with_the_models_name():
    progress = BootProgress(Time())
    going = progress.take(event("models.progress", stage="fetching", ref="pypi:x", done_bytes=5, total_bytes=10))
    unknown = progress.take(event("models.progress", stage="finding", ref="pypi:x", done_bytes=0, total_bytes=None))
    model = {"name": "x", "bytes": 2048}
    done = progress.take(event("models.progress", stage="done", ref="pypi:x", done_bytes=2048, model=model))
    assert going is not None
    assert unknown is not None
    assert done is not None
    assert (going.text, going.done, going.total, going.unit) == ("fetching pypi:x", 5, 10, "B")
    assert (unknown.done, unknown.total) == (0, None)
    assert (done.text, done.mark) == ("model x is stored (2.0 KiB)", "ok")


def test_loading_names_the_model_and_its_stage():
    progress = BootProgress(Time())
    loading = progress.take(event("inference.loading", model="m", stage="loading", bytes=1 << 20))
    other = progress.take(event("inference.loading", stage="a stage of its own", done=3, total=4))
    assert loading is not None
    assert other is not None
    assert loading.text == "model m: putting the weights on the device (1.0 MiB)"
    assert (other.text, other.done, other.total) == ("a stage of its own", 3, 4)


def test_events_of_others_and_odd_bodies_are_survived():
    progress = BootProgress(Time())
    assert progress.take(event("kv.changed", key="a")) is None
    assert progress.take(Event("inference.note", "text", 1)) is not None
    assert progress.take(Event("inference.note", None, 1)) is not None
    assert progress.take(event("devices.cpu0.suspect", name="cpu0")) is None


def test_a_device_is_told_with_its_cores_and_memory():
    found = event("devices.found", name="cpu0", model="A", cores=1, memory_bytes=2 << 30, memory_free_bytes=1 << 30)
    step = BootProgress(Time()).take(found)
    assert step is not None
    assert step.text == "cpu0: A, 1 core, 1.0 GiB of 2.0 GiB free"
