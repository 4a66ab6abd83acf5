"""A volume that leaves and comes in again is the same one; what is none is refused."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from portable_entries import contents_of

from microkernel.buffers import Array
from microkernel.errors import DataLoss, MicrokernelError, NotFound, PreconditionFailed
from microkernel.portable import PIECE, EntryPiece, Export, Known, from_thread, take_in
from services.filesystem.messages import FileQuota
from services.filesystem.paths import ROOT, parse
from services.filesystem.restored import restored
from services.filesystem.stored.access import Rights
from services.filesystem.stored.database import Entry
from services.filesystem.stored.imported import ImportedVolume
from services.filesystem.stored.settings import VolumeSettings
from services.filesystem.stored.upkeep import Upkeep
from services.filesystem.stored.versions import Versions
from services.filesystem.stored.volume import StoredVolume

TABLES = {
    "access": "node, user, rights",
    "counter": "name, value",
    "entry": "*",
    "past": "parent, key, name, node, folder, owner, size, content, at, by, action, born, seal, died, died_at, died_by,"
    " ending",
    "content": "id, digest, size, inline, sums",
    "snapshot": "*",
    "quota": "*",
    "indexed": "*",
}
FOLDERS = {"data": {"*": Rights.READ | Rights.ADD}, "home": {"*": Rights.READ}}
NAMES = ("a", "B", "ß", "日本", "c.txt")
SIZES = (0, 1, 5_000, 17_000, 64 << 10, (64 << 10) + 1, PIECE, 700_000)


async def opened(folder: Path, **said) -> StoredVolume:
    volume = StoredVolume(ROOT, folder, VolumeSettings(**said), first=FOLDERS, own_folders=frozenset({"home"}))
    await volume.open()
    return volume


async def some_history(volume: StoredVolume, chance: random.Random, changes: int = 120) -> None:
    """Changes of all kinds, by three users."""
    for _ in range(changes):
        path, to = (parse(f"/data/{chance.choice(NAMES)}/{chance.choice(NAMES)}") for _ in range(2))
        user = chance.choice([None, "ann", "bob"])
        size = chance.choice(SIZES)
        content = random.Random(chance.randrange(8)).randbytes(size)
        kind = chance.choice(["write", "write", "write", "copy", "rename", "remove", "make", "back", "home", "collect"])
        try:
            if kind == "write":
                await volume.write(path, content, user)
            elif kind == "copy":
                await volume.copy(path, to, user)
            elif kind == "rename":
                await volume.rename(chance.choice([path, path.parent]), to, user, replace=True)
            elif kind == "remove":
                await volume.remove(chance.choice([path, path.parent]), user, recursive=True)
            elif kind == "make":
                await volume.make_folder(path, user, exist_ok=True)
            elif kind == "home":
                await volume.write(parse(f"/home/{user or 'eve'}/{path.name}"), content, user)
            elif kind == "back":
                await Versions(volume).roll_back(path.parent, chance.randrange(1, 100), None)
            else:
                await Upkeep(volume).collect(chance.random() * 0.05)
        except MicrokernelError:
            continue
    await Versions(volume).take("kept", None)
    await Upkeep(volume).set_quota(FileQuota(owner="ann", limit_bytes=1 << 30))
    await Upkeep(volume).set_quota(FileQuota(owner="bob", limit_bytes=None))
    await volume.change(lambda changes: changes.db.execute("INSERT INTO indexed VALUES (1)"))


def pieces_of(volume: StoredVolume, known: bytes | None = None) -> list[EntryPiece]:
    asked = Export(known=None if known is None else Array(known))
    return list(volume.exported(Known(asked), None))


def put_in(folder: Path, pieces) -> tuple[str, ...]:
    async def given():
        for piece in pieces:
            yield piece

    return asyncio.run(restored(folder, given(), "filesystem"))


async def put_in_now(folder: Path, pieces) -> tuple[str, ...]:
    return await asyncio.to_thread(put_in, folder, pieces)


def tables_of(folder: Path) -> dict[str, list]:
    with closing(sqlite3.connect(folder / "names.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = {
            table: sorted(db.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)
            for table, columns in TABLES.items()
        }
        found["usage"] = sorted(db.execute("SELECT owner, bytes, versions FROM usage WHERE versions > 0").fetchall())
        return found


@pytest.mark.parametrize("seed", range(6))
async def test_a_volume_comes_in_as_it_left_with_names_versions_contents_rights_quotas_and_what_owners_use(
    tmp_path, seed
):
    volume = await opened(tmp_path / "old")
    await some_history(volume, random.Random(seed))
    pieces = pieces_of(volume)
    await volume.close()
    assert await put_in_now(tmp_path / "new", pieces) == ()
    assert tables_of(tmp_path / "new") == tables_of(tmp_path / "old")
    assert list((tmp_path / "new" / "contents" / "partial").iterdir()) == []
    again = await opened(tmp_path / "new")
    assert (await Upkeep(again).scrub()).damages == ()
    assert pieces_of(again) == pieces
    before = await again.look(lambda sight: sight.names.count("version"))
    assert (await again.write(parse("/data/new"), b"1", None)).version == before + 1
    await again.close()


async def test_entries_come_in_the_order_of_their_names_and_take_some_kibibytes_each(tmp_path):
    volume = await opened(tmp_path)

    def fill(changes):
        for number in range(5_000):
            changes.make_folder(parse(f"/data/{number}"), None)

    await volume.change(fill)
    await volume.write(parse("/data/large"), bytes(3 * PIECE + 1), None)
    pieces = pieces_of(volume)
    names = [piece.name for piece in pieces if piece.name]
    assert names == sorted(set(names))
    assert len([name for name in names if name.startswith("rows/entry/")]) > 3
    assert max(len(piece.content) for piece in pieces) == PIECE
    await volume.close()


async def test_what_is_written_removed_and_collected_meanwhile_is_not_seen_and_takes_nothing_away(tmp_path):
    volume = await opened(tmp_path / "old")
    large = os.urandom(400_000)
    for name in "abc":
        await volume.write(parse(f"/data/{name}"), large + name.encode(), None)
    await volume.write(parse("/data/small"), b"before", None)
    version = await volume.look(lambda sight: sight.names.count("version"))
    stream = from_thread(volume.exported(Known(Export()), None))
    async with aclosing(stream):
        pieces = [await anext(stream)]
        for name in "abc":
            await volume.remove(parse(f"/data/{name}"), None, recursive=False)
        await volume.write(parse("/data/small"), b"after", None)
        await volume.write(parse("/data/d"), large, None)
        assert (await Upkeep(volume).collect(0.0)).contents == 4
        assert len(list((tmp_path / "old" / "contents").glob("??/*"))) == 4
        pieces += [piece async for piece in stream]
    assert len(list((tmp_path / "old" / "contents").glob("??/*"))) == 1, "what was held is gone once it has left"
    await volume.close()
    await put_in_now(tmp_path / "new", pieces)
    again = await opened(tmp_path / "new")
    assert await again.look(lambda sight: sight.names.count("version")) == version
    assert sorted(each.path for each in await again.list(parse("/data"), None)) == [
        "/data/a", "/data/b", "/data/c", "/data/small"
    ]  # fmt: skip
    for name in "abc":
        found = b"".join([piece async for piece in again.read(parse(f"/data/{name}"), None, 0, None)])
        assert found == large + name.encode()
    assert [piece async for piece in again.read(parse("/data/small"), None, 0, None)] == [b"before"]
    await again.close()


async def test_an_export_that_is_left_early_lets_go_of_what_it_held(tmp_path):
    volume = await opened(tmp_path)
    await volume.write(parse("/data/a"), os.urandom(2 << 20), None)
    stream = from_thread(volume.exported(Known(Export()), None))
    await anext(stream)
    await volume.remove(parse("/data/a"), None, recursive=False)
    await Upkeep(volume).collect(0.0)
    assert len(list((tmp_path / "contents").glob("??/*"))) == 1
    await stream.aclose()
    assert list((tmp_path / "contents").glob("??/*")) == []
    await volume.close()


async def test_a_volume_that_is_written_to_all_the_time_leaves_as_it_was_at_one_version(tmp_path):
    """Two files are changed in turn, each to the same number: at no moment they differ by more than one."""
    volume = await opened(tmp_path / "old")
    for name in "ab":
        await volume.write(parse(f"/data/{name}"), b"0", None)
    over = asyncio.Event()

    async def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            for name in "ab":
                await volume.write(parse(f"/data/{name}"), b"%d" % number, None)
            await volume.write(parse("/data/large"), random.Random(number).randbytes(300_000), None)
            await Upkeep(volume).collect(0.0)

    writing = asyncio.create_task(write())
    try:
        for turn in range(5):
            pieces = [piece async for piece in from_thread(volume.exported(Known(Export()), None))]
            await put_in_now(tmp_path / str(turn), pieces)
            again = await opened(tmp_path / str(turn))
            assert (await Upkeep(again).scrub()).damages == ()
            first, second = [
                int(b"".join([piece async for piece in again.read(parse(f"/data/{name}"), None, 0, None)]))
                for name in "ab"
            ]
            assert first - second in {0, 1}
            await again.close()
    finally:
        over.set()
        await writing
    await volume.close()


async def test_contents_that_whoever_asks_has_already_come_without_their_bytes(tmp_path):
    volume = await opened(tmp_path)
    for name, content in (("a", bytes(400_000)), ("b", b"small"), ("c", b"other")):
        await volume.write(parse(f"/data/{name}"), content, None)
    first = pieces_of(volume)
    had = {piece.digest: piece for piece in first if piece.name.startswith("contents/")}
    known = b"".join(bytes.fromhex(digest)[:16] for digest in had)
    await volume.write(parse("/data/d"), b"new", None)
    second = [piece for piece in pieces_of(volume, known) if piece.name.startswith("contents/")]
    assert [(piece.name, piece.size, piece.known, piece.content) for piece in second[:3]] == [
        (piece.name, piece.size or len(piece.content), True, b"") for piece in had.values()
    ]
    assert [(piece.known, piece.content) for piece in second[3:]] == [(False, b"new")]
    await volume.close()


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing", "flipped row"])
async def test_a_damaged_content_does_not_keep_the_others_and_is_known_as_damaged_where_it_comes_in(tmp_path, harm):
    volume = await opened(tmp_path / "old")
    large = random.Random(1).randbytes(3 * PIECE)
    await volume.write(parse("/data/bad"), large if harm != "flipped row" else b"small", None)
    await volume.write(parse("/data/good"), large[::-1], None)
    copied = await opened(tmp_path / "old", mirror=str(tmp_path / "mirror"))
    await Upkeep(copied).scrub()
    await copied.close()
    content = await volume.content(1)
    if harm == "flipped row":
        await volume.change(
            lambda changes: changes.db.execute("UPDATE content SET inline = ? WHERE id = 1", (b"Small",))
        )
    else:
        file = tmp_path / "old" / "contents" / content.file
        file.chmod(0o600)
        if harm == "missing":
            file.unlink()
        elif harm == "cut":
            os.truncate(file, PIECE)
        else:
            file.write_bytes(large[:PIECE] + b"!" + large[PIECE + 1 :])
    pieces = pieces_of(volume)
    await volume.close()
    assert [piece.note for piece in pieces if piece.note] == [
        "1 contents are damaged, and not in the backup: mk fs scrub lists them"
    ]
    (note,) = await put_in_now(tmp_path / "new", pieces)
    assert "1 contents were damaged" in note
    again = await opened(tmp_path / "new", mirror=str(tmp_path / "mirror"))
    with pytest.raises((DataLoss, NotFound)):
        [piece async for piece in again.read(parse("/data/bad"), None, 0, None)]
    assert b"".join([piece async for piece in again.read(parse("/data/good"), None, 0, None)]) == large[::-1]
    (damage,) = (await Upkeep(again).scrub()).damages
    assert damage.paths == ("/data/bad",)
    assert damage.repaired, "by what it was, not by what it had become"
    assert (await Upkeep(again).scrub()).damages == ()
    await again.close()


async def test_a_damaged_row_is_named_and_nothing_leaves_that_would_pass_for_whole(tmp_path):
    volume = await opened(tmp_path)
    await volume.write(parse("/data/a"), b"1", None)
    await volume.change(lambda changes: changes.db.execute("UPDATE entry SET owner = 'eve' WHERE name = 'a'"))
    with pytest.raises(DataLoss, match="the row of 'a'"):
        pieces_of(volume)
    await volume.close()


def test_a_folder_with_a_volume_takes_none_in(tmp_path, left):
    put_in(tmp_path, left)
    with pytest.raises(PreconditionFailed, match="has a volume already"):
        put_in(tmp_path, left)


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> list[EntryPiece]:
    """What a small volume gives."""
    folder = tmp_path_factory.mktemp("volume")

    async def fill() -> list[EntryPiece]:
        volume = await opened(folder)
        await volume.write(parse("/data/f/a"), b"1", "ann")
        await volume.write(parse("/data/f/a"), bytes(70_000), "ann")
        await volume.write(parse("/data/g"), b"22", None)
        await Versions(volume).take("kept", None)
        pieces = pieces_of(volume)
        await volume.close()
        return pieces

    return asyncio.run(fill())


def changed(pieces: list[EntryPiece], entry: str, change) -> list[EntryPiece]:
    """The entries, one of them with its lines changed; None leaves it out."""
    found = contents_of(pieces)
    name = next(name for name in found if name.startswith(entry))
    lines = [json.loads(line) for line in found[name].splitlines()]
    lines = change(lines)
    if lines is None:
        del found[name]
    else:
        found[name] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return [EntryPiece(name=each, content=found[each]) for each in sorted(found)]


def each_line(**fields):
    return lambda lines: [line | fields for line in lines]


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("rows/entry/", each_line(name="../../etc")),
        ("rows/entry/", each_line(name="a/b")),
        ("rows/entry/", each_line(name="")),
        ("rows/entry/", each_line(name="..")),
        ("rows/entry/", each_line(name="nul\0")),
        ("rows/entry/", each_line(name="x" * 300)),
        ("rows/entry/", each_line(parent=77)),
        ("rows/entry/", each_line(parent=2)),
        ("rows/entry/", each_line(node=3)),
        ("rows/entry/", each_line(node=1)),
        ("rows/entry/", each_line(node=99)),
        ("rows/entry/", each_line(node=1 << 63)),
        ("rows/entry/", each_line(content=77)),
        ("rows/entry/", each_line(content=None)),
        ("rows/entry/", each_line(size=3)),
        ("rows/entry/", each_line(size=-3)),
        ("rows/entry/", each_line(folder=True)),
        ("rows/entry/", each_line(folder=False)),
        ("rows/entry/", each_line(born=1000)),
        ("rows/entry/", each_line(owner=None)),
        ("rows/entry/", each_line(owner="x" * 2000)),
        ("rows/entry/", each_line(at="now")),
        ("rows/entry/", each_line(more=1)),
        ("rows/entry/", lambda lines: [*lines, lines[0]]),
        ("rows/entry/", lambda lines: [*lines, {}]),
        ("rows/entry/", lambda lines: None),
        ("rows/past/", each_line(died=1000)),
        ("rows/past/", each_line(died=1)),
        ("rows/past/", each_line(content=2)),
        ("rows/access/", each_line(rights=8)),
        ("rows/access/", lambda lines: lines * 2),
        ("rows/snapshot/", each_line(version=1000)),
        ("rows/snapshot/", each_line(name="../x")),
        ("rows/snapshot/", each_line(name="x\n")),
        ("volume.json", each_line(format=2)),
        ("volume.json", each_line(version=1)),
        ("volume.json", each_line(version=0)),
        ("volume.json", each_line(node=2)),
        ("volume.json", each_line(horizon=1000)),
        ("volume.json", lambda lines: []),
        ("volume.json", lambda lines: None),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(tmp_path, left, entry, change):
    with pytest.raises(DataLoss):
        put_in(tmp_path, changed(left, entry, change))


@pytest.mark.parametrize(
    "entry",
    [
        EntryPiece(name="contents/9999999999999999999", content=b"x"),
        EntryPiece(name="contents/1", content=b"x"),
        EntryPiece(name="contents/0000000000000000001x", content=b"x"),
        EntryPiece(name="rows/content/000000000.jsonl", content=b"{}\n"),
        EntryPiece(name="rows/entry/1.jsonl", content=b"\xff\n"),
        EntryPiece(name="zzz", content=b"x"),
        EntryPiece(name="mounts.json", content=b'{"/mnt/x": {"url": "nowhere"}}'),
        EntryPiece(name="mounts.json", content=b'{"../x": {"url": "file:///x"}}'),
        EntryPiece(name="mounts.json", content=b'{"/mnt/x": {"url": "s3://b", "options": {"secret": "abcdef"}}}'),
        EntryPiece(name="damaged/0.jsonl", content=b'{"id": 1, "digest": "zz", "size": 1}\n'),
        EntryPiece(name="rows/entry/1.jsonl", size=3 << 20),
    ],
)
def test_an_entry_that_no_volume_has_is_refused(tmp_path, left, entry):
    with pytest.raises(MicrokernelError):
        put_in(tmp_path, sorted([*left, entry], key=lambda piece: piece.name))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_volume_of_which_some_entry_is_wild_is_refused_or_is_one(tmp_path_factory, left, data):
    folder = tmp_path_factory.mktemp("wild")
    found = contents_of(left)
    name = data.draw(st.sampled_from(sorted(found)))
    content = found[name]
    place = data.draw(st.integers(0, len(content)))
    wild = data.draw(st.one_of(st.binary(max_size=20), st.text(max_size=20).map(lambda text: text.encode())))
    found[name] = content[:place] + wild + content[place + data.draw(st.integers(0, 20)) :]
    try:
        put_in(folder, [EntryPiece(name=each, content=found[each]) for each in sorted(found)])
    except MicrokernelError:
        return

    async def look() -> None:
        volume = await opened(folder)
        assert (await Upkeep(volume).scrub()).damages == ()
        for each in await volume.list(ROOT, None):
            await volume.stat(parse(each.path), None)
        await volume.close()

    asyncio.run(look())


def test_folders_that_are_in_one_another_are_refused(tmp_path, left):
    def circle(lines):
        folders = [line for line in lines if line["name"] in {"home", "f"}]
        for line, other in zip(folders, reversed(folders), strict=True):
            line["parent"] = other["node"]
        return lines

    with pytest.raises(DataLoss, match="is in itself"):
        put_in(tmp_path, changed(left, "rows/entry/", circle))


async def test_names_that_lead_in_a_circle_lead_nowhere_and_end(tmp_path):
    volume = await opened(tmp_path)

    def circle(changes):
        for node, parent in ((77, 78), (78, 77)):
            fields = (parent, "x", "x", node, True, "root", 0, None, 0.0, "root", "made", 1)
            changes.insert(Entry(*fields).sealed())

    await volume.change(circle)
    assert await volume.look(lambda sight: sight.names.path_of(77)) is None
    await volume.close()


async def test_what_is_not_the_whole_of_a_volume_leaves_no_file_open(tmp_path, left):
    volume = ImportedVolume(tmp_path)

    async def half():
        yield EntryPiece(name="contents/0000000000000000001", size=1 << 20, content=bytes(1 << 18))

    with pytest.raises(DataLoss, match="too early"):
        await take_in(half(), volume, "filesystem")
    volume.close()
    assert list((tmp_path / "contents" / "partial").iterdir()) == []
