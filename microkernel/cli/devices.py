"""`mk devices`: what this node computes on, and what its threads cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, duration, moment, plain, print_json, print_table, size, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

COLUMNS = ("device", "state", "kind", "model", "cores", "threads", "memory", "free", "running", "queued", "busy", "why")
COSTS = ("device", "operations on", "threads of one core", "T_c create", "T_s schedule", "p99", "T_f end")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "devices", help="what the node computes on", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the devices."""

    async def work(system: System) -> int:
        devices = plain(await system.call("devices.list"))
        if wants_json(args):
            print_json(devices)
            return 0
        rows = [
            (
                each["name"],
                each["state"],
                each["kind"],
                each["model"],
                *_of_ours(each),
                each["running"],
                each["queued"],
                duration(each["busy_seconds"]),
                each["why"],
            )
            for each in devices
        ]
        print_table(COLUMNS, rows)
        write("")
        print_table(COSTS, [_costs(each) for each in devices if not each["answers"]])
        served = [(each["name"], ", ".join(each["models"])) for each in devices if each["models"]]
        if served:
            write("")
            print_table(("device", "answers with"), served)
        return 0

    return on_node(args, work)


def _of_ours(device: dict[str, Any]) -> tuple[object, ...]:
    """What there is of a device that runs our work: cores, threads, memory; nothing for one that answers by itself."""
    if device["answers"]:
        return "", "", "", ""
    return device["cores"], device["threads"], size(device["memory_bytes"]), size(device["memory_free_bytes"])


def _costs(device: dict[str, Any]) -> tuple[object, ...]:
    """How work is spread, and medians of what its threads cost; T_f where one has ended."""
    costs = device["costs"] or {}
    create, schedule, end = (costs.get(name) for name in ("create", "schedule", "end"))
    return (
        device["name"],
        f"{device['spread']} cores",
        device["core_threads"],
        _median(create),
        _median(schedule),
        moment(schedule["p99"]) if schedule and schedule["count"] else "",
        _median(end),
    )


def _median(timing: dict[str, Any] | None) -> str:
    return moment(timing["median"]) if timing and timing["count"] else ""
