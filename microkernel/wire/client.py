"""Connect to a node: find its address and token, and open a link to it."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from microkernel.errors import Invalid, PreconditionFailed, Unauthenticated, Unavailable
from microkernel.root import Root, default_root
from microkernel.wire.dial import BOOT
from microkernel.wire.inbox import Stream, Subscription
from microkernel.wire.record import Record
from microkernel.wire.sync_system import SyncStream, SyncSystem
from microkernel.wire.system import System, open_system
from microkernel.wire.trust import Trust

__all__ = [
    "connect",
    "connect_sync",
    "Record",
    "Stream",
    "Subscription",
    "SyncStream",
    "SyncSystem",
    "System",
]

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def connect(
    url: str | None = None,
    token: str | None = None,
    *,
    root: Path | None = None,
    cafile: str | Path | None = None,
    reconnect: bool = True,
) -> AbstractAsyncContextManager[System]:
    """A link to a node, for `async with`. A lost one is replaced by itself, unless `reconnect` is False.

    `url` (`http://127.0.0.1:7070`) and `token` come from the arguments, from `MICROKERNEL_URL` and
    `MICROKERNEL_TOKEN`, or from the state folder of the node that runs here (`root`, `MICROKERNEL_ROOT` or
    `~/.microkernel`). The folder's token is only sent to this machine, and
    only while a node runs on the folder; it is looked up again for each new link. At an `https` address, the
    certificate has to be from an authority of this system, or of the file `cafile` (PEM), or the one of the node that
    runs here. Raises `Unavailable`, at once where no node is, `Unauthenticated`, and `Invalid` for what is no address.
    """

    def look_up() -> tuple[str, str, Trust | None]:
        address, found = find_node(url, token, root=root)
        return address, found, find_trust(address, cafile, root=root)

    async def find() -> tuple[str, str, Trust | None]:
        return await asyncio.to_thread(look_up)  # it reads files, which may be slow to read by then

    address, found, trust = look_up()
    return open_system(address, found, trust=trust, reconnect=reconnect, find=find)


def connect_sync(
    url: str | None = None,
    token: str | None = None,
    *,
    root: Path | None = None,
    cafile: str | Path | None = None,
    reconnect: bool = True,
) -> SyncSystem:
    """A link for scripts without a loop: connected at once, closed by `close` or the end of a `with`."""
    return SyncSystem(connect(url, token, root=root, cafile=cafile, reconnect=reconnect))


def find_trust(address: str, cafile: str | Path | None = None, *, root: Path | None = None) -> Trust | None:
    """Whose certificate is believed at `address`: those of `cafile`, or of the node that runs here if it is there."""
    if cafile is not None:
        return Trust(str(cafile))
    if not address.startswith("wss:"):
        return None
    node = Root(default_root() if root is None else root).running_node()
    own = None if node is None else node.get("certificate")
    if own is None or node is None or _websocket(str(node["url"])) != address:
        return None
    return Trust(str(own), pinned=True)


def find_node(url: str | None = None, token: str | None = None, *, root: Path | None = None) -> tuple[str, str]:
    """The websocket's address and the token of the node that is meant; see `connect`."""
    folder = Root(default_root() if root is None else root)
    address = url or os.environ.get("MICROKERNEL_URL")
    if address is None:
        node = folder.running_node()
        if node is None:
            raise Unavailable(f"no node is running at {folder.path}", remedy=BOOT, may_have_run=False)
        address = str(node["url"])
    address = _websocket(address)
    token = token or os.environ.get("MICROKERNEL_TOKEN", "").strip() or _stored_token(folder, address)
    return address, token


def _websocket(address: str) -> str:
    if "://" not in address:
        address = f"http://{address}"
    try:
        parts = urlsplit(address)
        scheme, host = _SCHEMES[parts.scheme], parts.hostname
        _ = parts.port
    except (KeyError, ValueError) as error:
        raise Invalid(f"'{address}' is no address of a node", remedy="it looks like http://127.0.0.1:7070") from error
    if not host or "@" in parts.netloc:
        raise Invalid(f"'{address}' is no address of a node", remedy="it looks like http://127.0.0.1:7070")
    path = parts.path if parts.path.rstrip("/") else "/mk"
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def _stored_token(folder: Root, address: str) -> str:
    if urlsplit(address).hostname not in _LOOPBACK:
        raise Unauthenticated(
            f"a token is needed for {address}",
            remedy="give token=… or set MICROKERNEL_TOKEN; ask who runs that node",
        )
    try:
        token = folder.token_path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise Unauthenticated(
            f"no token is stored in {folder.path}", remedy="give token=… or set MICROKERNEL_TOKEN"
        ) from error
    except (OSError, UnicodeError) as error:
        raise PreconditionFailed(f"cannot read the token in {folder.token_path}: {error}") from error
    if not folder.is_taken():  # whoever listens there by now is not the node that the token is for
        raise Unavailable(
            f"no node is running at {folder.path}, so its token is not sent to {address}",
            remedy=f"give token=…, or set MICROKERNEL_TOKEN, or {BOOT}",
            may_have_run=False,
        )
    return token
