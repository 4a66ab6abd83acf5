"""Entries on their way out of a service and into another one."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from portable_entries import restoring
from portable_entries import take_in as sent

from microkernel.buffers import Array
from microkernel.capability import Rights
from microkernel.errors import DataLoss, Denied, Invalid, PreconditionFailed, TooBig
from microkernel.inputs import Inputs
from microkernel.portable import (
    AHEAD,
    Entries,
    EntryPiece,
    Export,
    Import,
    Imported,
    Known,
    check_name,
    check_restoring,
    from_thread,
    read_entries,
    take_in,
)
from microkernel.service import Service, every, on, streams
from microkernel.testing import TestKernel


async def given_pieces(*pieces: EntryPiece) -> AsyncIterator[EntryPiece]:
    for piece in pieces:
        yield piece


def whole(name: str, content: bytes = b"x") -> EntryPiece:
    return EntryPiece(name=name, content=content)


class Noted:
    """Notes what it is given, and on which threads."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self.ended: list[str] = []
        self.threads: set[int] = set()

    def begin(self, name: str, size: int) -> None:
        self.name = name
        self.found[name] = b""
        self.threads.add(threading.get_ident())

    def add(self, content: bytes) -> None:
        self.found[self.name] += content

    def end(self) -> None:
        self.ended.append(self.name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/../b", "/a", "a/", "a//b", "a\\b", "a b", ".hidden", "a/.hidden", "a\0", "ü", "a" * 101,
     "a/" * 8 + "a", "-a", "a\n"],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(Invalid, match="no name of an entry"):
        check_name(name, "kv")


@given(st.text(st.sampled_from("ab./-_0 \\\0"), max_size=30))
def test_no_name_that_is_taken_has_a_part_that_leads_elsewhere(name):
    try:
        check_name(name, "kv")
    except Invalid:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in name.split("/"))


async def test_entries_come_whole_in_whatever_pieces_they_are_sent():
    noted = Noted()
    pieces = (
        EntryPiece(name="a", size=5, content=b"12"),
        EntryPiece(content=b"34"),
        EntryPiece(content=b"5"),
        whole("a/b"),
        whole("b", b""),
        EntryPiece(name="c", size=1),
        EntryPiece(content=b"6"),
    )
    entries = await take_in(given_pieces(*pieces), noted, "kv")
    assert noted.found == {"a": b"12345", "a/b": b"x", "b": b"", "c": b"6"}
    assert noted.ended == ["a", "a/b", "b", "c"]
    assert (entries.count, entries.bytes) == (4, 7)
    assert threading.get_ident() not in noted.threads
    assert await read_entries(given_pieces(*pieces), "kv", most=7) == noted.found


@pytest.mark.parametrize(
    ("pieces", "error", "why"),
    [
        ([EntryPiece(content=b"x")], Invalid, "the first piece of an entry names it"),
        ([whole("b"), whole("a")], Invalid, "'a' comes after 'b'"),
        ([whole("a"), whole("a")], Invalid, "in the order of their names"),
        ([EntryPiece(name="a", size=2, content=b"1"), whole("b")], DataLoss, "'a' ends 1 bytes too early"),
        ([EntryPiece(name="a", size=2, content=b"1")], DataLoss, "'a' ends 1 bytes too early"),
        ([EntryPiece(name="a", size=2, content=b"123")], Invalid, "more bytes than the 2"),
        ([whole("a"), EntryPiece(content=b"1")], Invalid, "more bytes than the 1"),
        ([EntryPiece(name="a", size=2, content=b"1"), EntryPiece()], Invalid, "a piece of 'a' is empty"),
        ([EntryPiece(name="a", size=-1)], Invalid, "cannot have -1 bytes"),
        ([EntryPiece(name="a", size=1 << 60)], Invalid, "cannot have"),
        ([EntryPiece(name="a", size=9, known=True)], Invalid, "without its content"),
    ],
)
async def test_what_is_no_row_of_entries_is_refused_by_name(pieces, error, why):
    for taking in (take_in(given_pieces(*pieces), Noted(), "kv"), read_entries(given_pieces(*pieces), "kv", most=99)):
        with pytest.raises(error, match=f"kv: .*{re.escape(why)}"):
            await taking


