"""The one configuration: a typed TOML file; its errors name the key and the line.

Values given on the command line go over those of the file. Sections of services (`[services.<name>]`) are checked
against the service's own `Settings` when it is loaded, because only then its keys are known.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from microkernel.balance import MOST_INSTANCES
from microkernel.errors import Invalid
from microkernel.message import Message
from microkernel.rings import RingLimits
from microkernel.service import MOST_REPLICAS, Isolation, Placement
from microkernel.supervisor import Strategy

__all__ = [
    "Config", "Supervision", "instances_of", "isolation_of", "place", "placement_of", "read_config", "replicas_of",
    "section_of", "settings_of",
]  # fmt: skip

KERNEL = "kernel"  # the service that is the node itself

T = TypeVar("T", bound=Message)


class Supervision(Message, forbid_unknown_fields=True):
    """How crashed services are restarted; `period` in seconds."""

    strategy: Strategy = Strategy.REST_FOR_ONE
    intensity: int = 3
    period: float = 30.0


class Config(Message, forbid_unknown_fields=True):
    """Everything that can be set. `node` names this node; `disable` lists services not to start; `rings` are the events
    to keep for replay. The loop may stand still for `lag_threshold` seconds before that is told; 0 watches nothing.
    `placement` and `replicas` say which nodes of a cluster have a service; a node that `joins` one leaves those to
    others that have a home.
    """

    node: str = "node0"
    log_level: str = "info"
    lag_threshold: Annotated[float, msgspec.Meta(ge=0)] = 0.05
    plugins: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    isolation: dict[str, Isolation] = {}
    instances: dict[str, Annotated[int, msgspec.Meta(ge=1, le=MOST_INSTANCES)]] = {}
    placement: dict[str, Placement] = {}
    replicas: dict[str, Annotated[int, msgspec.Meta(ge=0, le=MOST_REPLICAS)]] = {}
    joins: bool = False
    supervision: Supervision = Supervision()
    rings: tuple[RingLimits, ...] = ()
    services: dict[str, dict[str, Any]] = {}
    source: str | None = None
    text: str = ""

    def with_settings(self, over: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with some settings of services replaced."""
        services = {name: dict(section) for name, section in self.services.items()}
        for name, section in over.items():
            services.setdefault(name, {}).update(section)
        return msgspec.structs.replace(self, services=services)


def read_config(path: Path | None, over: Sequence[str] = ()) -> Config:
    """The file's configuration, the defaults for None, with single settings over it (`services.gateway.port=0`).

    Raises `Invalid` with file, line and key.
    """
    values, text = ({}, "") if path is None else _read(path)
    for setting in over:
        _set(values, setting)
    config = _convert(values, Config, "settings" if path is None else str(path), text, ())
    return msgspec.structs.replace(config, source=None if path is None else str(path), text=text)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise Invalid(f"there is no config file {path}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path}: not TOML: {error}") from error
    for reserved in ("source", "text"):
        if reserved in values:
            raise _unknown(path.name, text, (reserved,), Config)
    return values, text


def _set(values: dict[str, Any], setting: str) -> None:
    """Put one setting, written as a line of TOML, over `values`; a value that is no TOML is taken as text."""
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise Invalid(f"'{setting[:80]}' is no setting", remedy="write KEY=VALUE, such as services.gateway.port=0")
    try:
        found = tomllib.loads(f"{key}={value}")
    except tomllib.TOMLDecodeError:
        try:
            found = tomllib.loads(f"{key}={msgspec.json.encode(value).decode()}")
        except tomllib.TOMLDecodeError as error:
            raise Invalid(f"'{setting[:80]}' is no setting: {error}", remedy="write it as in the TOML file") from error
    if found.keys() & {"source", "text"}:
        raise Invalid(f"'{key}' cannot be set")
    _merge(values, found)


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def settings_of(config: Config, name: str, kind: type[T]) -> T:
    """The settings of service `name` as its own type. Raises `Invalid` with file, line and key."""
    where = config.source or "settings"
    return _convert(config.services.get(name, {}), kind, where, config.text, ("services", name))


def section_of(values: Mapping[str, Any], kind: type[T], section: tuple[str, ...]) -> T:
    """A section within a service's section as its own type, which only that service knows; `section` is its path.

    Raises `Invalid` with the key.
    """
    return _convert(values, kind, "settings", "", section)


def isolation_of(config: Config, name: str, kind: Any) -> Isolation:
    """Where service `name` runs: the configuration goes over the class. The kernel's own service is always inline."""
    if name == KERNEL:
        return Isolation.INLINE
    return Isolation(config.isolation.get(name) or kind.isolation)


def instances_of(config: Config, name: str, kind: Any) -> int:
    """How many instances service `name` has: the configuration goes over the class. The kernel's own is always one."""
    return 1 if name == KERNEL else config.instances.get(name, kind.instances)


def placement_of(config: Config, name: str, kind: Any) -> Placement:
    """Which nodes have service `name`: the configuration goes over the class. The kernel's own is each node's."""
    return Placement.NODE if name == KERNEL else Placement(config.placement.get(name) or kind.placement)


def replicas_of(config: Config, name: str, kind: Any) -> int:
    """On how many nodes the cluster keeps service `name`; 0 leaves it where it is."""
    return 0 if name == KERNEL else config.replicas.get(name, kind.replicas)


def place(config: Config, keys: tuple[str, ...]) -> str:
    """Where `keys` are set, as an error names it: file and line."""
    return _place(config.source or "settings", config.text, keys)


def _convert(values: Mapping[str, Any], kind: type[T], where: str, text: str, section: tuple[str, ...]) -> T:
    known = [field.encode_name for field in msgspec.structs.fields(kind) if field.name not in {"source", "text"}]
    for key in values:
        if key not in known:
            raise _unknown(where, text, (*section, key), kind)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$")
        keys = (*section, *re.findall(r"[\w-]+", path.rstrip("`").replace("[...]", "")))
        raise Invalid(f"{_place(where, text, keys)}: {'.'.join(keys)}: {sentence}", field=".".join(keys)) from error


def _unknown(where: str, text: str, keys: tuple[str, ...], kind: type[Any]) -> Invalid:
    known = [field.encode_name for field in msgspec.structs.fields(kind) if field.name not in {"source", "text"}]
    near = difflib.get_close_matches(keys[-1], known, n=1)
    remedy = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known) or 'none'}"
    return Invalid(f"{_place(where, text, keys)}: unknown key '{'.'.join(keys)}'", remedy=remedy, field=".".join(keys))


def _place(where: str, text: str, keys: tuple[str, ...]) -> str:
    line = line_of(text, keys)
    return f"{where}, line {line}" if line else where


def line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line, from 1, on which TOML `text` sets `keys`; that of its table where the key itself is not found."""
    table: tuple[str, ...] = ()
    nearest: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            table = _keys(header[1])
            if table == keys[: len(table)]:
                nearest = number
            continue
        assignment = re.match(r"\s*([\w\-.\"' ]+?)\s*=", line)
        if assignment:
            path = (*table, *_keys(assignment[1]))
            if path == keys:
                return number
            if path == keys[: len(path)]:
                nearest = number
    return nearest


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
