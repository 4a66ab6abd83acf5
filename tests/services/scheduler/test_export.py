"""Named maps leave a node half done, and end on another one."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from portable_entries import contents_of, exported, restoring, take_in

from microkernel.capability import Rights
from microkernel.errors import DataLoss, Denied, MicrokernelError, PreconditionFailed
from microkernel.portable import EntryPiece
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.scheduler.mapping import journals
from services.scheduler.mapping.journal import Journal, Record, journal_path
from services.scheduler.mapping.work import Outcome
from services.scheduler.service import Scheduler


def journal_in(folder, *, owner: str = "ann", name: str = "m", done: int = 3) -> Journal:
    journal = Journal(journal_path(folder, owner, name), b"job", {"tasks": 5})
    journal.commit([record(number) for number in range(done)])
    return journal


def record(number: int) -> Record:
    return Record(number, number + 1, Outcome(values=[number], failed={}, seconds=0.1))


def pieces(found: dict[str, bytes]) -> list[EntryPiece]:
    return [EntryPiece(name=name, content=found[name]) for name in sorted(found)]


async def test_a_map_that_was_half_done_ends_elsewhere_with_each_item_once(tmp_path):
    noted = tmp_path / "noted"
    noted.mkdir()
    asked = {"function": "mapped:noted", "items": list(range(20)), "tasks": 20, "name": "nightly", "owner": "ann"}
    asked["arguments"] = {"folder": str(noted)}
    async with TestKernel(Devices, Scheduler) as system:
        await system.call("devices.list")
        async with system.stream("scheduler.imap", asked) as stream:
            first = [await anext(stream) for _ in range(8)]
            entries = await exported(system, "scheduler")
    done = {int(path.name.partition(".")[0]) for path in noted.iterdir()}
    before = len(list(noted.iterdir()))
    async with restoring(tmp_path / "other", Scheduler) as port:
        assert (await take_in(port, "scheduler", entries)).notes == ()
    async with TestKernel(Devices, Scheduler, root=tmp_path / "other") as other:
        await other.call("devices.list")
        assert await other.call("scheduler.map", asked) == list(range(20))
        assert await exported(other, "scheduler") == [], "what has ended is kept no more"
    again = len(list(noted.iterdir())) - before
    assert {piece.start for piece in first} <= done
    assert again <= 20 - 8


async def test_a_journal_that_grows_leaves_with_whole_records(tmp_path):
    journal = journal_in(tmp_path)
    path = journal_path(tmp_path, "ann", "m")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[-9:-3])  # a record of which a part is written
    entries = contents_of(journals.exported(tmp_path))
    journal.close()
    assert entries["maps/000000.journal"] == whole
    assert json.loads(entries["maps/index.json"]) == [{"number": 0, "owner": "ann", "name": "m"}]


def test_a_journal_that_is_added_to_all_the_time_leaves_as_it_was_at_one_moment(tmp_path):
    journal = journal_in(tmp_path / "old", done=0)
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            journal.commit([record(number)])
            number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for turn in range(10):
            entries = contents_of(journals.exported(tmp_path / "old"))
            put_in(tmp_path / str(turn), entries)
            again = Journal(journal_path(tmp_path / str(turn), "ann", "m"), b"job", {})
            starts = [each.start for each in again.records()]
            again.close()
            assert starts == list(range(len(starts)))
    finally:
        over.set()
        writing.join()
    journal.close()


def put_in(folder, found: dict[str, bytes]) -> None:
    taker = journals.ImportedJournals(folder)
    try:
        for name in sorted(found):
            taker.begin(name, len(found[name]))
            taker.add(found[name])
            taker.end()
        taker.finish()
    finally:
        taker.close()


def test_maps_of_whatever_owner_come_in_under_their_names(tmp_path):
    for owner in ("root", "ann@example.org", "ü" * 50):
        journal_in(tmp_path / "old", owner=owner, name="m.1").close()
    put_in(tmp_path / "new", contents_of(journals.exported(tmp_path / "old")))
    for owner in ("root", "ann@example.org", "ü" * 50):
        old, new = (journal_path(tmp_path / each, owner, "m.1").read_bytes() for each in ("old", "new"))
        assert old == new
    assert not (tmp_path / "new" / "maps" / "incoming").exists()


def test_a_journal_that_is_there_is_not_replaced(tmp_path):
    journal_in(tmp_path).close()
    with pytest.raises(PreconditionFailed, match="already"):
        put_in(tmp_path, contents_of(journals.exported(tmp_path)))


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("maps")
    journal_in(folder).close()
    return contents_of(journals.exported(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"maps/index.json": b"[]"},
        {"maps/index.json": b"{"},
        {"maps/index.json": b'[{"number": 1, "owner": "ann", "name": "m"}]'},
        {"maps/index.json": b'[{"number": 0, "owner": "ann", "name": "../m"}]'},
        {"maps/index.json": b'[{"number": 0, "owner": "ann", "name": "m\\n"}]'},
        {"maps/index.json": b'[{"number": 0, "owner": "%s", "name": "m"}]' % (b"x" * 200)},
        {"maps/index.json": b'[{"number": -1, "owner": "ann", "name": "m"}]'},
        {"maps/000000.journal": b"no journal"},
        {"maps/000000.journal": b"mkmap\x01\n\x05\0\0\0\0\0\0\0short"},
        {"maps/000001.journal": b""},
        {"maps/x.journal": b""},
        {"other": b""},
    ],
)
def test_what_are_no_journals_is_refused(tmp_path, left, change):
    with pytest.raises(MicrokernelError):
        put_in(tmp_path, left | change)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_wild_bytes_come_in_as_journals_or_not_at_all(tmp_path_factory, left, data):
    folder = tmp_path_factory.mktemp("wild")
    name = data.draw(st.sampled_from(sorted(left)))
    place = data.draw(st.integers(0, len(left[name])))
    wild = left[name][:place] + data.draw(st.binary(max_size=20)) + left[name][place + data.draw(st.integers(0, 9)) :]
    try:
        put_in(folder, left | {name: wild})
    except MicrokernelError:
        return
    (path,) = (folder / "maps").glob("*/*.journal")
    assert path.read_bytes() == (wild if name.endswith(".journal") else left["maps/000000.journal"])


async def test_only_root_takes_along_what_maps_have_done():
    async with TestKernel(Devices, Scheduler) as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        with pytest.raises(Denied, match="only root"):
            await anext(ann.stream("scheduler.export"))
        with pytest.raises(PreconditionFailed, match="only while a node is restored"):
            await take_in(system, "scheduler", [])


def test_a_missing_journal_is_named(tmp_path, left):
    with pytest.raises(DataLoss, match="the map 'm' is missing"):
        put_in(tmp_path, {"maps/index.json": left["maps/index.json"]})
