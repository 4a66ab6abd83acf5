"""What `mk boot` is told of a cluster: the nodes to start beside this one, or the cluster to join."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
from datetime import date, time
from pathlib import Path
from typing import Any

import msgspec

from microkernel import durable
from microkernel.config import Config
from microkernel.errors import Invalid, PreconditionFailed

__all__ = ["TOKEN", "add_arguments", "clustered"]

TOKEN = "MICROKERNEL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
MOST_NODES = 64
COMMON = ("certificate_hours", "drain_seconds")  # settings of the cluster that are those of all nodes of a machine
# What a node takes of a machine that it has for itself.
SHARES = (("memory", "share", 0.8), ("inference", "cache_share", 0.5))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the arguments into the parser of `boot`."""
    parser.add_argument(
        "--nodes", type=_count, metavar="K", help="start K worker nodes beside this one, on this machine"
    )
    parser.add_argument(
        "--join", action="append", default=[], metavar="URL", help="join the cluster of a node; `mk nodes invite` tells"
    )
    parser.add_argument("--token", metavar="TOKEN", help=f"the join token, needed once (or {TOKEN})")
    parser.add_argument(
        "--join-secret",
        type=Path,
        metavar="FILE",
        help="a random line that the first node and those that join it share",
    )
    parser.add_argument(
        "--cluster", metavar="HOST[:PORT]", help="let other nodes come to this address (default: this machine only)"
    )
    parser.add_argument(
        "--advertise", metavar="HOST[:PORT]", help="where other nodes reach this one (default: where it listens)"
    )
    parser.add_argument("--node", metavar="NAME", help="the name of this node (default: node0, or made of the host's)")
    parser.add_argument(
        "--until-eof", action="store_true", help="end when standard input does, as with the process that holds it"
    )


def clustered(args: argparse.Namespace, config: Config, root: Path) -> Config:
    """The configuration with what the command line says of a cluster on top. Raises `Invalid`."""
    if args.until_eof:  # a worker: what its node's file says of the cluster is said of that node
        section = {key: value for key, value in config.services.get("cluster", {}).items() if key in COMMON}
        config = msgspec.structs.replace(config, services={**config.services, "cluster": section})
    settings: dict[str, Any] = {}
    if args.cluster is not None:
        host, port = _address(args.cluster, "--cluster", "to listen on")
        settings |= {"host": host} | ({} if port is None else {"port": port})
    if args.advertise is not None:
        _address(args.advertise, "--advertise", "that others can reach")
        settings |= {"advertise": args.advertise}
    if args.join_secret is not None:
        settings |= {"join_secret": str(args.join_secret.expanduser().absolute())}
    told = config.services.get("cluster", {})
    named = tuple(args.join) or _texts(told.get("join"))
    joins = _others(named, settings.get("advertise", told.get("advertise")), settings.get("port", told.get("port")))
    if named:
        settings |= {"join": joins}
    if joins:
        token = args.token or os.environ.get(TOKEN, "").strip()
        settings |= {"token": token} if token else {}
    elif args.token is not None and not named:
        raise Invalid("--token is the join token of a cluster", remedy="say which one with --join URL")
    if told.get("launchers"):
        settings |= {"launched": told.get("launched") or _elsewhere(config)}
    count = args.nodes or _number(told.get("nodes"))
    if count:
        config = _shared(config, 1 + count)
        listens = {**told, **settings}
        settings |= {"nodes": count, "worker": told.get("worker") or _worker(args, config, root, listens)}
    if settings:
        config = config.with_settings({"cluster": settings})
    node = args.node or config.node
    if joins and args.node is None and node == Config().node:
        node = _own_name(root)
    return msgspec.structs.replace(config, node=node, joins=bool(joins))


def _shared(config: Config, nodes: int) -> Config:
    """That of nodes which share one machine: each has its part of the memory, where nobody said how much."""
    return config.with_settings(
        {
            service: {key: round(whole / nodes, 4), **config.services.get(service, {})}
            for service, key, whole in SHARES
            if service not in config.disable
        }
    )


