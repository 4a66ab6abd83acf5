"""`mk describe`: what services answer, with the fields that their messages take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, print_table, wants_json, write
from microkernel.errors import NotFound

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run", "signature"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "describe", help="what a service answers", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a service, or service.method; all services without it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe one service, one handler, or all services."""
    service, _, method = (args.name or "").partition(".")

    async def work(system: System) -> int:
        described = plain(await system.call("kernel.describe", name=service or None))
        if method:
            _show_handler(args, described[0], method)
        elif wants_json(args):
            print_json(described)
        elif service:
            _show_service(described[0])
        else:
            rows = [(each["name"], each["state"], len(each["handlers"]), each["summary"]) for each in described]
            print_table(("service", "state", "handlers", ""), rows)
        return 0

    return on_node(args, work)


def _show_service(service: dict[str, Any]) -> None:
    write(clean(f"{service['name']}: {service['summary']}"))
    write(clean(f"{service['state']}" + (f": {service['why']}" if service["why"] else "")))
    for key in ("needs", "uses"):
        if service[key]:
            write(f"{key} {', '.join(service[key])}")
    write("")
    rows = [(signature(handler), handler["summary"]) for handler in service["handlers"]]
    print_table(("handler", ""), rows)


def _show_handler(args: argparse.Namespace, service: dict[str, Any], method: str) -> None:
    address = f"{service['name']}.{method}"
    found = [handler for handler in service["handlers"] if handler["address"] == address]
    if not found:
        known = ", ".join(handler["address"].partition(".")[2] for handler in service["handlers"])
        raise NotFound(f"service '{service['name']}' has no handler '{method}'", remedy=f"it has: {known or 'none'}")
    handler = found[0]
    if wants_json(args):
        print_json(handler)
        return
    write(clean(signature(handler)))
    write(clean(handler["summary"]))
    deadline = "none" if handler["deadline"] is None else f"{handler['deadline']:g} s"
    write(f"deadline {deadline}, {handler['concurrency']} at a time, {handler['queue']} waiting")
    write(f"{handler['calls']} calls, {handler['failures']} failed")
    write("message:")
    print_json(handler["message"], indent=True)
    write("result:")
    print_json(handler["result"], indent=True)


def signature(handler: dict[str, Any]) -> str:
    """A handler as one would write it: `kv.put(key: string, value?: string) -> null`."""
    schema = handler["message"]
    message = _resolve(schema, schema)
    required = set(message.get("required", ()))
    fields = ", ".join(
        f"{name}{'' if name in required else '?'}: {_type(field, schema)}"
        for name, field in message.get("properties", {}).items()
    )
    arrow = "->>" if handler["kind"] == "stream" else "->"
    return f"{handler['address']}({fields}) {arrow} {_type(handler['result'], handler['result'])}"


def _type(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(_type(each, whole) for each in schema[key])
    kind = schema.get("type")
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"{_type(schema['items'], whole)}[]"
    if isinstance(kind, list):
        return " | ".join(kind)
    if "enum" in schema:
        return " | ".join(repr(value) for value in schema["enum"])
    return str(kind or "any")


def _resolve(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found = whole.get("$defs", {}).get(name, schema)
    return found if isinstance(found, dict) else {}
