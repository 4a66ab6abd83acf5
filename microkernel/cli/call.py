"""`mk call`: calls any handler of any service; a stream is printed item by item."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, plain, print_json, wants_json
from microkernel.errors import Invalid

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "message_of", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "call", help="call a handler", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("name", metavar="NAME", help="service.method, such as kernel.services")
    parser.add_argument(
        "message", nargs="*", metavar="JSON|KEY=VALUE", help="a JSON object ('-': from stdin), or fields one by one"
    )
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="how long the call may take")
    parser.add_argument("--priority", type=int, metavar="0-9", help="0 is urgent, 5 usual, 9 whenever there is time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Call, and print the result as JSON."""
    message = message_of(args.message)
    indent = sys.stdout.isatty() and not wants_json(args)

    async def work(system: System) -> int:
        if await _is_stream(system, args.name):
            stream = system.stream(args.name, message, deadline=args.deadline, priority=args.priority)
            async with stream as items:
                async for item in items:
                    print_json(item)
            return 0
        result = await system.call(args.name, message, deadline=args.deadline, priority=args.priority)
        print_json(result, indent=indent)
        return 0

    return on_node(args, work)


def message_of(arguments: list[str]) -> dict[str, Any]:
    """The message that the arguments spell. Raises `Invalid`.

    A value of `key=value` is taken as JSON where it is JSON and as text otherwise: `n=3` is a number, `name=kv` is not.
    """
    if len(arguments) == 1 and (arguments[0] == "-" or arguments[0].lstrip().startswith("{")):
        text = sys.stdin.read() if arguments[0] == "-" else arguments[0]
        try:
            message = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Invalid(f"the message is no JSON object: {error}") from error
        return message
    fields = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise Invalid(f"'{argument}' is neither a JSON object nor key=value")
        fields[key] = _value(value)
    return fields


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


async def _is_stream(system: System, name: str) -> bool:
    described = plain(await system.call("kernel.describe", name=name.partition(".")[0]))
    return any(
        handler["address"] == name and handler["kind"] == "stream" for each in described for handler in each["handlers"]
    )
