"""Where threads stand is asked without a collection on the way, which would lock Python 3.11 up."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from microkernel.frames import frames_of_threads

collects_anywhere = pytest.mark.skipif(sys.version_info >= (3, 12), reason="collection waits for a safe point there")


@pytest.fixture(autouse=True)
def collection_as_it_was() -> Iterator[None]:
    yield
    gc.enable()


def test_each_thread_is_where_it_stands() -> None:
    go = threading.Event()
    waiting = threading.Thread(target=go.wait)
    waiting.start()
    try:
        names = []
        frame = frames_of_threads()[waiting.ident or 0]
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        assert "run" in names
    finally:
        go.set()
        waiting.join()


@collects_anywhere
def test_nothing_is_collected_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    collects = []
    monkeypatch.setattr(sys, "_current_frames", lambda: collects.append(gc.isenabled()) or {})
    frames_of_threads()
    assert collects == [False]
    assert gc.isenabled()


@collects_anywhere
def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    frames_of_threads()
    assert not gc.isenabled()


@collects_anywhere
def test_of_two_that_ask_at_a_time_none_leaves_collection_off(monkeypatch: pytest.MonkeyPatch) -> None:
    first_asks, go, collects = threading.Event(), threading.Event(), []

    def frames() -> dict[int, object]:
        collects.append(gc.isenabled())
        first_asks.set()
        go.wait(10)
        return {}

    monkeypatch.setattr(sys, "_current_frames", frames)
    threads = [threading.Thread(target=frames_of_threads) for _ in range(2)]
    threads[0].start()
    first_asks.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert collects == [False, False]
    assert gc.isenabled()
