"""`mk describe`: what services answer, with the fields that their messages take."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, print_table, wants_json, write
from microkernel.errors import NotFound
from microkernel.service import CONCURRENCY, CREDIT, DEADLINE, QUEUE

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "limits", "run", "service_lines", "signature"]

WIDEST = 100  # characters of a line: longer ones are not read


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
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 1)).columns)
    for part in service_lines(service, width):
        write(part)


def service_lines(service: dict[str, Any], width: int) -> list[str]:
    """A service for people: no line is longer than `width`, but for words that are."""
    lines = _wrapped(f"{service['name']}: {service['summary']}", width)
    lines += _wrapped(f"{service['state']}: {service['why']}" if service["why"] else service["state"], width)
    if service["instances"] > 1:
        lines.append(f"{service['instances']} instances, {service['balance'].replace('_', ' ')}")
    if service["isolation"] not in {None, "inline"}:
        lines.append(f"runs in a {service['isolation']} of its own")
    for key in ("needs", "uses"):
        if service[key]:
            lines += _wrapped(f"{key} {', '.join(service[key])}", width)
    for handler in service["handlers"]:
        lines += ["", *_signature_lines(handler, width), *_wrapped(handler["summary"], width, "    ")]
        lines += _wrapped(", ".join(limits(handler, unusual=True)), width, "    ")
    if service["handlers"]:
        told = f"Unless it is said: deadline {DEADLINE:g} s, {CONCURRENCY} at a time, {QUEUE} waiting"
        if any(handler["kind"] == "stream" for handler in service["handlers"]):
            told += f", and for a stream (->>) no deadline and credit {CREDIT}"
        lines += ["", *_wrapped(f"{told}. `mk describe SERVICE.METHOD` shows more.", width)]
    return lines


def limits(handler: dict[str, Any], *, unusual: bool = False) -> list[str]:
    """The limits of a handler, or only those that are not the usual ones."""
    is_stream, deadline = handler["kind"] == "stream", handler["deadline"]
    told = [
        (deadline, None if is_stream else DEADLINE, "no deadline" if deadline is None else f"deadline {deadline:g} s"),
        (handler["concurrency"], CONCURRENCY, f"{handler['concurrency']} at a time"),
        (handler["queue"], QUEUE, f"{handler['queue']} waiting"),
    ]
    if is_stream:
        told.append((handler["credit"], CREDIT, f"credit {handler['credit']}"))
    words = [text for value, usual, text in told if not unusual or value != usual]
    if handler["idempotent"]:
        words.append("idempotent")
    if handler["inputs"] is not None:
        words.append(f"takes inputs: {_type(handler['inputs'], handler['inputs'])}")
    return words


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
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 1)).columns)
    for part in [*_signature_lines(handler, width), *_wrapped(handler["summary"], width)]:
        write(part)
    write(", ".join(limits(handler)))
    write(f"{handler['calls']} calls, {handler['failures']} failed")
    for key in ("message", "inputs", "result"):
        if handler[key] is not None and _resolve(handler[key], handler[key]).get("properties") != {}:
            write(f"{key}:")
            print_json(handler[key], indent=True)


def signature(handler: dict[str, Any]) -> str:
    """A handler as one would write it: `kv.put(key: string, value?: string) -> null`."""
    return f"{handler['address']}({', '.join(_fields(handler))}) {_gives(handler)}"


def _signature_lines(handler: dict[str, Any], width: int) -> list[str]:
    """The signature; where it is too long for one line, with a line for each field."""
    whole = clean(signature(handler))
    if len(whole) <= width:
        return [whole]
    fields = [part for field in _fields(handler) for part in _wrapped(f"{field},", width, "    ", "        ")]
    return [f"{handler['address']}(", *fields, f") {_gives(handler)}"]


def _fields(handler: dict[str, Any]) -> list[str]:
    schema = handler["message"]
    message = _resolve(schema, schema)
    required = set(message.get("required", ()))
    return [
        f"{name}{'' if name in required else '?'}: {_type(field, schema)}"
        for name, field in message.get("properties", {}).items()
    ]


def _gives(handler: dict[str, Any]) -> str:
    return f"{'->>' if handler['kind'] == 'stream' else '->'} {_type(handler['result'], handler['result'])}"


def _wrapped(text: str, width: int, indent: str = "", further: str | None = None) -> list[str]:
    return textwrap.wrap(
        clean(text),
        width,
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )


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
