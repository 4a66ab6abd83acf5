"""The section `[services.cluster.launchers.ray]` of the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from microkernel.errors import Invalid
from microkernel.message import Message

__all__ = ["RaySettings", "bridge_environment", "checked", "place_of"]

SECTION = "services.cluster.launchers.ray"
# Variables that are this node's, or say how Ray knows us: what the settings say is all that holds.
OWN = ("MICROKERNEL_TOKEN", "MICROKERNEL_JOIN_TOKEN", "MICROKERNEL_ROOT", "MICROKERNEL_URL")
RAY_TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class RaySettings(Message, kw_only=True, forbid_unknown_fields=True):
    """The Ray cluster at `address`: "auto" is the one of this machine, `ray://HOST:10001` goes through Ray's client.

    `token_file` or `token_env` (a variable) have Ray's own token; with neither, `RAY_AUTH_MODE` decides as everywhere,
    and where that is not set no token is shown. Each node asks Ray for `num_cpus`, `num_gpus` and `resources`, and a
    machine that has less gets none. `runtime_env` is Ray's, for machines that lack our packages. Over there, nodes keep
    what is theirs below `root`, and listen on `port` where they are reached from other machines; 0 takes any. A node
    whose launcher has not been heard of for `orphan_seconds` ends.
    """

    address: str
    token_file: str | None = None
    token_env: str | None = None
    num_cpus: Amount = 1.0
    num_gpus: Amount = 0.0
    resources: dict[str, Amount] = {}
    runtime_env: dict[str, Any] = {}
    root: str = "~/.microkernel/ray"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    orphan_seconds: Annotated[float, msgspec.Meta(ge=60, le=30 * 86400)] = 600.0


def checked(settings: RaySettings) -> RaySettings:
    """The same. Raises `Invalid` that names the key of what no type can say."""
    if settings.address != "auto":
        place_of(settings.address)
    if settings.token_env is not None and settings.token_file is not None:
        raise _wrong("token_file", "there is a token_env too: give one of them")
    if settings.resources.keys() & {"CPU", "GPU"}:
        raise _wrong("resources", "CPU and GPU are num_cpus and num_gpus")
    return settings


def place_of(address: str) -> tuple[str, int]:
    """Host and port of a cluster that is not found by itself. Raises `Invalid`."""
    wrong = _wrong("address", f"it is 'auto', HOST:PORT or ray://HOST:PORT, and not '{address[:128]}'")
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise wrong from error
    if not host or not port or parts.scheme not in {"", "ray"} or "@" in parts.netloc or parts.path not in {"", "/"}:
        raise wrong
    return host, port


def bridge_environment(settings: RaySettings, ours: Mapping[str, str]) -> dict[str, str]:
    """The variables of the process that speaks with Ray. Raises `Invalid` where the token is not to be had."""
    environment = {key: value for key, value in ours.items() if key not in OWN}
    if settings.token_file is None and settings.token_env is None:
        # Without this, Ray shows whatever is in ~/.ray/auth_token to whoever answers at the address.
        environment.setdefault("RAY_AUTH_MODE", "disabled")
        return environment
    for name in RAY_TOKEN:
        environment.pop(name, None)
    environment["RAY_AUTH_MODE"] = "token"
    if settings.token_env is not None:
        token = ours.get(settings.token_env, "").strip()
        if not token:
            raise _wrong("token_env", f"the variable {settings.token_env} is not set")
        environment["RAY_AUTH_TOKEN"] = token
    else:
        path = Path(str(settings.token_file)).expanduser()
        if not os.access(path, os.R_OK):
            raise _wrong("token_file", f"{path} cannot be read")
        environment["RAY_AUTH_TOKEN_PATH"] = str(path)
    return environment


def _wrong(key: str, why: str) -> Invalid:
    return Invalid(f"{SECTION}.{key}: {why}", field=f"{SECTION}.{key}")