async def test_a_service_that_keeps_little_is_not_given_much():
    with pytest.raises(TooBig, match="more than 10 bytes"):
        await read_entries(given_pieces(whole("a", bytes(6)), whole("b", bytes(6))), "kv", most=10)


def test_an_entry_that_is_known_has_its_size_and_no_content():
    entries = Entries("kv", knows=True)
    entries.add(EntryPiece(name="a", size=10, digest="ab", known=True))
    entries.add(whole("b"))
    entries.finish()
    assert (entries.count, entries.bytes) == (2, 1)


def test_digests_are_known_by_their_first_bytes():
    known = Known(Export(known=Array(bytes(16) + b"a" * 16)))
    assert known.has(bytes(32))
    assert known.has(b"a" * 16 + b"b" * 16)
    assert not known.has(b"b" * 32)
    assert not Known(Export()).has(bytes(32))
    with pytest.raises(Invalid, match="17 bytes"):
        Known(Export(known=Array(bytes(17))))


async def test_a_generator_is_run_on_threads_a_step_ahead_and_closed_when_its_reader_leaves():
    told: list[str] = []

    def pieces():
        try:
            for number in range(100_000):
                told.append("made")
                yield whole(f"{number:06}", bytes(200_000))
        finally:
            told.append("closed")

    stream = from_thread(pieces())
    assert (await anext(stream)).name == "000000"
    assert told == ["made"] * 6  # a MiB and a bit
    await stream.aclose()
    assert told[-1] == "closed"


async def test_what_a_generator_raises_reaches_the_reader():
    def pieces():
        yield whole("a")
        raise DataLoss("the shelf is empty")

    with pytest.raises(DataLoss, match="shelf"):
        [piece async for piece in from_thread(pieces())]


async def test_a_reader_that_is_cancelled_waits_for_the_thread_and_closes_the_generator():
    began, go = threading.Event(), threading.Event()
    told: list[str] = []

    def pieces():
        try:
            began.set()
            go.wait(10)
            yield whole("a")
        finally:
            told.append("closed")

    async def read() -> None:
        async for _ in from_thread(pieces()):
            pass

    reading = asyncio.create_task(read())
    await asyncio.to_thread(began.wait)
    reading.cancel()
    await asyncio.sleep(0)
    reading.cancel()
    go.set()
    await asyncio.wait([reading])
    assert told == ["closed"]


class Shelf(Service):
    """Keeps things, and shows what of it runs."""

    name = "shelf"
    needs = ("table",)
    essential = True
    began = False

    async def start(self) -> None:
        Shelf.began = True

    async def ready(self) -> None:
        Shelf.began = True

    @every(0.001)
    async def tick(self) -> None:
        Shelf.began = True

    @on("kernel.*")
    async def hear(self, _) -> None:
        Shelf.began = True

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:
        check_restoring(self)
        entries = await read_entries(inputs, self.name, most=100)
        yield Imported(notes=tuple(entries))


async def test_on_a_node_that_is_being_restored_nothing_of_a_service_runs_but_what_takes_in(tmp_path):
    async with restoring(tmp_path, Shelf) as port:
        assert (await sent(port, "shelf", [whole("a"), whole("b")])).notes == ("a", "b")
        await asyncio.sleep(0.01)
    assert not Shelf.began
    assert not Shelf.restoring


class Table(Service):
    """What the shelf stands on."""

    name = "table"


async def test_a_node_that_runs_takes_nothing_in():
    async with TestKernel(Table, Shelf) as system:
        with pytest.raises(PreconditionFailed, match="only while a node is restored"):
            await sent(system, "shelf", [whole("a")])
        as_ana = system.kernel.port.narrow(caller="session ana", rights=Rights(), user="ana")
        for to in ("shelf.import", "kernel.import", "kernel.export"):
            with pytest.raises(Denied, match="only root"):
                await anext(as_ana.stream(to))


async def test_which_services_have_something_to_keep_is_known_also_of_those_that_are_down():
    class Keeps(Service):
        name = "keeps"

        async def start(self) -> None:
            raise RuntimeError("no")

        @streams
        async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
            yield whole("a")

    async with TestKernel(Table, Keeps, wait_ready=False) as system:
        services = {each.name: each.exports for each in await system.call("kernel.services")}
    assert services == {"kernel": True, "table": False, "keeps": True}
