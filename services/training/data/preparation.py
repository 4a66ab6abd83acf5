"""Prepares data: files of texts become tokens on disk, once for the same files, tokenizer and settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blake3
import msgspec

from formats.text.tokenizer import Tokenizer, open_tokenizer
from services.training.config import DataConfig
from services.training.data.bad_records import BadRecord, BadRecords
from services.training.data.encoding import Encoding
from services.training.data.manifest import (
    FORMAT,
    Manifest,
    digest_of,
    new_folder,
    read_manifest,
    write_manifest,
)
from services.training.data.packing import Rows, cut, pack
from services.training.data.progress import Report, Told
from services.training.data.record_files import form_of
from services.training.data.records import Kind
from services.training.data.sources import Source, Watched, tokenizer_digest
from services.training.data.token_files import PARTS, Part, TokenFiles, TokenWriter

__all__ = ["Counts", "Prepared", "pack_rows", "prepare"]

MOST_THREADS = 16


class Counts(msgspec.Struct, frozen=True):
    """One part of the data: how many documents, tokens, tokens that are learned, and rows it has.

    `waste` is the part of the rows' places that no token is in.
    """

    documents: int
    tokens: int
    learned: int
    rows: int
    waste: float


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Data that are ready: where they are, and what is in them.

    `digest` (BLAKE3) names the tokens, marks and documents, for a lineage; `sources` are the digests of the files, by
    name. `bad` records were left out, of which the first are `named`.
    """

    folder: str
    key: str
    digest: str
    kind: Kind
    vocabulary: int
    length: int
    train: Counts
    held: Counts
    bad: int
    named: tuple[BadRecord, ...]
    sources: tuple[tuple[str, str], ...]


def prepare(
    files: Sequence[Source],
    evaluation: Sequence[Source],
    tokenizer_source: Path | Mapping[str, Any],
    config: DataConfig,
    cache: Path,
    report: Report | None = None,
    threads: int = 0,
) -> Prepared:
    """Tokens of `files`, and of `evaluation` or what is held out of them, in a folder of `cache`.

    What was prepared before is used again. `report` is called twice a second; what it raises ends the preparation, and
    nothing is left of it. It blocks, for as long as it takes to encode the texts on so many `threads` (0: as many as
    there are cores).

    Raises `Invalid` for more bad records than are allowed, with the names of the first, for files that cannot be read
    here, and where there is nothing to train on; `NotFound` and `DataLoss` for files that are missing or damaged,
    those of the cache too; `PreconditionFailed` for a file that changes meanwhile, and for a disk that is full.
    """
    given = zip(PARTS, (files, evaluation), strict=True)
    told = Told(report, 2 * sum(_size(source) for source in (*files, *evaluation)))
    watched: dict[Part, list[Watched]] = {
        part: [Watched(source, told.at(source.name)) for source in sources] for part, sources in given
    }
    key = _key(watched, tokenizer_source, config)
    manifest = read_manifest(cache, key)
    if manifest is None:
        manifest = _write(watched, open_tokenizer(tokenizer_source), config, cache, key, told, threads or _cores())
    names = [one.source.name for part in PARTS for one in watched[part]]
    named = tuple(msgspec.structs.replace(bad, file=names[manifest.files.index(bad.file)]) for bad in manifest.named)
    BadRecords(config.bad_records, manifest.bad, named).check()
    told.finish()
    folder = cache / key
    counts = {part: _counts(folder, manifest, part, config.length) for part in PARTS}
    return Prepared(
        folder=str(folder),
        key=key,
        digest=manifest.digest,
        kind=manifest.kind,
        vocabulary=manifest.vocabulary,
        length=config.length,
        train=counts["train"],
        held=counts["held"],
        bad=manifest.bad,
        named=named,
        sources=tuple((one.source.name, one.digest.hex()) for part in PARTS for one in watched[part]),
    )


def pack_rows(files: TokenFiles, kind: Kind, length: int) -> Rows:
    """Rows of `length` for what is in `files`: the same wherever they are made. Raises `DataLoss`."""
    return pack(cut(files.ends, length, None if kind == "text" else files.marks), length)


def _cores() -> int:
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _size(source: Source) -> int:
    return source.path.stat().st_size if source.path.exists() else 0


def _key(watched: Mapping[Part, Sequence[Watched]], tokenizer: Path | Mapping[str, Any], config: DataConfig) -> str:
    held_out = 0.0 if watched["held"] else config.evaluation_part
    digest = blake3.blake3(f"{FORMAT} {config.kind} {held_out!r}\n".encode())
    digest.update(tokenizer_digest(tokenizer))
    for part in PARTS:
        for one in watched[part]:
            digest.update(f"{part} {form_of(one.source.name)} {Path(one.source.name).suffix} ".encode() + one.digest)
    return digest.hexdigest(length=16)


def _counts(folder: Path, manifest: Manifest, part: Part, length: int) -> Counts:
    found = manifest.parts[part]
    rows = pack_rows(TokenFiles(folder, part, found, manifest.vocabulary), manifest.kind, length)
    return Counts(found.documents, found.tokens, found.learned, rows.count, round(rows.waste, 6))


def _write(
    watched: Mapping[Part, Sequence[Watched]],
    tokenizer: Tokenizer,
    config: DataConfig,
    cache: Path,
    key: str,
    told: Told,
    threads: int,
) -> Manifest:
    with new_folder(cache) as folder:
        writers: dict[Part, TokenWriter] = {}
        try:
            for part in PARTS:
                writers[part] = TokenWriter(folder, part, tokenizer.vocab_size)
            with ThreadPoolExecutor(threads, "encode") as pool:
                separate = bool(watched["held"])
                encoding = Encoding(tokenizer, config, writers, separate=separate, told=told, threads=pool)
                for part in PARTS:
                    for one in watched[part]:
                        encoding.take(one, part)
            kind = encoding.kind
            if kind is None or not writers["train"].documents:
                raise encoding.nothing()
            parts = {part: writer.finish() for part, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.close()
        manifest = Manifest(
            key=key,
            kind=kind,
            vocabulary=tokenizer.vocab_size,
            parts=parts,
            files=tuple(one.source.name for part in PARTS for one in watched[part]),
            bad=encoding.bad.count,
            named=tuple(encoding.bad.named),
            digest=digest_of(kind, parts),
        )
        write_manifest(folder, manifest)
    return manifest
