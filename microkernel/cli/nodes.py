"""`mk nodes`: the nodes of the cluster, and who may come in or has to go."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, duration, moment, plain, print_json, print_table, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

COLUMNS = ("node", "state", "address", "version", "cores", "calls", "round trip", "services")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "nodes", help="the nodes of the cluster", description=__doc__, parents=parents, allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    actions.add_parser("list", help="all nodes, and how they are", parents=parents, allow_abbrev=False)
    invite = actions.add_parser(
        "invite",
        help="make a join token, and show what to type on the other machine",
        parents=parents,
        allow_abbrev=False,
    )
    invite.add_argument("--expires", type=float, default=3600.0, metavar="SECONDS", help="default: 3600")
    for action, does in (
        ("drain", "have a node take no more work"),
        ("remove", "have a node leave for good"),
    ):
        each = actions.add_parser(action, help=does, parents=parents, allow_abbrev=False)
        each.add_argument("node", metavar="NODE", help="its name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the nodes, invite one, drain one or remove one."""

    async def work(system: System) -> int:
        match args.action:
            case "invite":
                return _invited(args, plain(await system.call("cluster.invite", expires_in=args.expires)))
            case "drain":
                await system.call("cluster.drain", node=args.node)
            case "remove":
                await system.call("cluster.remove", node=args.node)
        nodes = plain(await system.call("cluster.list"))
        if wants_json(args):
            print_json(nodes)
        else:
            print_table(COLUMNS, [_row(each) for each in nodes])
        return 0

    return on_node(args, work)


def _invited(args: argparse.Namespace, invitation: dict[str, Any]) -> int:
    if wants_json(args):
        print_json(invitation)
    else:
        write(f"mk boot --join {invitation['url']} --token {invitation['token']}")
        write(f"\nGood for {duration(args.expires)}. Whoever has this line may join: send it as you would a password.")
    return 0


def _row(node: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"{node['node']} (here)" if node["is_here"] else node["node"],
        node["state"],
        node["address"],
        node["version"],
        node["cores"],
        node["in_flight"],
        "" if node["round_trip"] is None else moment(node["round_trip"]),
        ", ".join(node["services"]),
    )
