"""Whom a cluster lets in no more, although the certificate is still valid: removed nodes, and single serial numbers.

Certificates end by themselves within days. A refusal bridges the time until then, and is forgotten after it. It is of
all certificates of a node that were made up to a moment: one that is made later, because the node was let
in again, is good. Both times are those of the authority's clock, so no two clocks are compared.

A refusal holds when it is in memory, before it is on the disk. It is a message, for the nodes to tell each other.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import msgspec

from microkernel import durable
from microkernel.errors import Invalid, PreconditionFailed
from microkernel.message import Message, convert
from services.cluster.certificates.certificate import LONGEST_LIFETIME
from services.cluster.certificates.contexts import Peer
from services.cluster.certificates.names import check_node

__all__ = ["MOST_REFUSALS", "Refusal", "Refusals"]

MOST_REFUSALS = 4096  # some 100 bytes each
LARGEST_FILE = 1 << 20  # bytes
GRACE = 86_400.0  # seconds that a refusal is kept longer, for clocks that are turned back
_SERIAL = r"^[1-9a-f][0-9a-f]{0,39}$"  # RFC 5280 allows 20 bytes


class Refusal(Message, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All certificates of `node` that were made until `at` are refused, or the one with `serial` (hexadecimal).

    `at` is Unix time in seconds by the authority's clock.
    """

    at: float
    node: str | None = None
    serial: Annotated[str, msgspec.Meta(pattern=_SERIAL)] | None = None

    def __post_init__(self) -> None:
        if (self.node is None) == (self.serial is None):
            raise ValueError("a refusal is of a node or of a serial number")
        if self.node is not None:
            try:
                check_node(self.node)
            except Invalid as error:
                raise ValueError(error.message) from error


class Refusals:
    """All refusals that a node knows, in a file. Its methods may be called from any thread; those that add block."""

    def __init__(self, path: Path, *, now: float) -> None:
        """Read the file; `now` is Unix time. Raises `PreconditionFailed` for one that cannot be read or trusted."""
        self._path = path
        self._writing = threading.Lock()
        self._nodes: dict[str, Refusal] = {}
        self._serials: dict[str, Refusal] = {}
        for refusal in _read(path):
            self._take(refusal)
        self._forget_old(now)

    def all(self) -> tuple[Refusal, ...]:
        """Every refusal that is kept."""
        with self._writing:
            return (*self._nodes.values(), *self._serials.values())

    def covers(self, peer: Peer) -> bool:
        """Whether the certificate of `peer` is refused. Looks at memory only."""
        if peer.serial in self._serials:
            return True
        refusal = self._nodes.get(peer.node)
        return refusal is not None and peer.issued <= refusal.at

    def refuse(self, node: str, *, now: float) -> Refusal:
        """Refuse all certificates that `node` has by `now`, on the authority's clock.

        Raises as `add` does, and `Invalid` for what is no name of a node.
        """
        refusal = Refusal(node=check_node(node), at=now)
        self.add(refusal, now=now)
        return refusal

    def refuse_serial(self, serial: str, *, now: float) -> Refusal:
        """Refuse one certificate. Raises as `add` does, and `Invalid` for what is no serial number."""
        refusal = convert({"serial": serial, "at": now}, Refusal, what="a refusal")
        self.add(refusal, now=now)
        return refusal

    def add(self, *refusals: Refusal, now: float) -> None:
        """Take over refusals, those that the authority's node tells; returns when they are on the disk.

        Raises `PreconditionFailed` when no more can be kept or written.
        """
        with self._writing:
            self._forget_old(now)
            known = self._nodes.keys() | self._serials.keys()
            fresh = {refusal.node or refusal.serial for refusal in refusals} - known
            if len(known) + len(fresh) > MOST_REFUSALS:
                raise PreconditionFailed(
                    f"{len(known)} nodes and certificates are refused, and no more can be kept",
                    remedy=f"the oldest are forgotten within {(LONGEST_LIFETIME + GRACE) / 86_400:g} days",
                )
            for refusal in refusals:
                self._take(refusal)
            self._write()

    def _take(self, refusal: Refusal) -> None:
        """What is known of the same node already gives way to what is later."""
        if refusal.serial is not None:
            self._serials.setdefault(refusal.serial, refusal)
        elif refusal.node is not None:
            known = self._nodes.get(refusal.node)
            if known is None or known.at < refusal.at:
                self._nodes[refusal.node] = refusal

    def _forget_old(self, now: float) -> None:
        for kept in (self._nodes, self._serials):
            over = [name for name, each in kept.items() if each.at + LONGEST_LIFETIME + GRACE < now]
            for name in over:
                del kept[name]

    def _write(self) -> None:
        body = msgspec.json.encode([*self._nodes.values(), *self._serials.values()])
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.replace(self._path, body)
        except OSError as error:
            raise PreconditionFailed(
                f"who is refused is in force, but not on the disk, in {self._path} ({error.strerror}):"
                " a restart undoes it",
                remedy="make room there, and do it once more",
            ) from error


def _read(path: Path) -> list[Refusal]:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PreconditionFailed(
            f"cannot read {path}, which says whose certificates are refused: {error.strerror}",
            remedy="check its owner and mode",
        ) from error
    try:
        return msgspec.json.decode(raw, type=list[Refusal])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PreconditionFailed(
            f"{path} is damaged, so a node that was removed might come back: {error}",
            remedy=f"delete it, and boot after the last certificate has ended: {LONGEST_LIFETIME / 86_400:g} days",
        ) from error
