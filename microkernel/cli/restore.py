"""`mk restore`: makes a state folder of what `mk backup` has made; no node runs meanwhile.

The folder is made beside its place by the services that the parts are of, as they are before their start, and put there
once all is in it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.cli.backup_display import ByteProgress, show_summary
from microkernel.cli.node import Asked, root_of
from microkernel.cli.output import Commands, clean, plain, wants_json
from microkernel.errors import Unavailable

if TYPE_CHECKING:
    from microkernel.plugins import Plugin

__all__ = ["add", "run"]

SERVICE = "backup"  # which takes archives apart
IMPORT = "import"


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "restore", help="make a node of an archive", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what mk backup has made")
    parser.add_argument("--check", action="store_true", help="read and compare all of it, and change nothing")
    parser.add_argument("--force", action="store_true", help="put a folder that is there aside, under another name")
    parser.add_argument(
        "--service",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with services that have parts in it; repeatable",
    )
    parser.add_argument("--without", action="append", default=[], metavar="PART", help="leave a part out; repeatable")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, or restore; and say what there was."""
    # What goes wrong comes back as the call's error; nobody is to read it twice.
    logging.getLogger("microkernel").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="microkernel-") as scratch:
        if args.check:
            _show(args, asyncio.run(_check(args, Path(scratch))), {})
            return 0
        from microkernel.fresh_root import FreshRoot, check_place

        place = root_of(args)
        check_place(place, replace=args.force)
        fresh = FreshRoot(place)
        try:
            last = asyncio.run(_restore(args, fresh.path, Path(scratch)))
            aside = fresh.put_in_place(replace=args.force)
        finally:
            fresh.discard()
        _show(args, last, {"root": str(place), "aside": None if aside is None else str(aside)})
    return 0


async def _check(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    async with _restoring(root, []) as port:
        return await _last(args, port, "check", path=_path(args))


async def _restore(args: argparse.Namespace, root: Path, scratch: Path) -> dict[str, Any]:
    async with _restoring(scratch, []) as port:
        parts = tuple(await port.call(f"{SERVICE}.parts", path=_path(args)))
    async with _restoring(root, [file.expanduser() for file in args.service], parts) as port:
        return await _last(args, port, "restore", path=_path(args), without=args.without)


async def _last(args: argparse.Namespace, port: Asked, what: str, **fields: Any) -> dict[str, Any]:
    """The last word of `backup.check` or `backup.restore`."""
    last: dict[str, Any] = {}
    with ByteProgress("", shown=not wants_json(args)) as progress:
        async with port.stream(f"{SERVICE}.{what}", **fields) as steps:
            async for step in steps:
                last = plain(step)
                progress.at(f"{last['stage']} {last['part']}", last["done_bytes"], last["total_bytes"])
    if last.get("summary") is None:
        raise Unavailable("the restore ended before all was done", remedy="do it once more")
    return last


@asynccontextmanager
async def _restoring(root: Path, files: list[Path], parts: tuple[str, ...] = ()) -> AsyncIterator[Asked]:
    """A kernel on a folder that is new, with the services that take parts in, as they are before their start."""
    from importlib.metadata import entry_points

    from microkernel.config import Config
    from microkernel.kernel import Kernel
    from microkernel.plugins import SERVICES, discover_services

    installed = {point.name for point in entry_points(group=SERVICES)}
    # Others are not imported, which may take long, unless a part is of a service that its entry point does not name.
    others = set() if set(parts) - installed - {"kernel"} and not files else installed - {SERVICE, *parts}
    plugins = await discover_services(files, without=sorted(others))
    kernel = Kernel(Config(), root, [plugin for plugin in plugins if _takes_part(plugin)], restoring=True)
    try:
        await kernel.boot()
        await kernel.wait_ready(everyone=True)
        yield kernel.port
    finally:
        await kernel.shutdown("the command has ended")


def _path(args: argparse.Namespace) -> str:
    return str(args.file.expanduser().absolute())


def _takes_part(plugin: Plugin) -> bool:
    from microkernel.service import handlers_of

    return plugin.kind is not None and (
        plugin.name == SERVICE or any(handler.name == IMPORT for handler in handlers_of(plugin.kind))
    )


def _show(args: argparse.Namespace, last: dict[str, Any], where: dict[str, Any]) -> None:
    notes = [*last["summary"].pop("notes"), *last["notes"]]
    told = {"file": str(args.file), **where, **last["summary"], "notes": notes}
    show_summary(args, told, to=sys.stdout)
    if wants_json(args):
        return
    if not where:
        sys.stdout.write("every byte is as it was written\n")
        return
    if where["aside"]:
        sys.stdout.write(clean(f"what was there is in {where['aside']}\n"))
    sys.stdout.write(clean(f"restored: mk boot --root {shlex.quote(where['root'])}\n"))
