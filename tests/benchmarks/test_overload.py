"""The benchmark of overload: its client on a plain socket, its accounts of calls, what it tells, and one scenario."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from wire_node import ALL, node

from benchmarks.messages.goals import render_outcomes
from benchmarks.overload import __main__ as program
from benchmarks.overload.caller import Caller, _count
from benchmarks.overload.culprits import REASON
from benchmarks.overload.node import ENDED
from benchmarks.overload.story import Story, render_figures
from benchmarks.overload.websocket import WebSocket
from microkernel.wire.limits import Limits
from microkernel.wire.outbox import Outbox


async def test_the_client_reads_frames_of_every_length_and_the_close_frame():
    heard = []
    async with node() as here:
        client = await WebSocket.connect(f"{here.url.rstrip('/')} {ALL}", heard.extend)
        sizes = [1, 200, 70_000]
        client.say(*({"t": "call", "id": n, "to": "maths.big", "body": {"to": n}} for n in sizes))
        client.say({"t": "call", "id": "not a number", "to": "a.b"})
        await client.over.wait()
        assert [len(each["body"]) for each in heard if each["t"] == "result"] == sizes
        assert client.closed is not None
        assert client.closed[0] == 4501


async def test_a_caller_accounts_for_each_call_that_it_has_sent():
    async with node() as here:
        caller = Caller(f"{here.url.rstrip('/')} {ALL}")
        await caller.start()
        await caller.connect(2)
        await caller.begin("maths.add", 500.0, {"body": {"a": 1, "b": 2}})
        taken = Counter()
        while taken["answered"] < 20:
            await asyncio.sleep(0.01)
            taken.update(await caller.take())
        await caller.rest()
        assert await caller.settle(10.0) == 0
        taken.update(await caller.take())
        assert taken["sent"] == taken["answered"]
        assert taken["lost"] == 0
        await caller.stop()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": "OVERLOADED", "retry_after_ms": 100}, {"refused": 1, "silent": 0}),
        ({"code": "OVERLOADED"}, {"refused": 1, "silent": 1}),
        ({"code": "DEADLINE"}, {"expired": 1}),
        ({"code": "INTERNAL"}, {"failed": 1}),
    ],
)
def test_a_call_that_ends_badly_is_counted_by_its_cause(error, expected):
    counts = Counter()
    _count(error, counts)
    assert dict(counts) == expected


def test_a_story_says_what_was_found_and_which_goals_were_met():
    story = Story("rush")
    story.figure("p99", "ms", before=1.5, after=3.0)
    story.figure("memory", "MiB", after=50.0)
    story.at_most("p99, to that before", 2.0, 2.0, "x")
    story.at_least("answered", 0.9, 0.8, "")
    assert [each.split() for each in render_figures([story]).splitlines()] == [
        ["rush", "before", "after"],
        ["p99", "ms", "1.5", "3"],
        ["memory", "MiB", "50"],
    ]
    assert [line.split()[-1] for line in render_outcomes(story.goals).splitlines()] == ["met", "MISSED"]


def test_what_a_node_says_of_a_slow_reader_is_what_the_benchmark_looks_for():
    outbox = Outbox(Limits(messages=4, buffer=2**20), lambda *_: None, lambda: 0.0)
    for size in (2, 2**19, 2**19):
        outbox.put(bytes(size))
        if outbox.cut_at is not None:
            assert REASON.fullmatch(outbox.complaint(5.0))
    assert outbox.cut_at is not None
    match = ENDED.search(f"session s12ab of ana ended: {outbox.complaint(5.0)} (code 4401)")
    assert match is not None
    assert match["session"] == "s12ab"


def test_a_word_that_names_no_scenario_is_refused(capsys):
    with pytest.raises(SystemExit):
        program.main(["--only", "rain"])
    assert "no scenario has 'rain' in its name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_flood_is_told_to_its_end(tmp_path, capsys):
    result = tmp_path / "result.json"
    assert program.main(["--quick", "--only", "floods", "--json", str(result)]) == 0
    (story,) = json.loads(result.read_bytes())["stories"]
    assert story["name"] == "reply floods"
    assert "culprits named with their numbers" in capsys.readouterr().out