def _others(named: tuple[str, ...], advertise: object, port: object) -> tuple[str, ...]:
    """The addresses of others to join. None where this node is the first that is named: the cluster begins with it.

    So all machines of a cluster can be told the same. `advertise` and `port` are where others reach this node.
    """
    if not isinstance(advertise, str):
        return named
    own = _place(advertise, port)
    places = [_place(each, "none") for each in named]
    if own in places[:1]:
        return ()
    return tuple(each for each, place in zip(named, places, strict=True) if place != own)


def _place(address: str, port: object) -> tuple[str, object]:
    """Host and port of `https://HOST:PORT/…`; `port` where none is named."""
    bare = re.sub(r"^[a-z]+://|/.*$", "", address.strip().lower())
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", bare)
    return (bare, port) if found is None else (found[1], int(found[2]))


def _number(value: object) -> int:
    """A number of nodes; 0 for anything else, which the cluster's own settings refuse."""
    return value if type(value) is int and value > 0 else 0


def _texts(value: object) -> tuple[str, ...]:
    """A list of texts; none for anything else, which the cluster's own settings refuse."""
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return tuple(value)
    return ()


def _worker(args: argparse.Namespace, config: Config, root: Path, listens: dict[str, Any]) -> tuple[str, ...]:
    """The arguments of a worker node that are those of this one: its settings, its model, its services.

    It `listens` where this one does, on a port of its own.
    """
    words: list[str] = []
    for option, key in (("--cluster", "host"), ("--advertise", "advertise")):
        if isinstance(address := listens.get(key), str):
            host = address if key == "host" else str(_place(address, None)[0])
            words += [option, f"[{host}]" if ":" in host and not host.startswith("[") else host]
    if config.source is not None:
        words += ["--config", str(Path(config.source).absolute())]
    if args.model is not None:
        model = Path(args.model).expanduser()
        words += ["--model", str(model.absolute()) if model.exists() else args.model]
    for file in args.service:
        words += ["--service", str(file.expanduser().absolute())]
    for service, key, _ in SHARES:
        if service not in config.disable:
            words += ["--set", f"services.{service}.{key}={config.services[service][key]}"]
    for setting in args.set:
        words += ["--set", setting]
    if "root" not in config.services.get("models", {}):  # what is here need not be fetched again
        words += ["--set", f'services.models.root="{root / "models"}"']
    for name in (*config.disable, "gateway"):
        words += ["--without", name]
    return tuple(words)


def _elsewhere(config: Config) -> str:
    """The configuration of a node of this cluster on another machine, as TOML: this one's, but what is its own."""
    shared = msgspec.structs.replace(config, disable=tuple(dict.fromkeys((*config.disable, "gateway"))))
    own = ("node", "joins", "plugins", "source", "text", "services")
    values = msgspec.to_builtins(shared)
    default = msgspec.to_builtins(Config())
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in own and value != default[key]]
    for name, section in config.services.items():
        if name not in {"cluster", "gateway"}:
            lines += [f"services.{_toml(name)}.{_toml(key)} = {_toml(value)}" for key, value in section.items()]
    return "".join(f"{line}\n" for line in lines)


def _toml(value: Any) -> str:
    """A value as one line of TOML, whose text, numbers and truth are written as those of JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)  # JSON knows neither inf nor nan
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")  # which JSON leaves as it is


def _own_name(root: Path) -> str:
    """The name of a node that joins and was given none: of its host and some letters, kept in the state folder."""
    path = root / "name"
    try:
        if path.exists():
            return path.read_text(encoding="ascii").strip()
        host = re.sub("[^a-z0-9]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")[:40] or "node"
        name = f"{host}-{secrets.token_hex(2)}"
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.replace(path, f"{name}\n".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise PreconditionFailed(
            f"cannot keep the name of this node in {path}: {error}", remedy="give --node"
        ) from error
    return name


def _address(text: str, field: str, what: str) -> tuple[str, int | None]:
    """`HOST`, `HOST:PORT` or `[HOST]:PORT`."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text)
    if found is None or (found[3] is not None and int(found[3]) > 65535):
        raise Invalid(f"'{text[:80]}' is no address {what}", remedy="it looks like 10.0.0.1:7071", field=field)
    return found[1] or found[2], None if found[3] is None else int(found[3])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_NODES:
        raise argparse.ArgumentTypeError(f"it is a number from 0 to {MOST_NODES}")
    return int(text)
