"""Records on their way from files to tokens: read, held out or not, encoded, written; the bad ones named.

What is held out is chosen by a hash of each record's content and nothing else: a record that is there twice is on one
side, and files that are added move none of the others.

Encoding takes nearly all the time, and the library lets go of Python's lock for it: 0.9 MB of text a second on a core.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from formats.text.tokenizer import Tokenizer
from microkernel.errors import DataLoss, Invalid
from services.training.config import DataConfig
from services.training.data.bad_records import BadRecord, BadRecords
from services.training.data.examples import Example, Examples
from services.training.data.progress import Told
from services.training.data.record_files import Entry, read_entries
from services.training.data.records import Kind, Record, content_digest, kind_of, read_record, size_of
from services.training.data.sources import Watched
from services.training.data.token_files import Part, TokenWriter

__all__ = ["Encoding"]

RECORDS = 256  # that are encoded together
CHARACTERS = 2 << 20  # of them, at most, but for the last one


class _Placed(NamedTuple):
    """A record, or `why` there is none, at its place in a file."""

    place: str
    record: Record | None = None
    size: int = 0
    why: str = ""


class Encoding:
    """Takes file after file; of which kind the records are is settled by the first that is one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: DataConfig,
        writers: Mapping[Part, TokenWriter],
        *,
        separate: bool,
        told: Told,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.bad = BadRecords(config.bad_records)
        self.kind: Kind | None = None if config.kind == "auto" else config.kind
        self._tokenizer = tokenizer
        self._examples = None if self.kind is None else Examples(tokenizer, self.kind)
        self._writers = writers
        self._below = 0 if separate else round(config.evaluation_part * (1 << 64))
        self._told = told
        self._threads = threads

    def take(self, watched: Watched, part: Part) -> None:
        """All records of a file, which is to be what it was before."""
        source = watched.source
        waiting: list[_Placed] = []
        held = 0
        try:
            for entry in read_entries(source.path, source.name, self._told.at(source.name)):
                placed = self._read(entry)
                waiting.append(placed)
                held += placed.size
                if len(waiting) >= RECORDS or held >= CHARACTERS:
                    self._write(waiting, source.name, part)
                    waiting, held = [], 0
            self._write(waiting, source.name, part)
        except (Invalid, DataLoss) as error:
            watched.confirm(error)
            raise
        watched.confirm()

    def nothing(self) -> Invalid:
        """What to say where no record is left to train on."""
        held = self._writers["held"].documents
        if held:
            why = f"all {held} documents are held out for evaluation"
            return Invalid(f"there is nothing to train on: {why}", remedy="lower data.evaluation_part, or add files")
        why = f": {self.bad.named[0]}" if self.bad.named else ""
        return Invalid(f"there is nothing to train on{why}", field="data.train")

    def _read(self, entry: Entry) -> _Placed:
        """The record of an entry, or why there is none. The first that is one says of what kind all are."""
        if entry.why is not None:
            return _Placed(entry.place, why=entry.why)
        try:
            kind = kind_of(entry.value) if self.kind is None else self.kind
            record = read_record(entry.value, kind)
        except Invalid as error:
            return _Placed(entry.place, why=error.message)
        if self._examples is None:
            self.kind, self._examples = kind, Examples(self._tokenizer, kind)
        return _Placed(entry.place, record, size_of(record))

    def _write(self, placed: list[_Placed], file: str, part: Part) -> None:
        """Encode records on all threads, and write what comes of them in their order."""
        for one, found in zip(placed, self._threads.map(self._encode, placed), strict=True):
            if isinstance(found, str):
                self.bad.add(BadRecord(file, one.place, found))
                continue
            assert one.record is not None
            writer = self._writers[self._side(one.record, part)]
            for example in found:
                writer.add(example)
                self._told.wrote(len(example.tokens))

    def _encode(self, placed: _Placed) -> list[Example] | str:
        """The examples of a record, or why there are none."""
        if placed.record is None:
            return placed.why
        assert self._examples is not None
        try:
            return self._examples.of(placed.record)
        except Invalid as error:
            return error.message

    def _side(self, record: Record, part: Part) -> Part:
        if part == "train" and self._below and int.from_bytes(content_digest(record)[:8]) < self._below:
            return "held"
        return part
