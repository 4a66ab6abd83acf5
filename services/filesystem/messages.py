"""What the filesystem answers: files and folders of one tree, by paths from its root."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from microkernel.message import Message

__all__ = [
    "EVERYBODY",
    "Access",
    "Change",
    "ChangeAccess",
    "Collect",
    "Collected",
    "CopyFile",
    "Damage",
    "Difference",
    "Diff",
    "FileKind",
    "FileQuota",
    "FileVersion",
    "ForgetVersions",
    "Found",
    "Grant",
    "Grep",
    "History",
    "IndexFolder",
    "IndexState",
    "ListFolder",
    "MakeFolder",
    "Match",
    "MountStorage",
    "Mounted",
    "NameSnapshot",
    "ReadFile",
    "RemoveFile",
    "RenameFile",
    "RollBack",
    "Scrub",
    "Scrubbed",
    "Search",
    "SetFileQuota",
    "ShowFile",
    "Snapshot",
    "Stat",
    "TakeSnapshot",
    "Unmount",
    "UseOfFiles",
    "WatchFiles",
    "WriteFile",
    "WriteStream",
]

EVERYBODY = "*"


class FileKind(StrEnum):
    """What a path leads to."""

    FOLDER = "folder"
    FILE = "file"
    LIVE = "live"


class ShowFile(Message, kw_only=True):
    """Ask what a path leads to; `version` is a number, or the name of a snapshot, and None is now."""

    path: str
    version: int | str | None = None


class ListFolder(Message, kw_only=True):
    """Ask what is in a folder: at most `limit` names, those after the name `after`."""

    path: str = "/"
    version: int | str | None = None
    after: str = ""
    limit: int = 10_000


class ReadFile(Message, kw_only=True):
    """Ask for a file's bytes from `start` up to `stop`, or to its end.

    With the `version` that its `Stat` tells, parts that are asked for one after the other are of one content.
    """

    path: str
    start: int = 0
    stop: int | None = None
    version: int | str | None = None


class WriteFile(Message, kw_only=True):
    """Put `content` in place of what a path leads to. Folders on the way are made.

    With `if_version` it is done only where that is the file's version; 0 is none: nothing may be there.
    """

    path: str
    content: bytes
    if_version: int | None = None


class WriteStream(Message, kw_only=True):
    """`WriteFile` whose content comes in pieces.

    With `start` the file is kept, and the pieces are put in place of its bytes from there on.
    """

    path: str
    start: int | None = None
    if_version: int | None = None


class MakeFolder(Message, kw_only=True):
    """Make a folder, and those on the way to it."""

    path: str
    exist_ok: bool = False


class RemoveFile(Message, kw_only=True):
    """Remove a file, or a folder; one that is not empty with `recursive` only."""

    path: str
    recursive: bool = False


class RenameFile(Message, kw_only=True):
    """Give a file or folder another path; a file that is there is replaced with `replace` only."""

    path: str
    to: str
    replace: bool = False


class CopyFile(Message, kw_only=True):
    """Have a file's content under another path too; within a volume no byte is copied."""

    path: str
    to: str
    version: int | str | None = None


class History(Message, kw_only=True):
    """Ask for the versions of what a path leads or has led to, the newest first."""

    path: str
    limit: int = 1000


class RollBack(Message, kw_only=True):
    """Make a file or folder what it was at a version; this is a version itself."""

    path: str
    version: int | str


class Diff(Message, kw_only=True):
    """Ask what became different in a folder from one version to another, or to now."""

    path: str = "/"
    since: int | str
    until: int | str | None = None


class TakeSnapshot(Message, kw_only=True):
    """Name the tree as it is now; what it has is kept until the name is removed. `path` says of which volume."""

    name: str
    path: str = "/"


class NameSnapshot(Message, kw_only=True):
    """Name a snapshot."""

    name: str
    path: str = "/"


class ChangeAccess(Message, kw_only=True):
    """Say who may do what from a file or folder on downwards; None is what holds above it."""

    path: str
    grants: dict[str, tuple[str, ...]] | None


class SetFileQuota(Message, kw_only=True):
    """Say how many bytes an owner may keep in a volume, old versions included; None is no limit."""

    owner: str
    limit_bytes: int | None
    path: str = "/"


class ForgetVersions(Message, kw_only=True):
    """Forget now what a path has led to before, but for what snapshots have; what is there stays."""

    path: str


class Collect(Message, kw_only=True):
    """Forget versions that ended more than `older_than` seconds ago; None is what the settings say.

    With `dry_run` nothing is done, and all is counted.
    """

    path: str = "/"
    older_than: float | None = None
    dry_run: bool = False


class Scrub(Message, kw_only=True):
    """Read all that is kept in a volume, and compare it with its checksums."""

    path: str = "/"


class WatchFiles(Message, kw_only=True):
    """Ask to be told what changes at a path and below it; with `since` also what has changed since that version."""

    path: str = "/"
    since: int | None = None


class IndexFolder(Message, kw_only=True):
    """Have the text in a folder indexed from now on, for search by meaning; or not any more."""

    path: str
    indexed: bool = True


