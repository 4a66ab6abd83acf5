"""Reads a file as the objects of its records, one after the other, in memory for the largest record only.

The file's name says how: `.jsonl` and `.ndjson` have an object a line; `.json` has an array of them, or lines all the
same where it does not begin with a bracket; `.parquet` has rows; all else is UTF-8 text, one document. What is
packed (`.gz`, `.zst`) is named by what it holds, `chats.jsonl.zst`.
"""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from microkernel.errors import DataLoss, Invalid
from services.training.data.unpacked import PACKED, Unpacked, open_unpacked

__all__ = ["LARGEST_RECORD", "Entry", "form_of", "read_entries"]

LARGEST_RECORD = 8 << 20  # bytes; a tokenizer takes some 100 times as much to encode it
LARGEST_TEXT = 1 << 20  # characters of a document; what is longer is cut, since a whole corpus can be one file
BUFFER = 1 << 20
ROWS = 64  # of a Parquet file at once
MARK = "\ufeff"  # the byte order mark that editors put before UTF-8
SPACE = re.compile(r"[ \t\r\n]*")

Taken = Callable[[int], None]


class Entry(NamedTuple):
    """A record's object, at its `place` in the file ("line 3"), or `why` there is none."""

    place: str
    value: object = None
    why: str | None = None


def form_of(name: str) -> str:
    """How a file of that name is read: "lines", "json", "parquet" or "text"."""
    lowered = Path(name.lower())
    ending = Path(lowered.stem).suffix if lowered.suffix in PACKED else lowered.suffix
    return {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".parquet": "parquet"}.get(ending, "text")


def read_entries(path: Path, name: str, taken: Taken) -> Iterator[Entry]:
    """What is in the file at `path`, which users call `name`; `taken` is told how many of its bytes were read so far.

    An entry that cannot be read has a reason instead of a value. Raises `NotFound`, `DataLoss` for a file that is
    damaged, and `Invalid` for one of which no single record can be left out: an array that is not JSON, a packing or
    a Parquet file that cannot be read here.
    """
    form = form_of(name)
    if form == "parquet":
        yield from _parquet(path, name, taken)
        return
    with open_unpacked(path, name) as file:
        if form == "json":
            form = "array" if file.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" else "lines"
        match form:
            case "lines":
                entries = _lines(file)
            case "array":
                entries = _array(file, name)
            case _:
                entries = _text(file)
        for entry in entries:
            taken(file.taken)
            yield entry


def _lines(file: Unpacked) -> Iterator[Entry]:
    number = 0
    while line := file.readline(LARGEST_RECORD + 1):
        number += 1
        place = f"line {number}"
        if len(line) > LARGEST_RECORD and not line.endswith(b"\n"):
            while (rest := file.readline(BUFFER)) and not rest.endswith(b"\n"):
                pass
            yield Entry(place, why=f"has more than {LARGEST_RECORD >> 20} MiB")
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue  # a blank line, as many files end with
        try:
            yield Entry(place, msgspec.json.decode(line))
        except UnicodeDecodeError as error:
            yield Entry(place, why=f"is not UTF-8 at its byte {error.start}")
        except msgspec.DecodeError as error:
            yield Entry(place, why=f"is not JSON: {error}")
        except RecursionError:
            yield Entry(place, why="nests too deeply")


class _MalformedError(Exception):
    """What is wrong with a file, in words that follow its name."""


class _Characters:
    """The characters of a file, as far as they are needed: `text` grows at its end and is cut at its beginning."""

    def __init__(self, file: Unpacked) -> None:
        self.text = ""
        self.ended = False
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read = 0
        self.more()
        self.text = self.text.removeprefix(MARK)

    def more(self, size: int = BUFFER) -> None:
        """Read some `size` bytes more. Raises `_MalformedError` where the file is no UTF-8."""
        piece = self._file.read(size)
        self.ended = not piece
        held = len(self._decoder.getstate()[0])
        try:
            self.text += self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise _MalformedError(f"is not UTF-8 at byte {self._read - held + error.start}") from error
        self._read += len(piece)

    def drop(self, count: int) -> None:
        """Forget the first characters."""
        self.text = self.text[count:]


