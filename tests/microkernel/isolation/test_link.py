"""The link between the kernel and a service away from its loop: both ends, without a thread or a process."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation_services import Entry, Put

from microkernel.errors import CallCancelled, Internal, Invalid, NotFound, TooBig, Unavailable
from microkernel.isolation import frames, kinds, packing
from microkernel.isolation.frame_socket import HEAD, FrameSocket
from microkernel.isolation.frames import Ask, Context, Options
from microkernel.isolation.kinds import Fields, kind_named, name_of, name_of_value
from microkernel.isolation.link import Link
from microkernel.isolation.packing import MessagePack
from microkernel.message import Call
from microkernel.trace import new_trace


class Desk:
    """Answers what a test wants."""

    def __init__(self):
        self.packing = MessagePack()
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.made = 0
        self.told = []
        self.streams_ended = []

    async def call(self, frame):
        self.began.set()
        try:
            if frame.to == "hang":
                await asyncio.Event().wait()
            if frame.to == "fail":
                raise NotFound("no such thing", remedy="look elsewhere")
            if frame.to == "crash":
                raise ZeroDivisionError("by zero")
            return frame.body, None
        finally:
            self.ended.set()

    async def stream(self, frame):
        try:
            for number in range(1000):
                self.made += 1
                yield self.packing.pack(number, "an item"), None
        finally:
            self.ended.set()

    def input(self, frame):
        self.told.append(frame)

    def stream_ended(self, number):
        self.streams_ended.append(number)

    def tell(self, frame):
        self.told.append(frame)


class Ends:
    def __init__(self, near, far, sockets, desk):
        self.near, self.far, self.sockets, self.desk = near, far, sockets, desk


@asynccontextmanager
async def linked():
    """Two ends of one socket pair."""
    loop = asyncio.get_running_loop()
    desk = Desk()
    ends, sockets = [], []
    for raw in socket.socketpair():
        link = Link(MessagePack(), desk, "the other end")
        frame_socket = link.transport = FrameSocket(link.received)
        await loop.create_unix_connection(lambda made=frame_socket: made, sock=raw)
        ends.append(link)
        sockets.append(frame_socket)
    try:
        yield Ends(*ends, sockets, desk)
    finally:
        for link, frame_socket in zip(ends, sockets, strict=True):
            await link.close(Unavailable("over"))
            frame_socket.close()
            await frame_socket.closed


def packed(value):
    return msgspec.Raw(msgspec.msgpack.encode(value))


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_an_answer_comes_to_who_has_asked():
    async with linked() as ends:
        answers = await asyncio.gather(*(ends.near.call("echo", packed(number)) for number in range(100)))
        assert [msgspec.msgpack.decode(answer.body) for answer in answers] == list(range(100))
        assert ends.far.serving == 0


@pytest.mark.parametrize(("to", "kind", "text"), [("fail", NotFound, "no such thing"), ("crash", Internal, "by zero")])
async def test_an_error_is_raised_where_the_answer_was_waited_for(to, kind, text):
    async with linked() as ends:
        with pytest.raises(kind, match=text):
            await ends.near.call(to, packed(None))


async def test_who_is_cancelled_waits_until_the_other_end_has_ended():
    async with linked() as ends:
        task = asyncio.create_task(ends.near.call("hang", packed(None)))
        await ends.desk.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends.desk.ended.is_set()
        assert ends.near._answers == {}


async def test_a_request_that_is_cancelled_before_it_is_looked_at_is_still_answered():
    async with linked() as ends:
        number = 7
        ends.far.received(Ask(number, "hang", packed(None)))
        ends.far.received(frames.Cancel(number))
        await until(lambda: ends.far.serving == 0)
        assert not ends.desk.began.is_set()


async def test_a_stream_gets_no_further_than_its_credit_and_goes_on_as_it_is_read():
    async with linked() as ends, ends.near.open("count", packed(None), 4) as items:
        first = await anext(items)
        assert msgspec.msgpack.decode(first.body) == 0
        await until(lambda: ends.desk.made == 4)
        await ends.near.call("echo", packed(None))
        assert ends.desk.made == 4
        await anext(items)
        await until(lambda: ends.desk.made == 6)


async def test_a_stream_that_is_left_has_ended_at_the_other_end():
    async with linked() as ends:
        async with ends.near.open("count", packed(None), 4) as items:
            await anext(items)
        assert ends.desk.ended.is_set()
        assert ends.desk.streams_ended == [1]
        assert ends.near._items == {}


async def test_a_lost_link_ends_everything_that_is_open_with_the_reason():
    async with linked() as ends:
        call = asyncio.create_task(ends.near.call("hang", packed(None)))
        items = ends.near.open("count", packed(None), 1)
        await anext(items)
        await ends.desk.began.wait()
        ends.near.lost(Unavailable("the process died", may_have_run=True, causes=("SIGKILL",)))
        with pytest.raises(Unavailable) as failure:
            await call
        assert failure.value.causes == ("SIGKILL",)
        with pytest.raises(Unavailable, match="the process died"):
            await anext(items)
        with pytest.raises(Unavailable) as failure:
            await ends.near.call("echo", packed(None))
        assert failure.value.may_have_run is False


async def test_what_runs_for_the_other_end_is_cancelled_when_the_link_is_lost():
    async with linked() as ends:
        task = asyncio.create_task(ends.near.call("hang", packed(None)))
        await ends.desk.began.wait()
        await ends.far.close(Unavailable("gone"))
        assert ends.desk.ended.is_set()
        assert ends.far.serving == 0
        task.cancel()
        await asyncio.wait([task])


async def test_a_stream_that_cannot_be_opened_is_told_to_who_has_asked(monkeypatch):
    def refuse(frame):
        raise Invalid("that is no pattern")

    async with linked() as ends:
        monkeypatch.setattr(ends.desk, "stream", refuse)
        with pytest.raises(Invalid, match="that is no pattern"):
            await anext(ends.near.open("count", packed(None), 4))


async def test_one_way_frames_come_in_order():
    async with linked() as ends:
        for number in range(10):
            ends.near.post(frames.Publish(f"subject.{number}", packed(number)))
        await ends.near.call("echo", packed(None))
        assert [frame.subject for frame in ends.desk.told] == [f"subject.{number}" for number in range(10)]


async def test_a_full_link_makes_producers_wait_until_it_is_read():
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near_end, far_end = FrameSocket(lambda _: None), FrameSocket(lambda _: None)
    await loop.create_unix_connection(lambda: near_end, sock=near)
    for _ in range(16):  # twice what makes it full
        near_end.post(frames.Send("x", packed(b"x" * 2**20)))
    assert near_end.is_full
    waits = asyncio.create_task(near_end.room())
    await asyncio.sleep(0)
    assert not waits.done()
    await loop.create_unix_connection(lambda: far_end, sock=far)
    async with asyncio.timeout(10):
        await waits
    for end in (near_end, far_end):
        end.abort()
        await end.closed


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", HEAD.pack(3) + b"\x93\x01\x02", HEAD.pack(1) + b"\xc1"])
async def test_what_is_no_frame_ends_the_link_and_says_so(garbage):
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    end = FrameSocket(lambda _: None)
    await loop.create_unix_connection(lambda: end, sock=near)
    with far:
        far.send(garbage)
        async with asyncio.timeout(10):
            await end.closed
    assert "is not understood" in end.why


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
@settings(max_examples=100, deadline=None)
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(bodies, data):
    async def run():
        got = []
        end = FrameSocket(got.append)
        encoded = [msgspec.msgpack.encode(frames.Send("x", packed(body))) for body in bodies]
        stream = b"".join(HEAD.pack(len(each)) + each for each in encoded)
        while stream:
            cut = data.draw(st.integers(1, len(stream)))
            end.data_received(stream[:cut])
            stream = stream[cut:]
        assert [msgspec.msgpack.decode(frame.body) for frame in got] == bodies
        end.connection_lost(None)

    asyncio.run(run())


# Values


def test_what_cannot_be_sent_is_named():
    with pytest.raises(Invalid, match="the result of x cannot be sent to another process"):
        MessagePack().pack(object(), "the result of x")


def test_what_is_too_long_is_named_with_its_size(monkeypatch):
    monkeypatch.setattr(packing, "LONGEST", 2**20)
    with pytest.raises(TooBig, match=r"the result of x takes 1\.0 MiB; 1 MiB"):
        MessagePack().pack(b"x" * 2**20, "the result of x")


def test_a_value_that_is_not_of_its_declared_type_is_a_defect_with_a_name():
    made = MessagePack()
    with pytest.raises(Internal, match="the result of x is not of the type"):
        made.unpack(made.pack("text", "x"), int, "the result of x")


def test_json_text_is_a_message_too():
    made = MessagePack()
    assert made.unpack(made.pack(msgspec.Raw(b'{"key":"a"}'), "x"), Put, "x") == Put(key="a")


def test_a_type_that_cannot_be_told_apart_in_bytes_is_read_as_plain_values():
    made = MessagePack()
    assert made.unpack(made.pack({"a": 1}, "x"), Entry | Put, "x") == {"a": 1}


@pytest.mark.parametrize(
    "kind", [Entry, list[Entry], dict[str, list[Entry]], Entry | None, tuple[Entry, ...], tuple[str, int], bytes, None]
)
def test_a_type_is_found_by_its_name(kind):
    found = kind_named(msgspec.msgpack.decode(msgspec.msgpack.encode(name_of(kind))))
    assert found == (type(None) if kind is None else kind)


@pytest.mark.parametrize("kind", [Any, object, list[Any], set[object], type("Local", (msgspec.Struct,), {})])
def test_a_type_without_a_name_at_the_other_end_is_any(kind):
    assert kind_named(name_of(kind)) is Any


@pytest.mark.parametrize(
    "name", ["os:system", "nowhere:Entry", "isolation_services:os", 7, [], ["list"], ["set", "os:x"]]
)
def test_a_name_leads_to_nothing_but_types_of_values_that_are_known_already(name):
    assert kind_named(name) is Any


def test_a_value_is_named_by_what_it_is_or_else_by_what_was_declared():
    assert name_of_value(Entry("a", b""), Entry | Put) == "isolation_services:Entry"
    assert name_of_value([Entry("a", b"")], list[Entry]) == ["list", "isolation_services:Entry"]
    assert name_of_value(Entry("a", b""), Any) == "isolation_services:Entry"
    assert name_of_value({"a": 1}, Any) is None


def test_fields_of_an_unknown_type_are_items_and_attributes():
    value = kinds.as_fields({"a": {"b": [{"c": 1}]}})
    assert value == {"a": {"b": [{"c": 1}]}}
    assert value.a.b[0].c == 1
    assert msgspec.convert(Fields(key="a"), Put) == Put(key="a")
    with pytest.raises(AttributeError, match="no field 'x' among a"):
        _ = value.x


def test_a_call_crosses_with_its_urgency_its_time_and_its_trace():
    call = Call("ana", 105.0, 2, "key", "ana", new_trace(), ("a.b", "c.d"))
    sent = msgspec.msgpack.encode(Context.of(call, now=100.0))
    assert msgspec.msgpack.decode(sent, type=Context).call(now=1000.0) == msgspec.structs.replace(call, deadline=1005.0)


def test_options_are_those_of_a_call():
    options = Options(deadline=1.0, priority=0, key="k", trace=new_trace())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=Options) == options


def test_an_error_crosses_with_all_it_says():
    error = NotFound("no", remedy="yes", service="s", field="f", retry_after=1.5, may_have_run=True, causes=("why",))
    made = MessagePack()
    report = msgspec.msgpack.decode(msgspec.msgpack.encode(made.pack_error(error)))
    back = made.unpack_error(report)
    assert isinstance(back, NotFound)
    assert back.report() == error.report()


def test_a_cancelled_call_is_told_as_such():
    assert CallCancelled("x").report().code == "CANCELLED"
