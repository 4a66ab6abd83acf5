"""Rows of a volume's tables as they leave a node and come into another one: lines of JSON, checked when they are read.

Numbers stay what they are: nodes, contents and versions mean the same in the other volume. Keys and seals follow from
the rest, and what owners keep is counted again.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from microkernel.errors import DataLoss, Invalid
from services.filesystem.paths import parse, twin_key
from services.filesystem.stored.database import FIELDS, Entry, entry_of, past_of

__all__ = [
    "CONTENTS",
    "DAMAGED",
    "MOUNTS",
    "ROWS",
    "TABLES",
    "VOLUME",
    "Counters",
    "DamagedContent",
    "Row",
    "Table",
]

FORMAT = 1
CONTENTS, DAMAGED, MOUNTS, ROWS, VOLUME = "contents/", "damaged/", "mounts.json", "rows/", "volume.json"

_Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row; `values` are those of its table's columns. Raises `Invalid` for what no row can be."""

    def values(self) -> tuple[Any, ...]:
        """For the statement of its table."""
        return msgspec.structs.astuple(self)

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Row:
        """A row as the table has it."""
        return cls(**dict(zip(cls.__struct_fields__, row, strict=True)))


class NameRow(Row, frozen=True, kw_only=True):
    """A name as long as it is there."""

    parent: _Number
    name: str
    node: _Number
    folder: bool
    owner: _Text
    size: _Count
    content: _Number | None
    at: float
    by: _Text
    action: _Text
    born: _Count

    def values(self) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self.entry())

    def entry(self) -> Entry:
        """The row with its key and its seal."""
        if parse(f"/{self.name}").names != (self.name,):
            raise Invalid(f"{self.name!a} is no name in a folder")
        return Entry(self.parent, twin_key(self.name), self.name, self.node, self.folder, self.owner, self.size,
                     self.content, self.at, self.by, self.action, self.born).sealed()  # fmt: skip

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Row:
        return cls(**_said(entry_of(row)))


class PastRow(NameRow, frozen=True, kw_only=True):
    """A name from its end on."""

    died: _Number
    died_at: float
    died_by: _Text
    ending: _Text

    def values(self) -> tuple[Any, ...]:
        return (*msgspec.structs.astuple(self.entry()), self.died, self.died_at, self.died_by, self.ending)

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Row:
        past = past_of(row)
        return cls(**_said(past.entry), died=past.died, died_at=past.died_at, died_by=past.died_by, ending=past.ending)


class AccessRow(Row, frozen=True, kw_only=True):
    """What a user may do at a node."""

    node: _Number
    user: _Text
    rights: Annotated[int, msgspec.Meta(ge=0, le=7)]


class SnapshotRow(Row, frozen=True, kw_only=True):
    """A version with a name."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,99}\Z")]
    version: _Count
    at: float
    by: _Text


class QuotaRow(Row, frozen=True, kw_only=True):
    """What an owner may keep, set live."""

    owner: _Text
    bytes: _Count | None


class IndexedRow(Row, frozen=True, kw_only=True):
    """A folder whose text is indexed; the index itself is made again."""

    node: _Number


class Table(msgspec.Struct, frozen=True):
    """How a table is read, in the order in which it is written, and how it is filled."""

    name: str
    row: type[Row]
    select: str
    insert: str


_NAME = f"INSERT INTO entry({FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 # constants, here
_PAST = f"""
INSERT INTO past({FIELDS}, died, died_at, died_by, ending) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608 # and below

TABLES = (
    Table("access", AccessRow, "SELECT node, user, rights FROM access ORDER BY node, user",
          "INSERT INTO access VALUES (?, ?, ?)"),
    Table("entry", NameRow, f"SELECT {FIELDS} FROM entry ORDER BY parent, key", _NAME),  # noqa: S608
    Table("indexed", IndexedRow, "SELECT node FROM indexed ORDER BY node", "INSERT INTO indexed VALUES (?)"),
    Table("past", PastRow, f"SELECT id, {FIELDS}, died, died_at, died_by, ending FROM past ORDER BY id", _PAST),  # noqa: S608
    Table("quota", QuotaRow, "SELECT owner, bytes FROM quota ORDER BY owner", "INSERT INTO quota VALUES (?, ?)"),
    Table("snapshot", SnapshotRow, "SELECT name, version, at, by FROM snapshot ORDER BY name",
          "INSERT INTO snapshot VALUES (?, ?, ?, ?)"),
)  # fmt: skip


class DamagedContent(msgspec.Struct, frozen=True, kw_only=True):
    """A content that was damaged when it was to leave, or too large to; `digest` in hex is that of what was written."""

    id: _Number
    digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: _Count


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What a volume counts: its newest version, the last node, and the oldest version that is kept whole."""

    format: int = FORMAT
    version: _Count
    node: _Number
    horizon: _Count

    @classmethod
    def decode(cls, content: bytes) -> Counters:
        """Raises `DataLoss` for what are none, or of another format."""
        try:
            counters = msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataLoss(f"{VOLUME} is damaged: {error}") from error
        if counters.format != FORMAT:
            raise DataLoss(f"the volume has format {counters.format}, known is {FORMAT}")
        return counters


def _said(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__struct_fields__ if name not in {"key", "seal"}}
