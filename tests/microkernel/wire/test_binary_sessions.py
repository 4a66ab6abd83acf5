"""Both sessions with buffers and long messages between them, without a loop or a socket."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.buffers import Array
from microkernel.capability import Identity, Rights
from microkernel.errors import CallCancelled, TooBig, Unimplemented, from_report
from microkernel.wire import binary, codec
from microkernel.wire.binary import FRAME_BYTES, LONGEST_FRAME
from microkernel.wire.client_session import ClientSession
from microkernel.wire.codec import CloseCode
from microkernel.wire.limits import Limits
from microkernel.wire.server_session import ServerSession
from microkernel.wire.session import Authenticate, Close
from microkernel.wire.state import SessionState

BINARY = 2**22
HOURS = 1e5  # between pings: they are not what is tested here


class Link:
    """Two sessions and what is between them: each frame arrives as it was written."""

    def __init__(self, *, resumable: bool = False, node_binary: int = BINARY, client_binary: int = BINARY) -> None:
        self.now = 0.0
        self.client = ClientSession(
            token="t",
            limits=Limits(binary=client_binary, heartbeat=HOURS),
            clock=lambda: self.now,
            state=SessionState() if resumable else None,
        )
        self.server = ServerSession(
            node="n", epoch="e", session="s", limits=Limits(binary=node_binary, heartbeat=HOURS), clock=lambda: self.now
        )
        self.at_client: list[Any] = []
        self.at_server: list[Any] = []
        while self.one_frame(self.client, self.server) or self.one_frame(self.server, self.client):
            pass
        self.at_client.clear()
        self.at_server.clear()

    def one_frame(self, source: ClientSession | ServerSession, target: ClientSession | ServerSession) -> bytes | None:
        frame = source.outbox.take()
        if frame is None:
            return None
        if isinstance(frame, list):
            data = b"".join(frame)
            actions = target.received_binary(data)
        else:
            data = frame
            actions = target.received(data.decode())
        self.now += 0.01  # as slow a link as makes each part a short one
        source.outbox.written()
        for action in actions:
            if isinstance(action, Authenticate):
                actions = [*actions, *self.server.authenticated(Identity("ana", Rights()))]
        (self.at_server if target is self.server else self.at_client).extend(
            action for action in actions if not isinstance(action, Authenticate)
        )
        return data

    def flush(self) -> None:
        while self.one_frame(self.client, self.server) or self.one_frame(self.server, self.client):
            pass


def body(value: Any) -> Any:
    return codec.body_of(value, what="it", limit=2**20, binary=BINARY)


def noise(size: int, seed: int = 0) -> Array:
    return Array(random.Random(seed).randbytes(size))


def call(link: Link, value: Any) -> int:
    return link.client.call("kv.put", body(value), deadline=None, priority=None)


def test_each_end_says_how_long_a_message_with_buffers_it_takes() -> None:
    link = Link(node_binary=1000, client_binary=2000)
    assert (link.client.binary, link.server.binary) == (1000, 1000)
    assert Link(client_binary=0).server.binary == 0
    assert Link(node_binary=0).client.binary == 0


def test_a_call_with_an_array_arrives_as_a_call_with_an_array() -> None:
    link = Link()
    call(link, {"tensor": noise(100)})
    link.flush()
    (message,) = link.at_server
    assert isinstance(message, codec.Call)
    assert codec.decode_body(message.body) == {"tensor": noise(100)}


def test_results_items_and_events_carry_arrays() -> None:
    link = Link()
    number = call(link, {})
    stream = link.client.open("kv.scan", body({}), credit=1, deadline=None, priority=None)
    events = link.client.subscribe("kv.*", None)
    link.flush()
    link.server.result(number, body(noise(10)))
    link.server.item(stream, body(noise(20)))
    link.server.event(events, "kv.changed", 1, body(noise(30)))
    link.flush()
    assert [codec.decode_body(message.body) for message in link.at_client] == [noise(10), noise(20), noise(30)]


def test_a_short_call_overtakes_a_long_result() -> None:
    link = Link()
    slow, quick = call(link, {}), call(link, {})
    link.flush()
    link.server.result(slow, body(noise(3 * FRAME_BYTES)))
    link.one_frame(link.server, link.client)
    link.server.result(quick, body(1))
    link.flush()
    assert [message.id for message in link.at_client] == [quick, slow]
    assert codec.decode_body(link.at_client[1].body) == noise(3 * FRAME_BYTES)


def test_a_ping_and_a_cancel_wait_for_one_part_at_most() -> None:
    link = Link()
    other = call(link, {})
    link.flush()
    call(link, noise(10 * FRAME_BYTES))
    link.one_frame(link.client, link.server)
    link.client.cancel(other)
    link.client.send_ping(1.0)
    frame = link.one_frame(link.client, link.server) or b""
    assert len(frame) <= FRAME_BYTES
    frames = [frame, link.one_frame(link.client, link.server) or b""]
    assert [json.loads(each)[0]["t"] for each in frames if each[:1] == b"["] == ["cancel"]


def test_the_end_of_a_stream_stays_behind_its_last_long_item() -> None:
    link = Link()
    stream = link.client.open("kv.scan", body({}), credit=9, deadline=None, priority=None)
    link.flush()
    for size in (2 * FRAME_BYTES, 10, 3 * FRAME_BYTES, 20):
        link.server.item(stream, body(noise(size)))
    link.server.end(stream)
    link.flush()
    *items, end = link.at_client
    assert [codec.decode_body(item.body).nbytes for item in items] == [2 * FRAME_BYTES, 10, 3 * FRAME_BYTES, 20]
    assert isinstance(end, codec.End)


def test_what_is_published_stays_in_order() -> None:
    link = Link()
    for size in (2 * FRAME_BYTES, 10, 20):
        link.client.publish("a.b", body(noise(size)))
    link.flush()
    assert [codec.decode_body(each.body).nbytes for each in link.at_server] == [2 * FRAME_BYTES, 10, 20]


def test_a_cancelled_call_is_not_sent_to_its_end() -> None:
    link = Link()
    number = call(link, noise(8 * FRAME_BYTES))
    link.one_frame(link.client, link.server)
    link.client.cancel(number)
    link.flush()
    assert link.at_server == []
    assert len(link.server._assembly) == 0
    later = call(link, noise(2 * FRAME_BYTES))
    link.flush()
    assert [message.id for message in link.at_server] == [later]


def test_a_cancel_stops_a_result_on_its_way_and_is_answered_all_the_same() -> None:
    link = Link()
    number = call(link, {})
    link.flush()
    link.server.result(number, body(noise(8 * FRAME_BYTES)))
    link.one_frame(link.server, link.client)
    sent: list[Any] = []
    link.server.received(json.dumps({"t": "cancel", "id": number}))
    while (frame := link.one_frame(link.server, link.client)) is not None:
        sent.append(frame)
    assert len(sent) == 2  # the abort and the error
    (error,) = link.at_client
    with pytest.raises(CallCancelled, match="while its result was on its way"):
        raise from_report(codec.report_of(error))
    assert len(link.client._assembly) == 0


def test_the_end_of_a_stream_is_told_when_its_last_item_is_cancelled() -> None:
    link = Link()
    stream = link.client.open("kv.scan", body({}), credit=9, deadline=None, priority=None)
    link.flush()
    link.server.item(stream, body(noise(3 * FRAME_BYTES)))
    link.server.end(stream)
    link.one_frame(link.server, link.client)
    link.client.cancel(stream)
    link.flush()
    assert link.at_client == []  # the client has let go of it
    assert not link.server.outbox.pending_messages


def test_a_message_longer_than_the_other_end_takes_is_not_sent() -> None:
    link = Link(node_binary=FRAME_BYTES)
    with pytest.raises(TooBig, match=r"the message to kv\.put takes 0\.5 MiB; a message with buffers holds 0\.2 MiB"):
        call(link, noise(2 * FRAME_BYTES))


def test_where_none_are_taken_a_binary_frame_ends_the_link() -> None:
    link = Link(node_binary=0)
    (close,) = link.server.received_binary(b"\xa7")
    assert close == Close(CloseCode.BINARY, "binary frames are not taken here: send text frames")


def test_before_the_handshake_is_done_a_binary_frame_ends_the_link() -> None:
    server = ServerSession(node="n", epoch="e", session="s", limits=Limits(), clock=lambda: 0.0)
    (close,) = server.received_binary(b"\xa7" + bytes(100))
    assert close == Close(CloseCode.UNAUTHENTICATED, "a binary frame before the handshake is done")
    client = ClientSession(token="t", limits=Limits(), clock=lambda: 0.0)
    assert isinstance(client.received_binary(b"\xa7" + bytes(100))[0], Close)


def test_a_frame_that_lies_ends_the_link_and_nothing_is_kept() -> None:
    link = Link()
    call(link, noise(4 * FRAME_BYTES))
    link.one_frame(link.client, link.server)
    (close,) = link.server.received_binary(b"\xa7\x01" + bytes(100))
    assert close.code == CloseCode.PROTOCOL
    link.server.lost("over")
    assert (len(link.server._assembly), link.server._assembly.held) == (0, 0)


def test_a_message_counts_against_the_rate_once_however_many_parts_it_has() -> None:
    link = Link()
    level = link.server._admission._bucket._level
    call(link, noise(8 * FRAME_BYTES))
    link.flush()
    assert link.server._admission._bucket._level >= level - 1.5


def test_parts_that_are_taken_in_time_are_no_reason_to_cut_the_reader() -> None:
    link = Link(node_binary=2**24, client_binary=2**24)
    number = call(link, {})
    link.flush()
    link.server.result(number, codec.body_of(noise(2**24 - 4096), what="it", limit=2**20, binary=2**24))
    assert link.server.outbox.cut_at is not None
    while link.server.outbox.pending_messages:
        link.now += 4.9
        assert link.server.tick() == []
        link.one_frame(link.server, link.client)
    assert link.now > 300.0
    assert len(link.at_client) == 1


def test_a_long_result_keeps_no_short_one_from_being_put() -> None:
    link = Link(resumable=True, node_binary=2**24, client_binary=2**24)
    number = call(link, {})
    link.flush()
    huge = codec.body_of(noise(2**24 - 4096), what="it", limit=2**20, binary=2**24)
    link.server.result(number, huge)
    assert link.server.fill < 0.1
    while link.server.outbox.pending_messages:
        link.one_frame(link.server, link.client)
    assert link.server.state.replay is not None
    assert link.server.state.replay.kept()
    assert link.server.fill < 0.1


def test_a_second_one_waits_for_the_first() -> None:
    link = Link(resumable=True, node_binary=2**24, client_binary=2**24)
    calls = [call(link, {}), call(link, {})]
    link.flush()
    for number in calls:
        assert link.server.fill < 1.0
        link.server.result(number, codec.body_of(noise(2**24 - 4096), what="it", limit=2**20, binary=2**24))
    assert link.server.fill > 1.0


def test_a_long_message_is_acknowledged_at_its_end_however_short_its_last_part_is() -> None:
    link = Link(resumable=True)
    slow, quick = call(link, {}), call(link, {})
    link.flush()
    link.server.result(slow, body(noise(FRAME_BYTES + 100)))
    link.one_frame(link.server, link.client)
    link.server.result(quick, body(1))
    link.flush()
    assert link.server.state.replay is not None
    assert not link.server.state.replay.kept()


def test_a_reader_that_takes_no_part_is_cut() -> None:
    link = Link(node_binary=2**24, client_binary=2**24)
    number = call(link, {})
    link.flush()
    link.server.result(number, codec.body_of(noise(2**24 - 4096), what="it", limit=2**20, binary=2**24))
    link.one_frame(link.server, link.client)
    link.now += 5.1
    (close,) = link.server.tick()
    assert close.code == CloseCode.SLOW_READER


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["short", "long", "frame", "cut", "drop"]), max_size=30),
    st.integers(0, 2**32),
)
def test_over_any_number_of_links_each_message_comes_once_and_those_about_one_thing_in_order(
    steps: list[str], seed: int
) -> None:
    """However often the link is cut in the middle of a message."""
    chance = random.Random(seed)
    link = Link(resumable=True)
    streams = [link.client.open("a.b", body({}), credit=1000, deadline=None, priority=None) for _ in range(3)]
    link.flush()
    link.at_server.clear()
    said: dict[int, list[int]] = {number: [] for number in streams}
    heard: list[Any] = []
    for count, step in enumerate(steps):
        number = chance.choice(streams)
        if step in {"short", "long"}:
            size = (2 if step == "long" else 0) * FRAME_BYTES + count
            link.server.item(number, body(Array(bytes(size)) if chance.random() < 0.7 or step == "long" else size))
            said[number].append(size)
        elif step == "frame":
            link.one_frame(link.server, link.client)
        elif step == "cut":
            heard += link.at_client
            _reconnect(link)
    link.flush()
    heard += link.at_client
    got: dict[int, list[int]] = {number: [] for number in streams}
    for message in heard:
        if isinstance(message, codec.Item):
            value = codec.decode_body(message.body)
            got[message.id].append(value if isinstance(value, int) else value.nbytes)
    assert got == said


def _reconnect(link: Link) -> None:
    """Lose the link and go on with the session over another."""
    link.client.lost("cut")
    link.server.lost("cut")
    client_state, server_state = link.client.state, link.server.state
    link.client = ClientSession(token="t", limits=Limits(binary=BINARY), clock=lambda: link.now, state=client_state)
    link.server = ServerSession(node="n", epoch="e", session="s2", limits=Limits(binary=BINARY), clock=lambda: link.now)
    link.at_client, link.at_server = [], []
    frame = link.client.outbox.take()
    assert isinstance(frame, bytes)
    link.client.outbox.written()
    link.server.received(frame.decode())
    link.server.authenticated(Identity("ana", Rights()), server_state)
    hello = link.server.outbox.take()
    assert isinstance(hello, bytes)
    link.server.outbox.written()
    link.at_client += link.client.received(hello.decode())


def test_long_frames_are_no_longer_than_the_longest() -> None:
    link = Link()
    call(link, noise(3 * LONGEST_FRAME))
    longest = 0
    link.client.outbox._part_bytes = LONGEST_FRAME
    while (frame := link.client.outbox.take()) is not None:
        longest = max(longest, sum(map(len, frame)) if isinstance(frame, list) else 0)
        link.client.outbox.written()  # at once
    assert longest == LONGEST_FRAME


def test_a_message_of_the_next_version_with_buffers_is_answered() -> None:
    link = Link()
    number = call(link, {})
    link.flush()
    frame = binary.pack(json.dumps({"t": "teleport", "id": number}).encode(), [memoryview(b"abc")]).joined()
    assert link.server.received_binary(frame) == []
    link.flush()
    (error,) = link.at_client
    with pytest.raises(Unimplemented, match="'teleport' is not known here"):
        raise from_report(codec.report_of(error))
