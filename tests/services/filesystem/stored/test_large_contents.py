"""Large contents between the loop and the threads: in order, in bounds, and never half."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from microkernel.errors import DataLoss, PreconditionFailed
from services.filesystem.paths import ROOT, TreePath
from services.filesystem.stored import inward, outward
from services.filesystem.stored.contents import PART, Content, ContentFiles, ContentMemory, digest_of
from services.filesystem.stored.inward import Inward
from services.filesystem.stored.outward import Outward
from services.filesystem.stored.settings import VolumeSettings
from services.filesystem.stored.volume import StoredVolume

MIB = 1 << 20


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Disk:
    """A writer that goes on when it is let, and counts."""

    def __init__(self, fails_at: int | None = None, sync_fails: bool = False) -> None:
        self.go = threading.Event()
        self.pieces: list[bytes] = []
        self.calls: list[str] = []
        self.order: list[Disk] = []  # who wrote, where several are looked at
        self.abandoned = False
        self._fails_at, self._sync_fails = fails_at, sync_fails

    def write(self, pieces):
        assert self.go.wait(10)
        if self._fails_at is not None and len(self.pieces) >= self._fails_at:
            raise PreconditionFailed("the disk is full")
        self.pieces += pieces
        self.order.append(self)

    def sync(self):
        self.calls.append("sync")
        if self._sync_fails:
            raise PreconditionFailed("the disk has failed")

    def finish(self):
        self.calls.append("finish")
        whole = b"".join(self.pieces)
        return Content(digest_of(whole), len(whole))

    def abandon(self):
        self.abandoned = True


def shelf(contents: bytes) -> tuple[ContentMemory, Content]:
    """A store with one content."""
    store = ContentMemory()
    writer = store.begin()
    writer.write([contents])
    return store, writer.finish()


async def lay_down(way_in: Inward, pieces: int) -> Content:
    for _ in range(pieces):
        await way_in.write([bytes(MIB)])
    return await way_in.finish()


async def all_of(out: Outward) -> bytes:
    found = []
    while piece := await out.next():
        found.append(piece)
    await out.close()
    return b"".join(found)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 3 * MIB), min_size=1, max_size=8), data=st.data())
def test_what_goes_in_in_any_pieces_comes_out_in_any_range(tmp_path_factory, sizes, data):
    async def there_and_back() -> None:
        store = ContentFiles(tmp_path_factory.mktemp("contents"))
        store.open_store()
        whole = b"".join(number.to_bytes(1, "little") * size for number, size in enumerate(sizes, 1))
        with ThreadPoolExecutor(4) as threads:
            way_in = Inward(store.begin(), threads)
            place = 0
            for size in sizes:
                await way_in.write([whole[place : place + size]])
                place += size
            content = await way_in.finish()
            assert (content.size, content.digest) == (len(whole), digest_of(whole))
            start = data.draw(st.integers(0, len(whole)))
            stop = data.draw(st.integers(start, len(whole)))
            assert await all_of(Outward(store.open(content), start, stop, threads)) == whole[start:stop]

    asyncio.run(there_and_back())


async def test_who_writes_faster_than_the_disk_waits(threads):
    disk = Disk()
    way_in = Inward(disk, threads)
    laid = 0

    async def lay() -> None:
        nonlocal laid
        for _ in range(32):
            await way_in.write([bytes(MIB)])
            laid += 1

    laying = asyncio.create_task(lay())
    await asyncio.sleep(0.05)
    assert laid == inward.AHEAD // MIB
    disk.go.set()
    await laying
    assert (await way_in.finish()).size == 32 * MIB


async def test_a_piece_that_cannot_be_written_is_told_to_who_lays_the_next_ones_down(threads):
    disk = Disk(fails_at=2)
    disk.go.set()
    way_in = Inward(disk, threads)
    with pytest.raises(PreconditionFailed, match="full"):
        await lay_down(way_in, 100)
    with pytest.raises(PreconditionFailed, match="full"):
        await way_in.finish()


async def test_a_sync_that_failed_is_told_though_the_disk_tells_it_once(threads):
    disk = Disk(sync_fails=True)
    disk.go.set()
    way_in = Inward(disk, threads)
    with pytest.raises(PreconditionFailed, match="failed"):
        await lay_down(way_in, inward.SYNC // MIB + 1)
    assert "finish" not in disk.calls


async def test_what_is_abandoned_is_let_go_once_the_thread_is_through(threads):
    disk = Disk()
    way_in = Inward(disk, threads)
    await way_in.write([b"one"])
    await way_in.write([b"two"])
    while not way_in._lying or len(way_in._lying) > 1:  # the thread stands in the first write
        await asyncio.sleep(0)
    letting_go = asyncio.create_task(way_in.abandon())
    await asyncio.sleep(0.02)
    assert not disk.abandoned
    disk.go.set()
    await letting_go
    assert disk.abandoned
    assert disk.pieces == [b"one"]


async def test_one_long_content_does_not_keep_the_others_from_a_thread(monkeypatch):
    monkeypatch.setattr(inward, "TURN", 2 * MIB)
    with ThreadPoolExecutor(1) as one_thread:
        order: list[Disk] = []
        first, second = Disk(), Disk()
        for disk in (first, second):
            disk.order = order
        long, short = Inward(first, one_thread), Inward(second, one_thread)
        for _ in range(8):
            await long.write([bytes(MIB)])
        await short.write([bytes(MIB)])
        first.go.set()
        second.go.set()
        await short.finish()
        await long.finish()
        assert order == [first, first, second, *[first] * 6]


class SlowReader:
    """A reader that counts what it was asked for."""

    def __init__(self, damaged_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.closed = False
        self._damaged_at = damaged_at

    def read(self, start, stop):
        assert not self.closed
        self.asked.append(start)
        if self._damaged_at is not None and start <= self._damaged_at < stop:
            raise DataLoss(f"bytes {start} to {stop} are damaged")
        return bytes(stop - start)

    def close(self):
        self.closed = True


async def test_no_more_is_read_than_may_lie_ready(threads):
    reader = SlowReader()
    out = Outward(reader, 0, 100 * MIB, threads)
    assert len(await out.next()) == MIB
    await asyncio.sleep(0.05)
    assert len(reader.asked) <= outward.AHEAD + 1
    await out.close()
    assert reader.closed


async def test_what_was_read_before_a_damaged_part_comes_before_the_error(threads):
    out = Outward(SlowReader(damaged_at=5 * MIB), 0, 20 * MIB, threads)
    for _ in range(5):
        assert len(await out.next()) == MIB
    with pytest.raises(DataLoss, match=f"bytes {5 * MIB} to"):
        await out.next()
    await out.close()


async def test_a_content_that_ends_before_a_batch_is_full_is_given_out(threads):
    store, content = shelf(bytes(range(256)) * 8192)
    assert len(await all_of(Outward(store.open(content), 0, content.size, threads))) == content.size
    assert await all_of(Outward(store.open(content), 7, 7, threads)) == b""


async def test_who_stops_in_the_middle_leaves_the_reader_closed(threads):
    reader = SlowReader()
    out = Outward(reader, 0, 100 * MIB, threads)
    taking = asyncio.create_task(all_of(out))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await out.close()
    assert reader.closed


async def test_a_disk_that_cannot_be_read_is_damage_that_names_the_file(tmp_path, monkeypatch):
    volume = StoredVolume(ROOT, tmp_path, VolumeSettings())
    await volume.open()
    try:
        await volume.write(TreePath(("a",)), bytes(3 * PART), None)

        def failing(*_: int) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.pread", failing)
        with pytest.raises(DataLoss, match="/a: bytes 0 to"):
            async for _ in volume.read(TreePath(("a",)), None, 0, None):
                pass
    finally:
        monkeypatch.undo()
        await volume.close()
