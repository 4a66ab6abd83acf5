"""`python -m benchmarks.cluster.simulation`: what membership costs at sizes that fit on no desk, on a virtual network.

The memberships are those that nodes run; the network, the clock and the processes are played. Times until something is
known are in the network's time, the same on any machine; times of work are this machine's.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.cluster.costs import costs
from benchmarks.cluster.scenarios import STORM, Cluster, Plan, known, quiet, wrongly_dead
from benchmarks.command_line import INTERRUPTED, command_of, count, sigterm_interrupts, tell, write_json
from benchmarks.machine import Machine, this_machine

__all__ = ["LINES", "main", "render", "simulate"]

NODES = (3, 10, 100, 300, 1000)
LEAST = 3

Found = dict[str, float]

EVENTS = {
    "join": "a node comes",
    "drain": "one drains",
    "suspect": "one hangs: suspect",
    "hang": "one hangs: dead",
    "kill": "one is killed: dead",
}

# A block, its lines: what is shown, in which unit, by which key, times what.
LINES: dict[str, tuple[tuple[str, str, str, float], ...]] = {
    "nothing happens": (
        ("messages that a node sends", "1/s", "messages", 1.0),
        ("bytes that a node sends", "kB/s", "bytes", 1e-3),
    ),
    "until another node knows": tuple(
        (f"{about}, {which}", "s", f"{event} {which}", 1.0)
        for event, about in EVENTS.items()
        for which in ("p50", "p99", "all")
    ),
    f"{STORM.loss:.0%} of messages lost, {STORM.spikes:.0%} up to {STORM.spike:g} s late, some hosts slow": (
        ("wrongly dead, a node and hour", "", "wrongly dead", 1.0),
        ("wrongly suspect, a node and hour", "", "wrongly suspect", 1.0),
        ("hours of nodes that were tried", "h", "hours", 1.0),
    ),
    "work and room": (
        ("table of a node", "MB", "table bytes", 1e-6),
        ("a probe, both ends", "us", "probe", 1e6),
        ("owners of a thing", "us", "owners", 1e6),
        ("a name that one node has", "us", "name one has", 1e6),
        ("a name that all have", "us", "name all have", 1e6),
    ),
    "the simulation": (("took, of this machine's time", "s", "took", 1.0),),
}

NOTE = """\
Nodes that come and go do so in a cluster that has met; p50 and p99 are over all others and all events, `all` is the
last node of the worst event. Killed means without links: the next probe is refused. A message is a probe, an answer or
a comparison of tables; its bytes are JSON with 90 for the frame around it. See docs/reference/benchmarks.md."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes; numbers by size and key, in SI units."""

    command: str
    quick: bool
    seed: int
    machine: Machine
    found: dict[int, Found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster.simulation", description=__doc__)
    parser.add_argument(
        "--nodes", type=count, nargs="+", default=NODES, metavar="N", help="sizes (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="moments: to see that it works")
    parser.add_argument("--seed", type=int, default=0, help="of all that is left to chance (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    args = parser.parse_args(arguments)
    if min(args.nodes) < LEAST:
        parser.error(f"a cluster has at least {LEAST} nodes here, so that there is somebody to ask")
    machine = this_machine()
    for line in machine.lines():
        print(line)
    found: dict[int, Found] = {}
    status = 0
    try:
        with sigterm_interrupts():
            for nodes in args.nodes:
                tell(f"{nodes} nodes")
                found[nodes] = simulate(nodes, seed=args.seed, quick=args.quick)
    except KeyboardInterrupt:
        tell("interrupted")
        status = INTERRUPTED
    print(f"\n{render(found)}\n\n{NOTE}")
    if args.json:
        command = command_of("cluster.simulation", arguments)
        write_json(args.json, Result(command=command, quick=args.quick, seed=args.seed, machine=machine, found=found))
    return status


def simulate(nodes: int, *, seed: int = 0, quick: bool = False) -> Found:
    """All numbers of a size, which is at least `LEAST`."""
    began = time.process_time()
    plan = Plan(nodes, quick=quick)
    cluster = Cluster(nodes, seed)
    gc.freeze()  # a thousand tables are a million objects, which are there until the end
    try:
        found = {**quiet(cluster, plan), **known(cluster, plan), **wrongly_dead(cluster, plan)}
    finally:
        gc.unfreeze()
    del cluster
    gc.collect()
    found |= costs(nodes, quick=quick)
    return {**found, "took": time.process_time() - began}


def render(found: Mapping[int, Found]) -> str:
    """For people, in columns: a block for each subject, a column for each size."""
    lines: list[tuple[str, ...]] = [("", "", *(f"{nodes:,} nodes" for nodes in found))]
    for block, rows in LINES.items():
        lines += [(), (block,)]
        lines += [
            (f"  {about}", unit, *(_number(each[key] * scale) for each in found.values()))
            for about, unit, key, scale in rows
        ]
    columns = range(len(lines[0]))
    widths = [max((len(line[column]) for line in lines if len(line) > 1), default=0) for column in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def _number(value: float) -> str:
    """Three digits that mean something, and no more."""
    if value == float("inf"):
        return "never"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
