"""Clients that do harm by not reading, in two waves, and what those notice who do read.

`slow readers`: of a thousand clients fifty stop reading, while a stream or bulky events are on their way to them.
`reply floods`: clients call for as many large replies as they may have in flight, and read none.

Each wave has to end with all culprits cut and named in the node's log, with their numbers. Half of them read again as
soon as they are cut: these have to find the reason in their close frame; the others are away for good. The second wave
shows what the first one left behind: memory that the allocator keeps is used again, a leak is not.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Any

import msgspec

from benchmarks.messages.process import Broken, Process
from benchmarks.overload.story import MIB, Scenario, Stage, Story
from microkernel.wire.codec import CloseCode
from microkernel.wire.limits import Limits

__all__ = ["REPLY_FLOODS", "SLOW_READERS"]

LOOK = 0.1  # seconds between two looks at who was cut
PATIENCE = 90.0  # seconds until all culprits have to be cut
CALLS = 200.0  # a second, of the one who measures
TWICE = 2.0  # how much slower it may get for others
OVERHEAD = 1.5  # resident memory over what the limits count: objects, buffers of the transport, the allocator
FLAT = 1.1  # how much more the second wave may take, and what is left may grow
REASON = re.compile(r"slow reader: (\d+\.\d MiB|\d+ messages) pending.* for \d+\.\d s")


class Size(msgspec.Struct, frozen=True):
    """How many clients there are, how many of them do harm, and how long a phase takes, in seconds."""

    clients: int
    culprits: int
    seconds: float


class _Wave(msgspec.Struct):
    """What one wave has shown."""

    p99: dict[str, float]
    most: float  # bytes resident
    last: float
    named: int
    told: int
    to_be_told: int
    seconds: float  # until the last one was cut


def _run(stage: Stage, story: Story, quick: bool, *, harm: str, full: Size, short: Size) -> None:
    size = short if quick else full
    crowd, caller = stage.crowd(size.clients), stage.caller()
    stage.node.ask("pace", ticks=True, bulks=True)
    caller.ask("begin", to="load.echo", rate=CALLS, options={"deadline": 10_000})
    time.sleep(1.0)
    _take(crowd, caller)
    stage.node.ask("sizes")
    time.sleep(size.seconds)
    before, rest = _take(crowd, caller), stage.node.ask("sizes")
    waves = []
    for number in range(2):
        stage.tell(f"  wave {number + 1}: {size.culprits} of {size.clients} clients")
        waves.append(_wave(stage, crowd, caller, harm, size))
    time.sleep(1.0)
    _take(crowd, caller)
    stage.node.ask("sizes")
    time.sleep(size.seconds)
    after, left = _take(crowd, caller), stage.node.ask("sizes")
    caller.ask("rest")
    unanswered = caller.ask("settle", seconds=10.0)
    for key, name in (("ticks", "p99 of events to those who read"), ("calls", "p99 of calls")):
        phases = {"before": before, "wave 1": waves[0].p99, "wave 2": waves[1].p99, "after": after}
        story.figure(name, "ms", **{phase: p99[key] * 1e3 for phase, p99 in phases.items()})
    story.figure(
        "memory, most", "MiB", **_mib(before=rest["most"], **_of(waves, lambda each: each.most), after=left["most"])
    )
    story.figure("memory, at the end", "MiB", **_mib(before=rest["last"], after=left["last"]))
    story.figure("until the last was cut", "s", **_of(waves, lambda each: each.seconds))
    story.figure("named in the log", "", **_of(waves, lambda each: each.named))
    story.figure("told why, of those who read again", "", **_of(waves, lambda each: each.told))
    for key, name in (("ticks", "events"), ("calls", "calls")):
        worst = max(each.p99[key] for each in waves)
        story.at_most(f"p99 of {name}, to that before", TWICE, worst / before[key], "x")
        story.at_most(f"p99 of {name} after, to that before", TWICE, after[key] / before[key], "x")
    story.at_least("culprits named with their numbers", size.culprits * 2, sum(each.named for each in waves), "")
    story.at_least(
        "told why, of those who read again",
        sum(each.to_be_told for each in waves),
        sum(each.told for each in waves),
        "",
    )
    held = max(each.most for each in waves) - rest["last"]
    story.at_most("memory held for a culprit", OVERHEAD * Limits().buffer / MIB, held / size.culprits / MIB, "MiB")
    story.at_most("memory of wave 2, to wave 1", FLAT, waves[1].most / waves[0].most, "x")
    story.at_most("memory while it rests again, most to least", FLAT, left["most"] / left["least"], "x")
    story.at_most("calls without an end", 0, unanswered, "")
    clients_left = crowd.ask("take")["reading"]
    story.at_least("others who are still there", size.clients - 2 * size.culprits, clients_left, "")


def _wave(stage: Stage, crowd: Process, caller: Process, harm: str, size: Size) -> _Wave:
    """Do harm until everybody who does is cut."""
    node = stage.node
    began = time.monotonic()
    waiting = {session: place for place, session in enumerate(crowd.ask(harm, count=size.culprits))}
    half = [session for session, place in waiting.items() if place % 4 < 2]  # they do one or the other by turns
    returning: set[str] = set()
    named = 0
    while waiting:
        if time.monotonic() > began + PATIENCE:
            raise Broken(f"{len(waiting)} of {size.culprits} culprits were not cut within {PATIENCE:.0f} s")
        time.sleep(LOOK)
        if fresh := set(half).intersection(node.ask("cut")) - returning:
            crowd.ask("read_again", sessions=sorted(fresh))
            returning |= fresh
        for session, code, reason in node.ask("ended"):
            if waiting.pop(session, None) is None:
                raise Broken(f"somebody else was cut: {reason} (code {code})")
            named += code == CloseCode.SLOW_READER and REASON.fullmatch(reason) is not None
    took = time.monotonic() - began
    time.sleep(max(0.0, size.seconds - took))
    p99, sizes = _take(crowd, caller), node.ask("sizes")
    closes: list[Any] = crowd.ask("told", sessions=half)
    told = sum(each is not None and REASON.fullmatch(each[1]) is not None for each in closes)
    return _Wave(p99, sizes["most"], sizes["last"], named, told, len(half), took)


def _take(crowd: Process, caller: Process) -> dict[str, float]:
    """The p99 of both kinds since the last time, in seconds. Raises `Broken` where nothing came."""
    ticks, calls = crowd.ask("take"), caller.ask("take")
    if not ticks["count"] or not calls["answered"]:
        raise Broken(f"nothing comes any more: {ticks['count']} events, {calls['answered']} answers")
    if calls["refused"] or calls["failed"] or calls["expired"]:
        raise Broken(f"calls of somebody who does no harm have failed: {calls}")
    return {"ticks": ticks["p99"], "calls": calls["p99"]}


def _of(waves: list[_Wave], value: Any) -> dict[str, float]:
    return {f"wave {number + 1}": value(wave) for number, wave in enumerate(waves)}


def _mib(**values: float) -> dict[str, float]:
    return {name: value / MIB for name, value in values.items()}


SLOW_READERS = Scenario(
    "slow readers",
    "clients hear events; some stop reading while a stream or bulky events are on their way to them",
    functools.partial(
        _run, harm="stop_reading", full=Size(1000, 50, 15.0), short=Size(100, 8, 3.0)
    ),
)  # fmt: skip

REPLY_FLOODS = Scenario(
    "reply floods",
    "clients call for 256 replies of 256 KiB at a time and read none",
    functools.partial(_run, harm="flood", full=Size(200, 10, 15.0), short=Size(50, 4, 3.0)),
)
