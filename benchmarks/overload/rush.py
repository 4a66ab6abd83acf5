"""Five times as many calls as a node can answer, and then half as many as it can.

`rush` calls a handler that works for a millisecond on the compute thread, one at a time, with 64 that may wait. What
it can do is found in a closed loop. Before the rush and after it half of that comes, in an open loop, over eight links
with priority 5; beside them a twentieth of it comes with priority 0. All have a deadline, and each call has to end one
way or the other. `rush on the loop` is the same for a handler that holds the loop for its millisecond, which nobody
should write: it is always a short rush, and shows figures, and no goals but those that hold for every service.
"""

from __future__ import annotations

import functools
import time

import msgspec

from benchmarks.messages.process import Broken, Process
from benchmarks.overload.story import MIB, Scenario, Stage, Story

__all__ = ["RUSH", "RUSH_ON_THE_LOOP"]

RUSH_FACTOR, CALM_FACTOR = 5.0, 0.5  # of the capacity
URGENT_SHARE = 0.05  # of the capacity
LINKS = 8
DEPTH = 16  # calls in flight of the closed loop
DEADLINE = 250  # milliseconds
ORDINARY = {"priority": 5, "deadline": DEADLINE}
URGENT = {"priority": 0, "deadline": DEADLINE}
STEP = 0.5  # seconds: how exactly it is found out when things are as before
BACK = 2.0  # seconds after which they are to be
TWICE = 2.0
SETTLED = 60.0  # seconds until the last answer has to be there
GOODPUT = 0.9  # of the capacity
FLAT = 1.1  # memory of the rush's end to that of its beginning

SHARE = 0.99  # of the urgent calls

