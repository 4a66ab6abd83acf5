"""What the filesystem answers: files and folders of one tree, by paths from its root."""

from __future__ import annotations

from enum import StrEnum

from microkernel.message import Message

__all__ = ["FileKind", "ListFolder", "ReadFile", "ShowFile", "Stat"]


class FileKind(StrEnum):
    """What a path leads to."""

    FOLDER = "folder"
    FILE = "file"
    LIVE = "live"


class ShowFile(Message):
    """Ask what a path leads to."""

    path: str


class ListFolder(Message):
    """Ask what is in a folder."""

    path: str = "/"


class ReadFile(Message, kw_only=True):
    """Ask for a file's bytes from `start` up to `stop`, or to its end."""

    path: str
    start: int = 0
    stop: int | None = None


class Stat(Message, kw_only=True):
    """What a path leads to. A `live` file is written anew whenever somebody reads it, so nobody knows its size."""

    path: str
    kind: FileKind
    size: int | None = None
    about: str = ""
