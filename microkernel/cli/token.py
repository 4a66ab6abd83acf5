"""`mk token`: makes, narrows, shows and revokes signed tokens. Narrowing and showing need no node."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, print_table, wants_json, write
from microkernel.errors import Invalid
from microkernel.token import PREFIX, Block, blocks_of, identity_of, make_block, narrow

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run", "seconds_of"]

DAY = 86_400.0
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
LIFE = "30d"

COLUMNS = ("block", "id", "user", "allow", "deny", "publish", "subscribe", "top priority", "rate", "expires")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "token", help="make, narrow, show and revoke tokens", description=__doc__, parents=parents, allow_abbrev=False
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, told: str, work: Any) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=told, description=told, parents=parents, allow_abbrev=False)
        sub.set_defaults(run=run, work=work)
        return sub

    create = action("create", "make a token that permits what is named and no more", _create)
    create.add_argument("--user", required=True, metavar="NAME", help="whom it is for")
    _add_bounds(create, life=LIFE)
    narrowing = action("narrow", "make a token that permits less than another one; needs no node", _narrow)
    narrowing.add_argument("token", metavar="TOKEN", help="the one to narrow; '-' reads stdin")
    _add_bounds(narrowing, life="never")
    show = action("show", "what a token says of itself; needs no node, and tells not whether it is valid", _show)
    show.add_argument("token", metavar="TOKEN", help="'-' reads stdin")
    revoke = action("revoke", "end a token and all that were narrowed from it, at once", _revoke)
    revoke.add_argument("what", metavar="ID", help="of one of its blocks; or the token; '-' reads stdin")
    action("revoked", "list the tokens that are revoked", _revoked)
    action("rotate", "end all signed tokens at once; the node's own stays", _rotate)


def _add_bounds(parser: argparse.ArgumentParser, *, life: str) -> None:
    calls, subjects = "as 'kv.*' or 'kv.get'; repeatable", "as 'kv.*' or 'kv.>'; repeatable"
    parser.add_argument("--allow", action="append", metavar="CALLS", help=f"what may be called, {calls}")
    parser.add_argument(
        "--deny", action="append", metavar="CALLS", help=f"what may not be called all the same, {calls}"
    )
    parser.add_argument("--publish", action="append", metavar="SUBJECTS", help=f"what may be published, {subjects}")
    parser.add_argument("--subscribe", action="append", metavar="SUBJECTS", help=f"what may be heard, {subjects}")
    parser.add_argument("--top-priority", type=int, metavar="0-9", help="the most urgent priority of its calls")
    parser.add_argument("--rate", type=float, metavar="N", help="messages a second")
    parser.add_argument("--burst", type=int, metavar="N", help="messages at once (default: those of two seconds)")
    told = f"how long it is valid: 90s, 30m, 12h, 7d or never (default: {life})"
    parser.add_argument("--expires", default=life, metavar="TIME", help=told)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    return int(args.work(args))


def seconds_of(text: str) -> float | None:
    """`7d` in seconds, None for never. Raises `Invalid`."""
    if text == "never":
        return None
    fitting = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd])", text)
    if fitting is None or not float(fitting[1]):
        raise Invalid(f"'{text}' is no time", remedy="write it as 90s, 30m, 12h, 7d or never", field="expires")
    return float(fitting[1]) * UNITS[fitting[2]]


def _create(args: argparse.Namespace) -> int:
    fields = {**_bounds(args), "user": args.user, "expires_in": seconds_of(args.expires)}
    if not any(fields.get(name) for name in ("allow", "publish", "subscribe")):
        raise Invalid("this token would permit nothing", remedy="name what it permits, such as --allow 'inference.*'")

    async def work(system: System) -> int:
        own = os.environ.get("MICROKERNEL_TOKEN", "").strip()
        if own.startswith(PREFIX):  # what is made is on its authority; the node's own needs none
            fields["authority"] = own
        created = plain(await system.call("kernel.token_create", fields))
        if wants_json(args):
            print_json(created)
            return 0
        _print_token(created["token"])
        return 0

    return on_node(args, work)


def _narrow(args: argparse.Namespace) -> int:
    bounds, life = _bounds(args), seconds_of(args.expires)
    if life is not None:
        bounds["expires"] = time.time() + life
    if not bounds:
        raise Invalid("nothing is named that would narrow the token", remedy="--allow, --deny, --expires … do")
    if "rate" in bounds:
        bounds.setdefault("burst", max(1, round(2 * bounds["rate"])))
    token = narrow(_token(args.token), make_block(**bounds))
    if wants_json(args):
        block = blocks_of(token)[-1]
        print_json({"token": token, "id": block.id, "expires": identity_of(blocks_of(token)).expires})
    else:
        _print_token(token)
    return 0


def _show(args: argparse.Namespace) -> int:
    blocks = blocks_of(_token(args.token))
    together = identity_of(blocks)
    if wants_json(args):
        print_json({"blocks": blocks, "together": together})
        return 0
    rows = [(str(place), *_row(block, "-" if place else "nothing")) for place, block in enumerate(blocks)]
    if len(blocks) > 1:
        whole = Block(
            id=blocks[-1].id,
            allow=together.rights.allow,
            deny=together.rights.deny,
            publish=together.rights.publish,
            subscribe=together.rights.subscribe,
            top_priority=together.top_priority,
            rate=together.rate,
            burst=together.burst,
            expires=together.expires,
        )
        rows.append(("together", "", together.user, *_row(whole, "nothing")[2:]))
    print_table(COLUMNS, rows)
    return 0


def _revoke(args: argparse.Namespace) -> int:
    given = _token(args.what)
    field = {"token": given} if given.startswith(PREFIX) else {"id": given}

    async def work(system: System) -> int:
        revoked = plain(await system.call("kernel.token_revoke", field))
        if wants_json(args):
            print_json(revoked)
        else:
            write(clean(f"revoked {revoked['id']}"))
        return 0

    return on_node(args, work)


def _revoked(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        revoked = plain(await system.call("kernel.token_revoked"))
        if wants_json(args):
            print_json(revoked)
            return 0
        rows = [(each["id"], _time(each["at"]), each["by"], _time(each["expires"])) for each in revoked]
        print_table(("id", "revoked", "by", "would have expired"), rows)
        return 0

    return on_node(args, work)


def _rotate(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        await system.call("kernel.token_rotate")
        if wants_json(args):
            print_json({"rotated": True})
        else:
            write("all signed tokens are ended; the node's own stays")
        return 0

    return on_node(args, work)


def _bounds(args: argparse.Namespace) -> dict[str, Any]:
    """What was named of what a token can be bounded by."""
    names = ("allow", "deny", "publish", "subscribe", "top_priority", "rate", "burst")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "burst" in given and "rate" not in given:
        raise Invalid("--burst goes with --rate", field="burst")
    return given


def _token(given: str) -> str:
    """A token from the command line, where others on the machine can read it, or from stdin, where they cannot."""
    return (sys.stdin.read() if given == "-" else given).strip()


def _print_token(token: str) -> None:
    """The token alone on stdout, for `TOKEN=$(mk token create …)`; about it on stderr."""
    write(token)
    together = identity_of(blocks_of(token))
    expires = f"expires {_time(together.expires)}" if together.expires is not None else "never expires"
    sys.stderr.write(clean(f"id {together.token_ids[-1]}, for {together.user}, {expires}\n"))


def _row(block: Block, unnamed: str) -> tuple[str, ...]:
    """The cells of a block; `unnamed` stands for a list that it does not name."""
    rate = "" if block.rate is None else f"{block.rate:g}/s, {block.burst} at once"
    lists = [unnamed if each is None else " ".join(each) or "nothing" for each in (block.publish, block.subscribe)]
    return (
        block.id,
        block.user or "",
        unnamed if block.allow is None else " ".join(block.allow) or "nothing",
        " ".join(block.deny),
        *lists,
        "" if block.top_priority is None else str(block.top_priority),
        rate,
        _time(block.expires),
    )


def _time(moment: float | None) -> str:
    from microkernel.authentication import when

    return "" if moment is None else when(moment)
