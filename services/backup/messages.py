"""What the backup service answers: archives that are made, checked and taken apart."""

from __future__ import annotations

from microkernel.message import Message

__all__ = [
    "ArchivePiece",
    "BackupSummary",
    "CheckArchive",
    "CreateBackup",
    "PartSummary",
    "RestoreBackup",
    "RestoreProgress",
]


class CreateBackup(Message, kw_only=True):
    """Make an archive of all that this node keeps. `models` takes weights along, `secrets` tokens and their key.

    `without` are services that are left out.
    """

    models: bool = False
    secrets: bool = False
    without: tuple[str, ...] = ()


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
