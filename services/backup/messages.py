"""What the backup service answers: archives that are made, checked and taken apart."""

from __future__ import annotations

from typing import Annotated

import msgspec

from microkernel.message import Message
from microkernel.portable import EntryPiece

__all__ = [
    "ArchivePiece",
    "BackupSummary",
    "CheckArchive",
    "CreateBackup",
    "KeepReplica",
    "ListReplicas",
    "NodeOfReplica",
    "NodeReplica",
    "PartSummary",
    "Replica",
    "ReplicaAnswer",
    "ReplicaPieces",
    "RestoreBackup",
    "RestoreProgress",
]


_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]
_Node = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class CreateBackup(Message, kw_only=True):
    """Make an archive of all that this node keeps. `models` takes weights along, `secrets` tokens and their key.

    `without` are services that are left out. With `of`, it is made of the newest replica that the nodes of the cluster
    keep of that one, which may be gone; it has neither weights nor secrets.
    """

    models: bool = False
    secrets: bool = False
    without: tuple[_Name, ...] = ()
    of: _Node | None = None


class PartSummary(Message, kw_only=True):
    """What is there of one service."""

    name: str
    entries: int = 0
    bytes: int = 0


class BackupSummary(Message, kw_only=True):
    """What an archive has. `at` is Unix time in seconds, `archive_bytes` how long the file is.

    `left_out` are services with why, `notes` what else is missing.
    """

    at: int
    node: str
    made_by: str
    parts: tuple[PartSummary, ...]
    entries: int
    bytes: int
    archive_bytes: int
    models: bool
    secrets: bool
    left_out: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class ArchivePiece(Message, kw_only=True):
    """The next bytes of an archive, which `part` is being written; the last one has the `summary` and no bytes."""

    part: str = ""
    content: bytes = b""
    summary: BackupSummary | None = None


class CheckArchive(Message):
    """Which archive to read, on the node's disk."""

    path: str


class RestoreBackup(Message, kw_only=True):
    """Have the services of a node that is being restored take in what an archive has of them.

    `without` are parts that are left out.
    """

    path: str
    without: tuple[str, ...] = ()


class RestoreProgress(Message, kw_only=True):
    """How it is coming along: `stage` is checking, checked, taking in or done, `done_bytes` are of the file.

    With `checked` and `done` comes the `summary` of the archive, and with `done` `notes` of what is not as it was.
    """

    stage: str
    part: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    summary: BackupSummary | None = None
    notes: tuple[str, ...] = ()


class Replica(Message, kw_only=True):
    """What one node has of another one, as that was `at` (Unix time in seconds, by its own clock)."""

    node: str
    at: int
    made_by: str
    parts: tuple[PartSummary, ...]
    left_out: dict[str, str] = {}


class NodeReplica(Message, kw_only=True):
    """A replica and the node that keeps it, whose disk it takes `disk_bytes` of. It came `age` seconds ago."""

    kept_by: str
    age: float
    disk_bytes: int
    replica: Replica


class ListReplicas(Message):
    """Which replicas does this node keep; with `everywhere`, which do all nodes of the cluster?"""

    everywhere: bool = False


class NodeOfReplica(Message):
    """Of which node."""

    node: _Node


class KeepReplica(Message, kw_only=True):
    """Keep what the calling node has: the parts follow one another, each as its service exports it."""

    at: Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
    made_by: Annotated[str, msgspec.Meta(max_length=64)]
    parts: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=256)]
    left_out: Annotated[dict[_Name, Annotated[str, msgspec.Meta(max_length=1024)]], msgspec.Meta(max_length=256)] = {}


class ReplicaPieces(Message):
    """The next pieces of a part, about a MiB; those that are `known` come without content."""

    part: _Name
    pieces: Annotated[tuple[EntryPiece, ...], msgspec.Meta(max_length=1024)]


class ReplicaAnswer(Message, kw_only=True):
    """First the digests of what is kept already, 16 bytes each, until `begins`; at the end `kept`, when it is safe."""

    known: bytes = b""
    begins: bool = False
    kept: bool = False
