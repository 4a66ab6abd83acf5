"""Prepared data on disk: written whole or not at all, and no damaged byte is taken for what was written."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import DataLoss, PreconditionFailed
from services.training.data.checked_files import PART, CheckedFile, CheckedWriter, Written
from services.training.data.examples import Example
from services.training.data.manifest import Manifest, digest_of, new_folder, read_manifest, write_manifest
from services.training.data.token_files import AT_ONCE, PARTS, TokenFiles, Tokens, TokenWriter


def write_part(folder: Path, sizes: list[int], vocabulary: int = 1000) -> tuple[Tokens, list[Example]]:
    generator = np.random.default_rng(0)
    writer = TokenWriter(folder, "train", vocabulary)
    examples = []
    for size in sizes:
        example = Example(generator.integers(0, vocabulary, size), generator.random(size) < 0.5)
        examples.append(example)
        writer.add(example)
    return writer.finish(), examples


@given(sizes=st.lists(st.integers(1, 50), max_size=30), vocabulary=st.sampled_from([10, 1 << 16, (1 << 16) + 1]))
@settings(deadline=None)
def test_tokens_marks_and_ends_are_read_as_they_were_written(tmp_path_factory, sizes: list[int], vocabulary: int):
    folder = tmp_path_factory.mktemp("tokens")
    found, examples = write_part(folder, sizes, vocabulary)
    files = TokenFiles(folder, "train", found, vocabulary)
    files.check_all()
    total = sum(sizes)
    joined = [
        np.concatenate([np.zeros(0, dtype), *parts])
        for dtype, parts in zip((np.int64, bool), zip(*examples, strict=True), strict=False)
    ]
    if joined:
        assert files.tokens.tolist() == joined[0].tolist()
        assert files.marks(0, total).tolist() == joined[1].tolist()
        assert files.marks(total // 3, total).tolist() == joined[1][total // 3 :].tolist()
        assert found.learned == joined[1].sum()
    assert files.ends.tolist() == np.cumsum(sizes).tolist()
    assert files.tokens.dtype.itemsize == (4 if vocabulary > 1 << 16 else 2)


def test_what_is_written_in_many_pieces_is_whole(tmp_path):
    found, examples = write_part(tmp_path, [AT_ONCE // 3 + 1] * 10)
    files = TokenFiles(tmp_path, "train", found, 1000)
    assert np.array_equal(files.tokens, np.concatenate([example.tokens for example in examples]))
    assert np.array_equal(files.marks(0, found.tokens), np.concatenate([example.learned for example in examples]))


def checked(path: Path, content: bytes) -> Written:
    writer = CheckedWriter(path)
    for start in range(0, len(content), 10_000):
        writer.add(content[start : start + 10_000])
    return writer.finish()


def damage(path: Path, at: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


CONTENT = np.random.default_rng(1).bytes(3 * PART + 1000)
BYTES = np.dtype("u1")


@pytest.mark.parametrize("at", [0, PART - 1, PART, 2 * PART + 5, 3 * PART + 999])
def test_a_flipped_bit_is_found_when_its_part_is_read_and_no_other_is_refused(tmp_path, at):
    written = checked(tmp_path / "a", CONTENT)
    damage(tmp_path / "a", at)
    file = CheckedFile(tmp_path / "a", written, BYTES)
    for place in range(0, len(CONTENT), PART):
        span = np.array([place]), np.array([min(place + PART, len(CONTENT))])
        if place == at // PART * PART:
            with pytest.raises(DataLoss, match=f"bytes {place} to"):
                file.check(*span)
        else:
            file.check(*span)
    with pytest.raises(DataLoss):
        file.check_all()


def test_a_span_over_many_parts_has_none_left_out(tmp_path):
    written = checked(tmp_path / "a", CONTENT)
    damage(tmp_path / "a", PART + 7)
    file = CheckedFile(tmp_path / "a", written, BYTES)
    file.check(np.array([0, 3 * PART]), np.array([PART, 3 * PART + 5]))
    with pytest.raises(DataLoss):
        file.check(np.array([5]), np.array([len(CONTENT)]))


@pytest.mark.parametrize("cut", [0, 1, PART, len(CONTENT) - 1])
def test_a_file_that_was_cut_is_found_when_it_is_opened(tmp_path, cut):
    written = checked(tmp_path / "a", CONTENT)
    (tmp_path / "a").chmod(0o600)
    os.truncate(tmp_path / "a", cut)
    with pytest.raises(DataLoss, match=f"has {cut} bytes"):
        CheckedFile(tmp_path / "a", written, BYTES)


def test_damaged_sums_are_found_when_the_file_is_opened(tmp_path):
    written = checked(tmp_path / "a", CONTENT)
    damage(tmp_path / "a.sums", 3)
    with pytest.raises(DataLoss, match="sums"):
        CheckedFile(tmp_path / "a", written, BYTES)


@pytest.mark.parametrize("name", ["a", "a.sums"])
def test_a_file_that_is_missing_is_named(tmp_path, name):
    written = checked(tmp_path / "a", CONTENT)
    (tmp_path / name).unlink()
    with pytest.raises(DataLoss, match="file a cannot be read") as lost:
        CheckedFile(tmp_path / "a", written, BYTES)
    assert str(tmp_path) in (lost.value.remedy or "")


def test_an_empty_file_is_a_file(tmp_path):
    file = CheckedFile(tmp_path / "a", checked(tmp_path / "a", b""), BYTES)
    file.check_all()
    assert len(file.array) == 0


def test_a_disk_that_takes_no_more_is_said(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = CheckedWriter(tmp_path / "a")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (PART, limits[1]))
        with pytest.raises(PreconditionFailed, match="cannot be written") as full:
            writer.add(CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
        writer.close()
    assert full.value.remedy == "free space on its disk"


def make_folder(cache: Path, key: str = "key") -> Manifest:
    with new_folder(cache) as folder:
        parts = {part: TokenWriter(folder, part, 10).finish() for part in PARTS}
        manifest = Manifest(
            key=key, kind="text", vocabulary=10, parts=parts, files=(), bad=0, named=(), digest=digest_of("text", parts)
        )
        write_manifest(folder, manifest)
    return manifest


def test_a_folder_counts_when_it_is_whole(tmp_path):
    assert read_manifest(tmp_path, "key") is None
    manifest = make_folder(tmp_path)
    assert read_manifest(tmp_path, "key") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_of_two_that_write_the_same_the_first_is_kept(tmp_path):
    assert make_folder(tmp_path) == make_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_is_given_up_leaves_nothing(tmp_path):
    def give_up() -> None:
        with new_folder(tmp_path) as folder:
            (folder / "x").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert list(tmp_path.iterdir()) == []


def test_what_the_dead_left_is_cleared_and_what_the_living_write_is_not(tmp_path):
    old = time.time() - 10_000
    (tmp_path / "partial-dead").mkdir()
    os.utime(tmp_path / "partial-dead", (old, old))
    with new_folder(tmp_path) as living:
        os.utime(living, (old, old))
        make_folder(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {living.name, "key"}


@pytest.mark.parametrize("at", [0, 10, 80, 200])
def test_a_damaged_manifest_is_found(tmp_path, at):
    make_folder(tmp_path)
    damage(tmp_path / "key" / "manifest", at)
    with pytest.raises(DataLoss, match="manifest is damaged"):
        read_manifest(tmp_path, "key")


def test_a_folder_without_its_manifest_is_damaged_and_not_missing(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "key" / "manifest").unlink()
    with pytest.raises(DataLoss, match="manifest is damaged"):
        read_manifest(tmp_path, "key")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(PreconditionFailed), new_folder(tmp_path / "cache"):
        pass
