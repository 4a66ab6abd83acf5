"""An archive is read as it was written, or not at all."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import blake3
import pytest
from backup_archives import AT, archive, by_hand, entry, file_of, manifest, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import DataLoss, Invalid, MicrokernelError
from microkernel.portable import EntryPiece
from services.backup.header import BLOCK, LARGEST, Header, decode, encode
from services.backup.manifest import LIST, Digests
from services.backup.reader import ArchiveReader
from services.backup.writer import MOST_NOTES, ArchiveWriter

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}(/[A-Za-z0-9][A-Za-z0-9._-]{0,20}){0,3}", fullmatch=True)
CONTENTS = st.one_of(st.binary(max_size=40), st.sampled_from([bytes(511), bytes(512), bytes(513), bytes(600_000)]))
SMALL = {
    "kv": [EntryPiece(name="a", content=b"1" * 700), EntryPiece(name="b/c", content=b"")],
    "shelf": [EntryPiece(name="d", content=os.urandom(100), note="one is missing")],
}


def whole(name: str, content: bytes = b"x") -> EntryPiece:
    return EntryPiece(name=name, content=content)


@given(parts=st.dictionaries(st.sampled_from(["a", "a-b", "a_b", "_x", "B"]), st.dictionaries(NAMES, CONTENTS)))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_was_written_is_read_whatever_it_is(parts):
    with tempfile.TemporaryDirectory() as folder:
        written = archive({part: [whole(*each) for each in sorted(kept.items())] for part, kept in parts.items()})
        reader, found = read(file_of(written, Path(folder)))
    assert found == {f"parts/{part}/{name}": content for part, kept in parts.items() for name, content in kept.items()}
    assert reader.manifest.parts == tuple(sorted(parts))
    assert {name: (each.entries, each.bytes) for name, each in reader.parts.items()} == {
        part: (len(kept), sum(map(len, kept.values()))) for part, kept in parts.items() if kept
    }
    assert reader.place == reader.size == len(written)


def test_an_archive_says_what_it_is_and_what_is_missing(tmp_path):
    reader, _ = read(file_of(archive(SMALL, models=True, left_out={"x": "is broken"}), tmp_path))
    assert (reader.manifest.node, reader.manifest.at, reader.manifest.models) == ("n1", AT, True)
    assert reader.manifest.left_out == {"x": "is broken"}
    assert reader.notes == ("shelf: one is missing",)


def test_a_common_tar_lists_and_extracts_it_and_its_digests_are_those_that_b3sum_reads(tmp_path):
    many = {**SMALL, "kv": [whole(f"{number:05}", b"%d" % number) for number in range(LIST + 100)]}
    many["kv"] += [whole("x" * 80 + "/" + "y" * 30, b"long")]
    path = file_of(archive(many), tmp_path)
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    names = listed.stdout.splitlines()
    assert names[0] == "manifest.json"
    assert names[-1] == "end.json"
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    assert (tmp_path / "parts" / "kv" / "04000").read_bytes() == b"4000"
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        assert list(members) == names
        assert {(each.type, each.mode, each.mtime) for each in members.values()} == {(tarfile.REGTYPE, 0o600, AT)}
    told = {}
    for name in [each for each in names if each.startswith("digests/")]:
        told |= {line[66:]: line[:64] for line in (tmp_path / name).read_text().splitlines()}
    assert told == {
        name: blake3.blake3((tmp_path / name).read_bytes()).hexdigest()
        for name in names
        if not name.startswith("digests/") and name != "end.json"
    }
    assert json.loads((tmp_path / "end.json").read_text())["entries"] == len(told)
    assert len([name for name in names if name.startswith("digests/")]) == 2


@given(
    st.builds(
        Header,
        NAMES,
        st.one_of(st.integers(0, 1000), st.integers(LARGEST - 2, LARGEST + 2), st.integers(0, 1 << 50)),
        st.integers(0, LARGEST - 1),
    )
)
def test_a_header_is_read_as_it_was_written_by_us_and_by_the_standard_library(header):
    blocks = encode(header)
    found, length = decode(blocks[:BLOCK])
    if found is None:
        found, length = decode(blocks[:length])
    assert (found, length) == (header, len(blocks))
    member = tarfile.TarFile(fileobj=io.BytesIO(blocks)).next()
    assert member is not None
    assert (member.name, member.size, member.mtime, member.type) == (header.name, header.size, header.at, b"0")


@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.data())
def test_no_block_but_a_header_of_ours_is_taken_for_one(block, data):
    ours = bytearray(encode(Header("parts/kv/a", 12345, AT)))
    place = data.draw(st.integers(0, BLOCK - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != ours[place]))
    ours[place] = other
    for wild in (block, bytes(ours)):
        with pytest.raises(DataLoss, match="header"):
            decode(wild + bytes(2 * BLOCK))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard link", {"type": tarfile.LNKTYPE, "linkname": "a"}),
        ("device", {"type": tarfile.CHRTYPE}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
        ("folder", {"type": tarfile.DIRTYPE}),
        ("sparse file", {"type": tarfile.GNUTYPE_SPARSE}),
        ("long name", {"type": tarfile.GNUTYPE_LONGNAME, "size": 1 << 32}),
        ("set-uid program", {"mode": 0o4755}),
        ("somebody's", {"uid": 1000, "uname": "ann"}),
    ],
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_what_is_no_plain_file_is_refused(tmp_path, kind, change, form):
    member = tarfile.TarInfo("parts/kv/a")
    member.mtime, member.mode = AT, 0o600
    for name, value in change.items():
        setattr(member, name, value)
    content = entry("manifest.json", manifest("kv").encoded()) + member.tobuf(form) + bytes(1024)
    with pytest.raises(DataLoss, match=r"behind 'manifest\.json'"):
        read(file_of(content, tmp_path))


@pytest.mark.parametrize(
    "name",
    ["../x", "parts/kv/../x", "parts/kv/a/../../x", "/etc/passwd", "parts/kv//a", "parts/../kv/a", "parts/kv/", "x",
     "parts/other/a", "parts/kv/.ssh", "parts//a", "parts/kv/a\\b", "digest/000000", "parts/kv/a b", "parts/kv"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_or_to_no_part_is_refused(tmp_path, name):
    with pytest.raises(MicrokernelError, match="is of no part|no name of an entry"):
        read(file_of(by_hand([(name, b"x")]), tmp_path))


@pytest.mark.parametrize("names", [["a", "a"], ["b", "a"], ["a", "b", "a"]])
def test_names_that_come_twice_or_out_of_order_are_refused(tmp_path, names):
    with pytest.raises(DataLoss, match="comes twice"):
        read(file_of(by_hand([(f"parts/kv/{name}", b"x") for name in names]), tmp_path))


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b"\xff", "damaged"),
        (manifest("kv", format="another").encoded(), "not that of a backup"),
        (manifest("kv", version=2, made_by="9.9").encoded(), "version 2, known is 1"),
        (manifest("kv", "kv").encoded(), "names parts twice"),
        (manifest("../up").encoded(), "damaged"),
        (manifest("kv", at=AT + 1).encoded(), "of another time"),
        (b" " * (3 << 20), "more than such an entry ever has"),
    ],
)
def test_an_archive_whose_first_entry_is_not_ours_is_refused(tmp_path, first, why):
    with pytest.raises(DataLoss, match=why):
        read(file_of(by_hand([], first), tmp_path))


def test_what_is_behind_the_end_is_refused(tmp_path):
    for behind in (bytes(1024) + b"x", bytes(1536), bytes(512), b"", bytes(1024) + by_hand([])):
        with pytest.raises(DataLoss):
            read(file_of(by_hand([], behind=behind), tmp_path))


def test_more_entries_than_a_list_of_digests_has_are_refused(tmp_path):
    with pytest.raises(DataLoss, match="entries without digests"):
        read(file_of(by_hand([(f"parts/kv/{number:05}", b"") for number in range(LIST)]), tmp_path))


def test_an_archive_that_was_cut_off_at_any_byte_is_refused(tmp_path):
    content = archive(SMALL)
    path = file_of(content, tmp_path)
    for length in range(len(content) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(DataLoss):
            read(path)


def test_an_archive_of_which_any_byte_is_another_is_refused(tmp_path):
    content = archive(SMALL)
    path = file_of(content, tmp_path)
    chance = random.Random(3)
    with path.open("r+b") as file:
        for place in range(len(content)):
            file.seek(place)
            file.write(bytes([content[place] ^ (1 << chance.randrange(8))]))
            file.flush()
            with pytest.raises(MicrokernelError):
                read(path)
            file.seek(place)
            file.write(content[place : place + 1])


def test_damage_is_told_by_the_name_of_the_entry(tmp_path):
    content = bytearray(archive(SMALL))
    within = content.index(b"1" * 700) + 300
    content[within] ^= 1
    with pytest.raises(DataLoss, match="'parts/kv/a' is damaged"):
        read(file_of(bytes(content), tmp_path))
    with pytest.raises(DataLoss, match="cut off: 'parts/kv/a' has 700 bytes"):
        read(file_of(bytes(content[:within]), tmp_path))


@given(st.binary(max_size=3000), st.integers(0, 8000), st.integers(0, 3000))
@settings(max_examples=300, deadline=None)
def test_an_archive_with_wild_bytes_in_it_is_refused_with_an_error_of_ours(wild, place, length):
    content = archive(SMALL)
    changed = content[:place] + wild + content[place + length :]
    if changed == content:
        return
    with tempfile.TemporaryDirectory() as folder, pytest.raises(MicrokernelError):
        read(file_of(changed, Path(folder)))


def test_what_is_no_plain_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    handle = os.open(tmp_path / "pipe", os.O_RDWR)
    with os.fdopen(handle, "rb", buffering=0) as pipe, pytest.raises(Invalid, match="no plain file"):
        ArchiveReader(pipe)


def test_an_entry_that_says_it_is_huge_takes_no_memory(tmp_path):
    content = entry("manifest.json", manifest("kv").encoded()) + encode(Header("parts/kv/a", 1 << 49, AT)) + bytes(9)
    with pytest.raises(DataLoss, match="cut off"):
        read(file_of(content, tmp_path))


def test_an_archive_is_written_and_read_in_little_memory(tmp_path):
    """10,000 entries, and one of 64 MiB, within some MiB."""
    path = tmp_path / "large.tar"
    piece = os.urandom(1 << 18)
    writer = ArchiveWriter(manifest("big", "many"))
    tracemalloc.start()
    try:
        with path.open("wb") as file:
            file.write(writer.begin())
            writer.begin_part("big")
            file.write(writer.add([EntryPiece(name="a", size=64 << 20, content=piece)]))
            for _ in range(4 * 64 - 1):
                file.write(writer.add([EntryPiece(content=piece)]))
            writer.end_part()
            writer.begin_part("many")
            for number in range(10_000):
                file.write(writer.add([whole(f"{number:09}")]))
            writer.end_part()
            file.write(writer.end())
        with path.open("rb") as file:
            reader = ArchiveReader(file)
            while reader.take():
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.entries == 10_003
    assert peak < 8 << 20


def test_a_service_that_gives_no_entries_is_named_by_whoever_writes_them():
    writer = ArchiveWriter(manifest("kv"))
    writer.begin()
    writer.begin_part("kv")
    with pytest.raises(Invalid, match="kv: 'a' comes after 'b'"):
        writer.add([whole("b"), whole("a")])


def test_an_entry_that_is_not_whole_ends_no_part():
    writer = ArchiveWriter(manifest("kv"))
    writer.begin_part("kv")
    writer.add([EntryPiece(name="a", size=2, content=b"1")])
    with pytest.raises(DataLoss, match="kv: 'a' ends 1 bytes too early"):
        writer.end_part()


def test_notes_beyond_a_hundred_are_counted(tmp_path):
    noted = [EntryPiece(name=f"{number:04}", note=f"{number} is missing") for number in range(MOST_NOTES + 7)]
    reader, _ = read(file_of(archive({"kv": noted}), tmp_path))
    assert len(reader.notes) == MOST_NOTES + 1
    assert reader.notes[-1] == "and 7 things more"


def test_a_list_of_digests_names_the_first_entry_that_differs():
    digests, others = Digests(), Digests()
    for each, second in ((digests, "b"), (others, "x")):
        each.add("one", 1, "a")
        each.add("two", 1, second)
    with pytest.raises(DataLoss, match="'two' is damaged"):
        digests.check(others.list())