def _array(file: Unpacked, name: str) -> Iterator[Entry]:
    """The elements of a JSON array. What is wrong with one hides where the next begins, so all is refused."""
    try:
        characters = _Characters(file)
        start = characters.text.index("[") + 1
        number = 0
        while True:
            value, start, ended = _element(characters, start, number)
            if ended and number == 0 and value is None:
                return
            number += 1
            yield Entry(f"record {number}", value)
            if ended:
                return
    except _MalformedError as error:
        raise Invalid(f"{name} {error}", remedy="write a record a line, as .jsonl") from error


def _element(characters: _Characters, start: int, number: int) -> tuple[object, int, bool]:
    """The element that begins at or behind `start`, where what follows it begins, and whether the array ends there."""
    if start > BUFFER:
        characters.drop(start)
        start = 0
    while True:
        begin = _skip(characters.text, start)
        if number == 0 and characters.text[begin : begin + 1] == "]":
            return None, begin + 1, True
        try:
            value, end = DECODER.raw_decode(characters.text, begin)
        except json.JSONDecodeError as error:
            wrong = f"is no JSON array: record {number + 1}: {error.msg}"
        except RecursionError as error:
            raise _MalformedError(f"is no JSON array: record {number + 1} nests too deeply") from error
        else:
            end = _skip(characters.text, end)
            behind = characters.text[end : end + 1]
            if behind in {",", "]"}:
                return value, end + 1, behind == "]"
            wrong = f"is no JSON array: behind record {number + 1} there is {behind!r}"
            if behind:
                raise _MalformedError(wrong)
        if characters.ended:
            raise _MalformedError(wrong)
        if len(characters.text) - begin > LARGEST_RECORD:
            raise _MalformedError(f"{wrong}, or it has more than {LARGEST_RECORD >> 20} MiB")
        characters.more(
            max(BUFFER, len(characters.text) - begin)
        )  # twice as much, so that trying again costs no square


def _skip(text: str, start: int) -> int:
    match = SPACE.match(text, start)
    return match.end() if match else start


def _text(file: Unpacked) -> Iterator[Entry]:
    """One document; of a long one, pieces that end with a paragraph, else a line, else a word."""
    number = 0
    try:
        characters = _Characters(file)
        while characters.text or not characters.ended:
            while len(characters.text) <= LARGEST_TEXT and not characters.ended:
                characters.more()
            end = _cut(characters.text)
            number += 1
            yield Entry(f"part {number}", {"text": characters.text[:end]})
            characters.drop(end)
        if number == 0:
            yield Entry("part 1", why="is empty")
    except _MalformedError as error:
        yield Entry(f"part {number + 1}", why=str(error))


def _cut(text: str) -> int:
    if len(text) <= LARGEST_TEXT:
        return len(text)
    for border in ("\n\n", "\n", " "):
        found = text.rfind(border, LARGEST_TEXT // 2, LARGEST_TEXT)
        if found >= 0:
            return found + len(border)
    return LARGEST_TEXT


def _parquet(path: Path, name: str, taken: Taken) -> Iterator[Entry]:
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise Invalid(f"{name} is a Parquet file, and nothing here reads it", remedy="pip install pyarrow") from error
    size = path.stat().st_size
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    number += 1
                    taken(size * number // max(1, file.metadata.num_rows))
                    yield Entry(f"row {number}", row)
    except (arrow.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataLoss(f"{name} is damaged behind row {number}: {why}", remedy="fetch the file again") from error


def _no_constant(word: str) -> object:
    raise json.JSONDecodeError(f"{word} is no JSON", word, 0)


DECODER = json.JSONDecoder(parse_constant=_no_constant)