class Search(Message, kw_only=True):
    """Ask for pieces of text that mean what `query` says, the nearest first.

    `path` is where they are to be, `owner` whose files; `since` and `until` are Unix times of the files' versions.
    """

    query: str
    path: str = "/"
    limit: int = 10
    owner: str | None = None
    since: float | None = None
    until: float | None = None


class Grep(Message, kw_only=True):
    """Ask for lines that have a regular expression, or with `literal` these very characters, in them."""

    pattern: str
    path: str = "/"
    ignore_case: bool = False
    literal: bool = False
    limit: int = 1000


class Stat(Message, kw_only=True):
    """What a path leads to. A `live` file is written anew whenever somebody reads it, so nobody knows its size.

    `size` is in bytes, `modified` is Unix time in seconds, `digest` BLAKE3 in hex; `version` is the one that made it
    what it is, and `by` who did.
    """

    path: str
    kind: FileKind
    size: int | None = None
    about: str = ""
    version: int | None = None
    modified: float | None = None
    owner: str | None = None
    by: str | None = None
    digest: str | None = None


class FileVersion(Message, kw_only=True):
    """One version of a file or folder: where it was, what made it so, and up to which version it was so."""

    version: int
    path: str
    action: str
    at: float
    by: str
    size: int | None = None
    digest: str | None = None
    until: int | None = None


class Change(Message, kw_only=True):
    """What has changed at a path: `action` is made, written, removed, renamed, copied or rolled back."""

    path: str
    action: str
    version: int
    by: str
    at: float
    size: int | None = None
    before: str | None = None


class Difference(Message, kw_only=True):
    """What became different at a path: `how` is added, removed or changed."""

    path: str
    how: str
    kind: FileKind
    size: int | None = None
    before: int | None = None


class Snapshot(Message, kw_only=True):
    """A version that has a name."""

    name: str
    version: int
    at: float
    by: str


class Grant(Message, kw_only=True):
    """What a user may do: `read`, `add` names to folders, `write` (change, rename and remove). `*` is everybody."""

    user: str
    rights: tuple[str, ...]


class Access(Message, kw_only=True):
    """Who may do what with a file or folder. `given_at` is the path whose list holds for it."""

    path: str
    owner: str
    given_at: str
    grants: tuple[Grant, ...]


class FileQuota(Message, kw_only=True):
    """What an owner may keep, in bytes; None is no limit."""

    owner: str
    limit_bytes: int | None


class UseOfFiles(Message, kw_only=True):
    """What an owner keeps: files and old versions of them, in bytes, and the limit."""

    owner: str
    bytes: int
    versions: int
    limit_bytes: int | None = None


class Collected(Message, kw_only=True):
    """What was forgotten, or would be: versions, and the contents that nothing else has."""

    versions: int
    contents: int
    bytes: int
    dry_run: bool


class Damage(Message, kw_only=True):
    """What is not what it was: where, whose content it is, which bytes, and whether it was repaired."""

    what: str
    paths: tuple[str, ...] = ()
    start: int | None = None
    stop: int | None = None
    repaired: bool = False


class Found(Message, kw_only=True):
    """A piece of a file that means what was asked for. `score` is the cosine of its vector and the query's."""

    path: str
    score: float
    text: str
    start: int
    stop: int
    version: int
    owner: str
    modified: float


class Match(Message, kw_only=True):
    """A line that has the pattern in it; `line` counts from 1."""

    path: str
    line: int
    text: str


class IndexState(Message, kw_only=True):
    """What is indexed: folders, pieces in memory with their bytes, files that wait, and why they do."""

    folders: tuple[str, ...]
    pieces: int
    bytes: int
    waiting: int
    model: str | None = None
    why: str = ""


class Scrubbed(Message, kw_only=True):
    """What a scrub has read, and found."""

    contents: int
    bytes: int
    damages: tuple[Damage, ...] = ()


class MountStorage(Message, kw_only=True):
    """Put other storage into the tree at `path`, by a URL of fsspec; it comes back after a restart.

    `options` go to the back end; `options_env` name variables of the node's environment with those that nobody is to
    read. The others are as in `[services.filesystem.mounts]`.
    """

    path: str
    url: str
    options: dict[str, Any] = {}
    options_env: dict[str, str] = {}
    writable: bool = False
    cache_bytes: int | None = None
    cache_seconds: float | None = None
    users: tuple[str, ...] | None = None


class Unmount(Message, kw_only=True):
    """Take other storage out of the tree, with what is kept of it here; what is there stays."""

    path: str


class Mounted(Message, kw_only=True):
    """Other storage in the tree: `cached_bytes` are kept here, up to `cache_bytes`.

    `atomic` says of a writable one whether a file is there whole or not at all while it is put; `configured` that it is
    in the settings; `problem` why it is not in the tree.
    """

    path: str
    kind: str
    url: str
    writable: bool
    cached_bytes: int = 0
    cache_bytes: int = 0
    atomic: bool | None = None
    configured: bool = False
    problem: str | None = None
