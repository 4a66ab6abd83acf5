"""The section `[services.devices.drivers.upstream]` of the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from microkernel.errors import Invalid
from microkernel.message import Message

__all__ = ["DRIVER", "DialectName", "ServerSettings", "UpstreamSettings", "checked"]

DRIVER = "upstream"
MOST_SERVERS = 256
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # it is part of subjects, and stands before a model's name
SECTION = "services.devices.drivers.upstream.servers"

DialectName = Literal["auto", "openai", "vllm", "sglang", "llama.cpp", "llama-cpp-python", "ollama", "microkernel"]
Count = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class ServerSettings(Message, kw_only=True, forbid_unknown_fields=True):
    """One server: its `name` as a device, and the `url` below which it has `/models` and `/chat/completions`.

    `key_env` names the variable that its key is in, `key_file` the file. `models` are those to use, by default all that
    it lists. `dialect` says what it knows beside OpenAI's own fields; "auto" tells by its list of models. It has
    `concurrency` requests at a time, and `queue` more may wait. Of several with the same model, one of twice the
    `weight` has twice the requests. A connection has to be there in `connect_seconds`, the first text in
    `first_seconds`, each next one in `idle_seconds`, and the whole answer in `total_seconds`. It is asked how it is
    every `look_seconds`.
    """

    name: str
    url: str
    key_env: str | None = None
    key_file: str | None = None
    models: tuple[str, ...] = ()
    dialect: DialectName = "auto"
    concurrency: Count = 64
    queue: Count = 256
    weight: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    connect_seconds: Seconds = 5.0
    first_seconds: Seconds = 300.0
    idle_seconds: Seconds = 60.0
    total_seconds: Seconds = 3600.0
    look_seconds: Seconds = 5.0


class UpstreamSettings(Message, kw_only=True, forbid_unknown_fields=True):
    """The `servers` to use; none is contacted that is not named here."""

    servers: tuple[ServerSettings, ...] = ()


def checked(settings: UpstreamSettings) -> UpstreamSettings:
    """The same. Raises `Invalid` that names the key of what no type can say."""
    if len(settings.servers) > MOST_SERVERS:
        raise Invalid(f"{SECTION}: there are {len(settings.servers)}, at most {MOST_SERVERS}", field=SECTION)
    names: set[str] = set()
    for number, server in enumerate(settings.servers):
        where = f"{SECTION}[{number}]"
        if not NAME.fullmatch(server.name) or server.name == DRIVER:
            raise _wrong(where, "name", f"{server.name[:80]!r} is no name for a device: letters, digits, '-' and '_'")
        if server.name in names:
            raise _wrong(where, "name", f"there are two servers '{server.name}'")
        names.add(server.name)
        _check_url(server.url, where)
        if server.key_env is not None and server.key_file is not None:
            raise _wrong(where, "key_file", "there is a key_env too: give one of them")
    return settings


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _wrong(where, "url", f"it is no URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise _wrong(where, "url", "a key does not belong into a URL: use key_env or key_file")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise _wrong(where, "url", f"it is no http or https address: {url[:200]!r}")
    if parts.query or parts.fragment or any(character.isspace() or ord(character) < 32 for character in url):
        raise _wrong(where, "url", "it is the address below which the API is, such as http://127.0.0.1:8000/v1")


def _wrong(where: str, key: str, why: str) -> Invalid:
    return Invalid(f"{where}.{key}: {why}", field=f"{where}.{key}")
