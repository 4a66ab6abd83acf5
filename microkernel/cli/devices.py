"""`mk devices`: what this node computes on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, duration, plain, print_json, print_table, size, wants_json

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

COLUMNS = ("device", "state", "kind", "model", "cores", "threads", "memory", "free", "running", "queued", "busy", "why")


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
                each["cores"],
                each["threads"],
                size(each["memory_bytes"]),
                size(each["memory_free_bytes"]),
                each["running"],
                each["queued"],
                duration(each["busy_seconds"]),
                each["why"],
            )
            for each in devices
        ]
        print_table(COLUMNS, rows)
        return 0

    return on_node(args, work)
