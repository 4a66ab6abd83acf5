"""How a node comes into a cluster: by an address and a join token or secret; afterwards it has what members have."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from microkernel import __version__
from microkernel.errors import Invalid, PreconditionFailed, Unavailable
from microkernel.message import Call
from microkernel.wire.node_link import NodeLink
from microkernel.wire.trust import Expected
from services.cluster.certificates.join_secret import JoinSecret
from services.cluster.certificates.join_token import JoinToken
from services.cluster.messages import Join, Joined
from services.cluster.protocol import PROTOCOL, PROTOCOL_MIN
from services.cluster.standing import Standing

if TYPE_CHECKING:
    from services.cluster.encryption import Encryption

__all__ = ["Place", "ask_to_join", "place_of"]

PATIENCE = 20.0  # seconds for the answer
_SCHEMES = {"": None, "http": False, "ws": False, "https": True, "wss": True}  # and whether it is encrypted


class Place(msgspec.Struct, frozen=True):
    """Where a node listens for others."""

    host: str
    port: int
    encrypted: bool

    @property
    def url(self) -> str:
        """The address of its websocket."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.encrypted else 'ws'}://{host}:{self.port}/mk"


def place_of(address: str) -> Place:
    """What `address` means (`https://10.0.0.1:7071`, `127.0.0.1:7071`). Raises `Invalid`."""
    wrong = Invalid(
        f"'{address[:128]}' is no address of a node to join", remedy="`mk nodes invite` shows it", field="join"
    )
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise wrong from error
    if not host or port is None or "@" in parts.netloc or parts.scheme not in _SCHEMES:
        raise wrong
    encrypted = _SCHEMES[parts.scheme]
    return Place(host, port, not is_local(host) if encrypted is None else encrypted)


def is_local(host: str) -> bool:
    """Whether only this machine answers at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def ask_to_join(
    addresses: tuple[str, ...], join: JoinToken | JoinSecret, node: str, folder: Path, wall: Callable[[], float]
) -> tuple[Standing, Encryption | None]:
    """Join the cluster that one of `addresses` belongs to. Raises why the last one of them did not let us in."""
    for number, address in enumerate(addresses, 1):
        try:
            return await _ask(place_of(address), join, node, folder, wall)
        except Exception:
            if number == len(addresses):
                raise
    raise Invalid("no address of a cluster was given", field="join")


async def _ask(
    place: Place, join: JoinToken | JoinSecret, node: str, folder: Path, wall: Callable[[], float]
) -> tuple[Standing, Encryption | None]:
    if isinstance(join, JoinSecret):
        if place.encrypted or not is_local(place.host):
            return await _ask_encrypted(place, join, node, folder, wall)
        return _standing(node, place, await _joined(place.url, join.token(), node, None, None)), None
    if join.fingerprint is not None:
        return await _ask_encrypted(place, join, node, folder, wall)
    if not is_local(place.host):
        raise PreconditionFailed(
            f"this join token is for nodes of one machine, and {place.host} is another one",
            remedy="boot the first node with --cluster HOST:PORT, and use a join token that it makes then",
        )
    joined = await _joined(place.url, join.token, node, None, None)
    return _standing(node, place, joined), None


async def _ask_encrypted(
    place: Place, join: JoinToken | JoinSecret, node: str, folder: Path, wall: Callable[[], float]
) -> tuple[Standing, Encryption]:
    from services.cluster import encryption  # noqa: PLC0415 - only where there is TLS: it brings a library in

    place = msgspec.structs.replace(place, encrypted=True)
    if isinstance(join, JoinSecret):
        token, expected = join.token(), await encryption.vouched_at(place.host, place.port, join)
    else:
        assert join.fingerprint is not None
        token, expected = join.token, await encryption.expected_at(place.host, place.port, join.fingerprint)
    key, request = await asyncio.to_thread(encryption.request_of, node)
    joined = await _joined(place.url, token, node, request, expected)
    if joined.certificate is None:
        raise PreconditionFailed("the cluster has made no certificate for this node")
    admitted = encryption.Encryption.admitted
    made = await asyncio.to_thread(admitted, folder, node, key, joined.certificate, now=wall())
    await asyncio.to_thread(made.refuse, *joined.removed, now=wall())
    return _standing(node, place, joined), made


async def _joined(url: str, token: str, node: str, request: str | None, expected: Expected | None) -> Joined:
    ask = Join(node=node, protocol=PROTOCOL, protocol_min=PROTOCOL_MIN, version=__version__, request=request)
    link = NodeLink(url, token, expected)
    try:
        async with asyncio.timeout(PATIENCE):
            await link.start()
            joined: Joined = await link.forward("cluster.join", ask, Call(caller="cluster"), Joined)
            return joined
    except TimeoutError as error:
        raise Unavailable(f"the node at {url} did not answer within {PATIENCE:g} s") from error
    finally:
        await link.aclose()


def _standing(node: str, place: Place, joined: Joined) -> Standing:
    seeds = tuple(dict.fromkeys((place.url, *joined.seeds)))
    return Standing(node=node, secret=joined.secret, seeds=seeds)
