"""What a node keeps of its membership over restarts: its cluster, its secret, its incarnation, and where others are.

The file is read before the node speaks to anybody, and written before a new incarnation is told: on a thread.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec

from microkernel import durable
from microkernel.errors import PreconditionFailed
from microkernel.message import Message

__all__ = ["OWN", "STANDING", "Standing", "StandingFile", "founded"]

OWN, STANDING = "own", "standing.json"  # the folder of a node with which a cluster begins, and the file in it
SECRET = 32  # bytes
MOST_SEEDS = 64


class Standing(Message, kw_only=True):
    """`secret` is shown by each node of the cluster to the others; `incarnation` is higher than any told before.

    `seeds` are the addresses of members, the latest known first. A node that `founded` the cluster lets others in.
    """

    node: str
    secret: str
    incarnation: int = 0
    seeds: tuple[str, ...] = ()
    founded: bool = False

    def __repr__(self) -> str:
        return f"Standing(node={self.node!r}, incarnation={self.incarnation}, …)"  # the secret is not for a log

    @property
    def mark(self) -> str:
        """A word for this node of this cluster, the same over its boots, which tells nothing of the secret."""
        return hashlib.blake2b(self.node.encode(), key=self.secret.encode()[:64], digest_size=6).hexdigest()


def founded(node: str) -> Standing:
    """That of a node with which a cluster begins."""
    return Standing(node=node, secret=secrets.token_urlsafe(SECRET), founded=True)


class StandingFile:
    """Where it is kept, mode 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, node: str) -> Standing | None:
        """What is kept; None where nothing is. Raises `PreconditionFailed` for what cannot be used."""
        remedy = f"delete {self.path}, and join the cluster again with a new join token"
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=Standing)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PreconditionFailed(f"cannot read {self.path}: {error.strerror}", remedy="check its owner") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PreconditionFailed(
                f"what is kept of this node's cluster is damaged: {error}", remedy=remedy
            ) from error
        if found.node != node:
            raise PreconditionFailed(
                f"this state folder is that of node '{found.node}', not of '{node}'",
                remedy=f'set node = "{found.node}" again, or boot on another folder',
            )
        return found

    def keep(self, standing: Standing) -> None:
        """Write it, durably. Raises `PreconditionFailed`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(self.path.parent, 0o700)  # noqa: PTH101 - as the state folder itself
            durable.replace(self.path, msgspec.json.encode(standing))
        except OSError as error:
            raise PreconditionFailed(f"cannot write {self.path}: {error.strerror}") from error

    @staticmethod
    def with_seeds(standing: Standing, addresses: list[str]) -> Standing:
        """With the addresses that are known now in front."""
        known = tuple(dict.fromkeys((*addresses, *standing.seeds)))[:MOST_SEEDS]
        return msgspec.structs.replace(standing, seeds=known)
