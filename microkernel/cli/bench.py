"""`mk bench`: have the node measure what its numbers are chosen by, or run a benchmark from the source tree."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, moment, plain, print_json, print_table, wants_json, write
from microkernel.errors import NotFound, PreconditionFailed

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "bench", help="tune the node, or run a benchmark", description=__doc__, parents=parents, allow_abbrev=False
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    tune = actions.add_parser(
        "tune", help="measure, choose and keep", description=_tune.__doc__, parents=parents, allow_abbrev=False
    )
    tune.add_argument("--model", metavar="NAME", help="this one (default: the one that answers who names none)")
    tune.add_argument("--anyway", action="store_true", help="also beside other processes that are busy")
    tune.set_defaults(run=_tune)
    benchmark = actions.add_parser(
        "run", help="run a benchmark", description=_run.__doc__, parents=parents, allow_abbrev=False
    )
    benchmark.add_argument("name", metavar="NAME", help="such as messages")
    benchmark.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS", help="those of the benchmark")
    benchmark.set_defaults(run=_run)


def _tune(args: argparse.Namespace) -> int:
    """Measure each device and a model, and use what was best: numbers of threads, answers at once, tokens in a step."""

    async def work(system: System) -> int:
        for device in plain(await system.call("devices.list")):
            if device["answers"]:
                continue  # nothing of ours runs there
            tuning = await system.call("devices.tune", name=device["name"], anyway=args.anyway, deadline=None)
            if tuning is not None:
                _show(plain(tuning), as_json=wants_json(args))
        if any(service["name"] == "inference" for service in plain(await system.call("kernel.services"))):
            tuning = await system.call("inference.tune", model=args.model, anyway=args.anyway, deadline=None)
            _show(plain(tuning), as_json=wants_json(args))
        return 0

    return on_node(args, work)


def _run(args: argparse.Namespace) -> int:
    """Run a benchmark of the source tree, with the peers that are installed; `--help` after its name tells more."""
    tree = Path(__file__).parents[2]
    names = sorted(path.parent.name for path in tree.glob("benchmarks/*/__main__.py"))
    if not names:
        raise PreconditionFailed(
            "benchmarks are in the source tree, and this is not installed from one",
            remedy="clone it, and take the mk of its environment",
        )
    if args.name not in names:
        raise NotFound(f"no benchmark is named '{args.name}'", remedy=f"there are: {', '.join(names)}")
    command = [sys.executable, "-m", f"benchmarks.{args.name}", *args.arguments]
    return subprocess.run(command, cwd=tree, check=False).returncode  # noqa: S603 - one of ours


def _show(tuning: dict[str, Any], *, as_json: bool) -> None:
    """What was chosen, and the figures that it was chosen by."""
    if as_json:
        print_json(tuning)
        return
    chosen = ", ".join(f"{name} {number}" for name, number in tuning["chosen"].items())
    write(clean(f"{tuning['title']} on {tuning['device']}: {chosen}"))
    print_table(("measured", "took"), [(name, moment(each)) for name, each in tuning["measured"].items()])
    write("")
