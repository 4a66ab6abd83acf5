"""`mk services`: lists services; restarts, adds, replaces and removes them while the node runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, plain, print_json, print_table, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

COLUMNS = ("service", "state", "starts", "in-flight", "source", "why")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "services",
        help="list, restart, add, replace, remove services",
        description=__doc__,
        parents=parents,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, action="list")
    actions = parser.add_subparsers(metavar="ACTION")
    for action, argument, told in (
        ("list", None, "all services and how they are (the default)"),
        ("restart", "NAME", "drain a service and those that need it, start them anew"),
        ("add", "FILE", "start the services of a Python file"),
        ("replace", "FILE", "have the services of a Python file take over from those of the same names"),
        ("remove", "NAME", "stop a service for good"),
    ):
        sub = actions.add_parser(action, help=told, description=told, parents=parents, allow_abbrev=False)
        if argument is not None:
            sub.add_argument("what", metavar=argument)
        sub.set_defaults(action=action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked, and show the services that it was about."""

    async def work(system: System) -> int:
        if args.action == "remove":
            await system.call("kernel.remove", name=args.what)
            if wants_json(args):
                print_json({"removed": args.what})
            else:
                write(f"removed {args.what}")
            return 0
        _show(args, await _services(system, args))
        return 0

    return on_node(args, work)


async def _services(system: System, args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.action == "restart":
        return [plain(await system.call("kernel.restart", name=args.what, deadline=120.0))]
    if args.action in {"add", "replace"}:
        called = f"kernel.{args.action}"
        changed: list[dict[str, Any]] = plain(await system.call(called, path=_path(args.what), deadline=120.0))
        return changed
    listed: list[dict[str, Any]] = plain(await system.call("kernel.services"))
    return listed


def _path(text: str) -> str:
    """A path as the node sees it, which has its own working directory."""
    return str(Path(text).expanduser().absolute())


def _show(args: argparse.Namespace, services: list[dict[str, Any]]) -> None:
    if wants_json(args):
        print_json(services)
        return
    rows = [
        (each["name"], each["state"], each["incarnation"], each["in_flight"], each["source"], each["why"])
        for each in services
    ]
    print_table(COLUMNS, rows)