Taken = dict[str, float]
"""What has become of some calls: see `Caller.take`."""


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a rush has shown: calls by phase, how long it took, and when things were as before."""

    capacity: float
    ordinary: dict[str, Taken]
    urgent: dict[str, Taken]
    seconds: float
    back: float
    open_ones: int
    growth: float

    @property
    def answered(self) -> float:
        """Calls a second that were answered in the rush."""
        return (self.ordinary["rush"]["answered"] + self.urgent["rush"]["answered"]) / self.seconds


def _run(stage: Stage, story: Story, quick: bool, *, to: str, has_goals: bool) -> None:
    calm, rush = (3.0, 5.0) if quick or not has_goals else (10.0, 60.0)  # what waits in sockets is answered in the end
    many, urgent = stage.caller(LINKS), stage.caller()
    capacity = many.ask("capacity", to=to, depth=DEPTH, seconds=1.0 if quick else 4.0)
    stage.tell(f"  capacity: {capacity:.0f} calls/s")
    urgent.ask("begin", to=to, rate=URGENT_SHARE * capacity, options=URGENT)
    many.ask("begin", to=to, rate=CALM_FACTOR * capacity, options=ORDINARY)
    time.sleep(1.0)
    everything: list[Taken] = []
    _take(many, urgent, everything)
    stage.node.ask("sizes")
    time.sleep(calm)
    before, urgent_before = _take(many, urgent, everything)
    rest = stage.node.ask("sizes")

    many.ask("begin", to=to, rate=RUSH_FACTOR * capacity, options=ORDINARY)
    time.sleep(1.0)
    stage.node.ask("sizes")
    began = time.monotonic()
    _take(many, urgent, everything)
    time.sleep(rush / 5)
    early = stage.node.ask("sizes")
    time.sleep(rush * 4 / 5)
    during, urgent_during = _take(many, urgent, everything)
    took, late = time.monotonic() - began, stage.node.ask("sizes")

    many.ask("begin", to=to, rate=CALM_FACTOR * capacity, options=ORDINARY)
    back = STEP
    for number in range(round((BACK + 1.0) / STEP)):
        time.sleep(STEP)
        step, _ = _take(many, urgent, everything)
        if not step["answered"] or step["p99"] > TWICE * before["p99"]:
            back = (number + 2) * STEP  # by the end of the next step at the earliest
    time.sleep(calm)
    after, urgent_after = _take(many, urgent, everything)
    many.ask("rest")
    urgent.ask("rest")
    open_ones = many.ask("settle", seconds=SETTLED) + urgent.ask("settle", seconds=SETTLED)
    _take(many, urgent, everything)
    still_open, left = stage.node.ask("open"), stage.node.ask("sizes")

    found = _Found(
        capacity=capacity,
        ordinary={"before": before, "rush": during, "after": after},
        urgent={"before": urgent_before, "rush": urgent_during, "after": urgent_after},
        seconds=took,
        back=back,
        open_ones=open_ones + sum(still_open.values()),
        growth=late["most"] / early["most"],
    )
    memory = {"before": rest["most"], "rush": late["most"], "after": left["most"]}
    _figures(story, found, memory)
    _promises(story, found, everything)
    if has_goals:
        _goals(story, found)


def _figures(story: Story, found: _Found, memory: dict[str, float]) -> None:
    story.figure("capacity, closed loop", "calls/s", before=found.capacity)
    story.figure("offered", "calls/s", rush=found.ordinary["rush"]["sent"] / found.seconds)
    story.figure("answered", "calls/s", rush=found.answered)
    for name, phases in (("ordinary", found.ordinary), ("urgent", found.urgent)):
        for key in ("p50", "p99"):
            story.figure(f"{key} of {name} calls", "ms", **{phase: each[key] * 1e3 for phase, each in phases.items()})
        for key in ("answered", "refused", "expired"):
            story.figure(f"{name} calls {key}", "", **{phase: each[key] for phase, each in phases.items()})
    story.figure("as before again after", "s", after=found.back)
    story.figure("memory, most", "MiB", **{phase: size / MIB for phase, size in memory.items()})


def _promises(story: Story, found: _Found, everything: list[Taken]) -> None:
    """What holds for every service, however it is written."""
    sent = sum(each["sent"] for each in everything)
    ended = sum(each[how] for each in everything for how in ("answered", "refused", "expired", "failed"))
    story.at_most("calls of which nothing was heard", 0, sent - ended, "")
    story.at_most("calls that failed otherwise", 0, sum(each["failed"] for each in everything), "")
    story.at_most("refusals without a time to come back", 0, sum(each["silent"] for each in everything), "")
    story.at_most("open at the end, here and in the node", 0, found.open_ones, "")
    story.at_most("memory at the rush's end, to its beginning", FLAT, found.growth, "x")


def _goals(story: Story, found: _Found) -> None:
    ordinary, urgent = found.ordinary, found.urgent
    story.at_least("answered, to the capacity", GOODPUT, found.answered / found.capacity, "x")
    story.at_most("p99 of ordinary calls in the rush", DEADLINE, ordinary["rush"]["p99"] * 1e3, "ms")
    story.at_most("p99 of urgent calls, to that before", TWICE, urgent["rush"]["p99"] / urgent["before"]["p99"], "x")
    share = urgent["rush"]["answered"] / max(1, urgent["rush"]["sent"])
    story.at_least("share of urgent calls answered in the rush", SHARE, share, "")
    after = ordinary["after"]["p99"] / ordinary["before"]["p99"]
    story.at_most("p99 of ordinary calls after, to that before", TWICE, after, "x")
    story.at_most("as before again after", BACK, found.back, "s")


def _take(many: Process, urgent: Process, everything: list[Taken]) -> tuple[Taken, Taken]:
    """What has become of the calls of both since the last time. Raises `Broken` where a link was lost."""
    found: tuple[Taken, Taken] = (many.ask("take"), urgent.ask("take"))
    if any(each["lost"] for each in found):
        raise Broken("a link was cut in the rush")
    everything.extend(found)
    return found


RUSH = Scenario(
    "rush",
    "five times the capacity of a handler on the compute thread",
    functools.partial(_run, to="load.compute", has_goals=True),
)
RUSH_ON_THE_LOOP = Scenario(
    "rush on the loop",
    "five times the capacity of a handler that holds the loop",
    functools.partial(_run, to="load.hold", has_goals=False),
)
