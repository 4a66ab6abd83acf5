"""The session's state machines, driven without a loop or a socket."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from microkernel.capability import Identity, Rights
from microkernel.errors import Invalid, MicrokernelError, NotFound, TooBig, Unauthenticated, Unavailable
from microkernel.wire import codec
from microkernel.wire.client_session import ClientSession
from microkernel.wire.codec import CloseCode
from microkernel.wire.limits import Bucket, Limits
from microkernel.wire.server_session import ServerSession
from microkernel.wire.session import Authenticate, Close

ONE = msgspec.Raw(b"1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def authenticate(token: str) -> Identity | MicrokernelError | None:
    if token == "expired":
        return Unauthenticated("the token expired yesterday")
    if token == "later":
        return Unavailable("the kernel starts")
    return Identity("ana", Rights(allow=("kv.*",), deny=("kv.wipe",))) if token == "good" else None


class Server:
    """A server session and what a client would see of it."""

    def __init__(self, *, greeted: bool = True, **limits: Any) -> None:
        self.clock = Clock()
        self.session = ServerSession(
            node="n1",
            epoch="e1",
            session="s1",
            limits=Limits(**limits),
            clock=self.clock,
        )
        if greeted:
            self.say({"t": "auth", "v": 1, "token": "good"})
            self.heard()

    def say(self, *messages: dict[str, Any]) -> list[Any]:
        return self.hear(json.dumps(messages if len(messages) != 1 else messages[0]))

    def hear(self, text: str) -> list[Any]:
        """What is to be done, with the token checked at once."""
        actions = self.session.received(text)
        for place, action in enumerate(actions):
            if isinstance(action, Authenticate):
                return actions[: place + 1] + self.answer(action)
        return actions

    def answer(self, asked: Authenticate) -> list[Any]:
        found = authenticate(asked.token)
        if isinstance(found, Identity):
            return self.session.authenticated(found)
        return self.session.refused(found)

    def heard(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while (frame := self.session.outbox.take()) is not None:
            decoded = json.loads(frame)
            messages += decoded if isinstance(decoded, list) else [decoded]
            self.session.outbox.written()
        return messages

    def later(self, seconds: float) -> list[Any]:
        self.clock.now += seconds
        return self.session.tick()


def test_the_handshake_is_hello_auth_ready() -> None:
    server = Server(greeted=False)
    assert [message["t"] for message in server.heard()] == ["hello"]
    assert server.say({"t": "auth", "v": 1, "token": "good"}) == [Authenticate("good", None)]
    (ready,) = server.heard()
    assert ready == {
        "t": "ready", "session": "s1", "epoch": "e1", "seen": 0, "resumed": False, "rights": ["kv.*"],
        "deny": ["kv.wipe"], "user": "ana",
    }  # fmt: skip


def test_hello_announces_the_limits() -> None:
    (hello,) = Server(greeted=False, inflight=7, heartbeat=3.0).heard()
    assert (hello["v"], hello["node"], hello["epoch"], hello["heartbeat"]) == (1, "n1", "e1", 3.0)
    assert hello["max"] == {
        "text": 2**20, "inflight": 7, "credit": 64, "subscriptions": 256, "buffer": 2**23, "messages": 4096,
        "rate": 2000.0, "burst": 4000, "binary": 2**24,
    }  # fmt: skip


def test_a_client_may_send_auth_and_calls_in_its_first_frame() -> None:
    server = Server(greeted=False)
    actions = server.say({"t": "auth", "v": 1, "token": "good"}, {"t": "call", "id": 1, "to": "kv.get"})
    assert [type(action) for action in actions] == [Authenticate, codec.Call]


def test_before_auth_a_frame_is_small_and_afterwards_as_long_as_announced() -> None:
    longest, auth = 8 * 2**10, json.dumps({"t": "auth", "v": 1, "token": "good", "pad": ""})
    padded = auth.replace('"pad": ""', '"pad": "' + "x" * (longest - len(auth)) + '"')
    (close,) = Server(greeted=False).session.received(padded + " ")
    assert close == Close(CloseCode.TOO_BIG, "a text frame before 'auth' is too big: 8193 bytes, at most 8192")
    server = Server(greeted=False)
    assert [type(action) for action in server.hear(padded)] == [Authenticate]
    assert server.say({"t": "ping", "pad": "x" * longest}) == []


def test_a_frame_before_auth_is_small_even_where_all_frames_are() -> None:
    (close,) = Server(greeted=False, text=1000).session.received('"' + "x" * 1000 + '"')
    assert close.code == CloseCode.TOO_BIG


def test_what_follows_auth_is_not_looked_at_before_the_token_is_known() -> None:
    wrong = {"t": "call", "id": "no number", "to": "kv.get"}
    _, close = Server(greeted=False).say({"t": "auth", "v": 1, "token": "bad"}, wrong)
    assert close.code == CloseCode.UNAUTHENTICATED
    (close,) = Server(greeted=False).say({"t": "ping"}, wrong)
    assert close.reason == "the first message must be 'auth'"
    _, close = Server(greeted=False).say({"t": "auth", "v": 1, "token": "good"}, wrong)
    assert close == Close(CloseCode.PROTOCOL, "message 2 of 2: Expected `int`, got `str` - at `$.id`")


def test_what_comes_while_the_token_is_checked_waits_and_is_done_in_order() -> None:
    server = Server(greeted=False)
    (asked,) = server.session.received('{"t":"auth","v":1,"token":"good"}')
    assert not server.session.takes_frames  # so that nobody unknown has much kept
    assert server.say({"t": "call", "id": 1, "to": "a.b"}, {"t": "cancel", "id": 1}) == []
    assert server.say({"t": "call", "id": 2, "to": "a.b"}) == []
    assert [type(action) for action in server.answer(asked)] == [codec.Call, codec.Cancel, codec.Call]
    assert server.session.takes_frames
    assert server.answer(asked) == []


def test_what_waits_for_the_token_is_bounded() -> None:
    server = Server(greeted=False)
    server.session.received('{"t":"auth","v":1,"token":"good"}')
    for _ in range(2):
        assert server.say(*({"t": "ping", "ts": 1} for _ in range(128))) == []
    (close,) = server.say({"t": "ping", "ts": 1})
    assert close == Close(CloseCode.TOO_BIG, "more than 256 messages before 'ready'")


def test_the_handshake_time_runs_while_the_token_is_checked() -> None:
    server = Server(greeted=False)
    (asked,) = server.session.received('{"t":"auth","v":1,"token":"good"}')
    assert server.later(10.1) == [Close(CloseCode.HANDSHAKE_TIMEOUT, "no handshake within 10 s")]
    assert server.answer(asked) == []


def test_messages_before_auth_count_against_the_rate_before_they_are_read() -> None:
    (close,) = Server(greeted=False, rate=1.0, burst=2).say(*({"t": "ping"} for _ in range(5)))
    assert close.code == CloseCode.RATE


def test_resume_is_answered_by_a_new_session() -> None:
    server = Server(greeted=False)
    server.say({"t": "auth", "v": 1, "token": "good", "resume": {"session": "s0", "seen": 812}})
    ready = server.heard()[-1]
    assert (ready["session"], ready["resumed"]) == ("s1", False)


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ({"t": "call", "id": 1, "to": "x"}, CloseCode.UNAUTHENTICATED, "the first message must be 'auth'"),
        ({"t": "zz", "id": 1}, CloseCode.UNAUTHENTICATED, "the first message must be 'auth'"),
        ({"t": "auth", "v": 1, "token": "bad"}, CloseCode.UNAUTHENTICATED, "the token is not valid here"),
        ({"t": "auth", "v": 1, "token": "expired"}, CloseCode.UNAUTHENTICATED, "the token expired yesterday"),
        ({"t": "auth", "v": 1, "token": "later"}, CloseCode.GOING_AWAY, "tokens cannot be checked: the kernel starts"),
        ({"t": "auth", "v": 2, "token": "good"}, CloseCode.VERSION, "version 2 is not spoken here"),
        ({"t": "auth", "v": 1}, CloseCode.PROTOCOL, "missing required field `token`"),
    ],
)
def test_who_does_not_show_who_they_are_is_turned_away(message: dict[str, Any], code: int, reason: str) -> None:
    close = Server(greeted=False).say(message)[-1]
    assert close.code == code
    assert reason in close.reason


def test_a_handshake_that_takes_too_long_is_ended() -> None:
    server = Server(greeted=False)
    assert server.later(9.9) == []
    assert server.session.due() == pytest.approx(110.0)
    assert server.later(0.2) == [Close(CloseCode.HANDSHAKE_TIMEOUT, "no handshake within 10 s")]


def test_a_call_ends_once_whatever_is_said_afterwards() -> None:
    server = Server()
    (call,) = server.say({"t": "call", "id": 5, "to": "kv.get", "body": {"key": "a"}})
    server.session.result(call.id, ONE)
    server.session.result(call.id, ONE)
    server.session.fail(call.id, NotFound("no"))
    assert server.heard() == [{"t": "result", "id": 5, "body": 1}]


def test_a_cancelled_call_is_still_answered() -> None:
    server = Server()
    server.say({"t": "call", "id": 5, "to": "kv.get"})
    assert server.say({"t": "cancel", "id": 5}) == [codec.Cancel(5)]
    server.session.fail(5, NotFound("no"))
    assert [message["t"] for message in server.heard()] == ["error"]
    assert server.say({"t": "cancel", "id": 5}) == []


def test_an_id_in_use_is_a_protocol_error() -> None:
    server = Server()
    server.say({"t": "open", "id": 5, "to": "kv.scan"})
    (close,) = server.say({"t": "call", "id": 5, "to": "kv.get"})
    assert close == Close(CloseCode.PROTOCOL, "id 5 is in use")
    server.session.result(5, ONE)
    server.session.item(5, ONE)
    assert server.heard() == []


def test_an_item_without_credit_cannot_be_sent() -> None:
    server = Server()
    server.say({"t": "open", "id": 1, "to": "kv.scan", "credit": 1})
    server.session.item(1, ONE)
    with pytest.raises(ValueError, match="no credit"):
        server.session.item(1, ONE)
    assert server.session.credit(1) == 0
    server.say({"t": "credit", "id": 1, "n": 2})
    assert server.session.credit(1) == 2


def test_a_stream_that_names_no_credit_gets_what_hello_says() -> None:
    server = Server()
    server.say({"t": "open", "id": 1, "to": "kv.scan"})
    assert server.session.credit(1) == 64


def test_a_type_that_is_not_known_is_answered_when_it_has_an_id() -> None:
    server = Server()
    assert server.say({"t": "teleport", "id": 9}, {"t": "nack", "seen": 3}, {"t": "x", "id": "a"}) == []
    (error,) = server.heard()
    assert (error["id"], error["error"]["code"]) == (9, "UNIMPLEMENTED")


@pytest.mark.parametrize("number", [True, False, None, -1, 1.0, 2**53, "1", [1]])
def test_what_is_no_id_is_not_answered(number: object) -> None:
    server = Server()
    assert server.say({"t": "teleport", "id": number}) == []
    assert server.heard() == []


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"t": "open", "id": 1, "to": "kv.put", "key": "once"}, "key"),
    ],
)
def test_what_this_node_does_not_do_is_refused_and_not_ignored(message: dict[str, Any], word: str) -> None:
    server = Server()
    assert server.say(message) == []
    (error,) = server.heard()
    assert error["error"]["code"] == "UNIMPLEMENTED"
    assert error["error"]["field"] == word
    assert not server.session.is_current(1)


def test_a_reader_that_sends_items_into_its_stream_ends_it() -> None:
    server = Server()
    server.say({"t": "open", "id": 1, "to": "kv.scan"})
    (cancel,) = server.say({"t": "item", "id": 1, "body": 1})
    assert isinstance(cancel, codec.Cancel)
    assert [message["error"]["code"] for message in server.heard()] == ["INVALID"]


@pytest.mark.parametrize("kind", ["hello", "ready", "result", "event", "auth"])
def test_a_message_in_the_wrong_direction_ends_the_link(kind: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "hello": {
            "v": 1,
            "node": "n",
            "epoch": "e",
            "heartbeat": 1,
            "max": dict.fromkeys(codec.MaxSizes.__struct_fields__, 1),
        },
        "ready": {"session": "s", "epoch": "e", "rights": [], "user": "u"},
        "result": {"id": 1, "body": 1},
        "event": {"id": 1, "subject": "a", "offset": 1, "body": 1},
        "auth": {"v": 1, "token": "good"},
    }
    (close,) = Server().say({"t": kind, **bodies[kind]})
    assert close == Close(CloseCode.PROTOCOL, f"a '{kind}' message does not belong here")


def test_where_none_are_taken_a_binary_frame_ends_the_link_with_a_clear_reason() -> None:
    (close,) = Server(binary=0).session.received_binary(b"\xa7\x01")
    assert close.code == CloseCode.BINARY
    assert "binary frames are not taken" in close.reason


def test_a_text_frame_over_the_limit_ends_the_link_and_names_both_sizes() -> None:
    (close,) = Server().session.received('"' + "ä" * 2**20 + '"')
    assert close == Close(CloseCode.TOO_BIG, "a text frame is too big: 2.0 MiB, at most 1.0 MiB")


def test_a_text_frame_at_the_limit_is_taken() -> None:
    server = Server(text=1000)
    text = json.dumps({"t": "ping", "ts": 1, "pad": ""})
    assert server.session.received(text.replace('""', '"' + "x" * (1000 - len(text)) + '"')) == []
    assert server.heard() == [{"t": "pong", "ts": 1.0}]


def test_calls_past_the_limit_in_flight_are_told_to_come_back() -> None:
    server = Server(inflight=2)
    opened = server.say(
        {"t": "call", "id": 1, "to": "a.b"},
        {"t": "open", "id": 2, "to": "a.c"},
        {"t": "call", "id": 3, "to": "a.b"},
    )
    assert len(opened) == 2
    (error,) = server.heard()
    assert (error["id"], error["error"]["code"], error["error"]["retry_after_ms"]) == (3, "OVERLOADED", 100)
    server.session.end(2)
    assert len(server.say({"t": "call", "id": 3, "to": "a.b"})) == 1


def test_subscriptions_past_their_limit_are_refused() -> None:
    server = Server(subscriptions=1)
    server.say({"t": "subscribe", "id": 1, "subject": "a"}, {"t": "subscribe", "id": 2, "subject": "b"})
    (error,) = server.heard()
    assert (error["id"], error["error"]["code"]) == (2, "OVERLOADED")


def test_unsubscribe_ends_the_subscription_and_later_events_are_dropped() -> None:
    server = Server()
    server.say({"t": "subscribe", "id": 1, "subject": "a"})
    server.session.event(1, "a", 1, ONE)
    assert len(server.say({"t": "unsubscribe", "id": 1})) == 1
    server.session.event(1, "a", 2, ONE)
    assert [message["t"] for message in server.heard()] == ["event", "end"]
    assert server.say({"t": "unsubscribe", "id": 1}) == []


def test_messages_over_the_rate_are_refused_and_a_flood_ends_the_link() -> None:
    server = Server(rate=10.0, burst=5)
    assert len(server.say(*({"t": "call", "id": number, "to": "a.b"} for number in range(4)))) == 4
    assert server.say({"t": "call", "id": 4, "to": "a.b"}) == []
    (error,) = server.heard()
    assert error["error"]["code"] == "OVERLOADED"
    assert error["error"]["retry_after_ms"] == 100
    assert server.say({"t": "cancel", "id": 1}) == [codec.Cancel(1)]  # what gives room is always heard
    server.clock.now += 1.0
    assert len(server.say({"t": "call", "id": 5, "to": "a.b"})) == 1
    (close,) = server.say(*({"t": "ping"} for _ in range(20)))
    assert close.code == CloseCode.RATE
    assert "10 a second with bursts of 5" in close.reason


def test_empty_frames_count_against_the_rate() -> None:
    server = Server(rate=1.0, burst=5)
    closes = [action for _ in range(20) for action in server.session.received("[]")]
    assert [close.code for close in closes] == [CloseCode.RATE]


def test_a_one_way_message_over_the_rate_is_complained_about_without_an_id() -> None:
    server = Server(rate=1.0, burst=2)
    assert server.say({"t": "ping"}, {"t": "send", "to": "a.b"}) == []
    error = server.heard()[-1]
    assert "id" not in error
    assert error["error"]["code"] == "OVERLOADED"


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 3)), max_size=30))
def test_a_bucket_never_lets_more_through_than_burst_and_rate(steps: list[tuple[int, float]]) -> None:
    bucket, now, good = Bucket(10.0, 20, 0.0), 0.0, 0
    for count, pause in steps:
        now += pause
        bucket.take(count, now)
        if not bucket.overdrawn:
            good += count
        assert good <= 20 + 10.0 * now + 1e-6


def test_each_heartbeat_pings_and_two_missed_ones_end_the_link() -> None:
    server = Server()
    assert server.later(14.9) == []
    assert server.later(0.2) == []
    assert [message["t"] for message in server.heard()] == ["ping"]
    server.later(15.0)
    assert [message["t"] for message in server.heard()] == ["ping"]
    (close,) = server.later(15.0)
    assert close == Close(CloseCode.NO_ANSWER, "no sign of life for 45.1 s: 2 pings unanswered")


def test_any_message_is_a_sign_of_life() -> None:
    server = Server()
    for _ in range(10):
        assert server.later(15.0) == []
        assert server.later(0.5) == []
        server.say({"t": "pong", "ts": 1})


def test_a_slow_reader_is_cut_after_five_seconds_and_told_the_numbers() -> None:
    server = Server()
    server.say(*({"t": "call", "id": number, "to": "a.b"} for number in range(9)))
    body = codec.body_of("x" * (2**20 - 100), what="body", limit=2**20)
    for number in range(8):
        server.session.result(number, body)
    assert server.session.outbox.fill < 1.0
    server.session.result(8, body)
    assert server.session.due() == pytest.approx(105.0)
    assert server.later(4.9) == []
    assert server.later(0.2) == [Close(CloseCode.SLOW_READER, "slow reader: 9.0 MiB pending for 5.1 s")]


def test_a_reader_that_takes_nothing_while_producers_wait_for_it_is_cut_as_well() -> None:
    server = Server(messages=12)
    server.heard()
    server.say(*({"t": "ping"} for _ in range(9)))
    assert server.session.outbox.cut_at is None  # 75 %: nobody waits yet
    server.say({"t": "ping"})
    assert server.session.due() == pytest.approx(105.0)
    assert server.later(4.9) == []
    closed = Close(CloseCode.SLOW_READER, "slow reader: 10 messages pending, none taken for 5.1 s")
    assert server.later(0.2) == [closed]


def test_a_reader_for_which_producers_wait_is_only_slowed_while_it_takes_something() -> None:
    server = Server(messages=12)
    for _ in range(4):
        server.say(*({"t": "ping"} for _ in range(10)))
        assert server.later(4.9) == []
        server.heard()
    assert server.session.outbox.cut_at is None


def test_a_reader_that_catches_up_in_time_is_not_cut() -> None:
    server = Server(messages=10)
    for _ in range(11):
        server.say({"t": "ping"})
    assert server.later(4.9) == []
    server.heard()
    assert server.later(0.2) == []
    for _ in range(11):
        server.say({"t": "ping"})
    assert server.later(5.1) == [Close(CloseCode.SLOW_READER, "slow reader: 11 messages pending for 5.1 s")]


def test_a_reader_far_behind_is_cut_at_once() -> None:
    server = Server(messages=10)
    server.say(*({"t": "ping"} for _ in range(20)))
    assert server.later(0.0) == []
    server.say({"t": "ping"})
    assert server.session.due() == server.clock()
    assert server.later(0.0) == [Close(CloseCode.SLOW_READER, "slow reader: 21 messages pending for 0.0 s")]


def test_an_error_never_outgrows_its_frame() -> None:
    server = Server()
    server.say({"t": "call", "id": 1, "to": "kv.get"})
    server.session.fail(1, NotFound("no " + "ä" * 2**20, remedy="r" * 2**20, causes=("c" * 2**20,) * 9))
    frame = server.session.outbox.take()
    assert frame is not None
    assert len(frame) < 64 * 2**10
    error = json.loads(frame)["error"]
    assert error["code"] == "NOT_FOUND"
    assert error["message"].startswith("no ä")
    assert error["message"].endswith("…")


def test_what_is_being_written_counts_as_pending() -> None:
    server = Server(messages=4)
    server.say(*({"t": "ping"} for _ in range(4)))
    assert server.session.outbox.take() is not None
    assert server.session.outbox.fill == 1.0
    assert server.session.outbox.take() is None
    server.session.outbox.written()
    assert server.session.outbox.fill == 0.0


def test_all_that_is_ready_goes_out_as_one_array_up_to_a_good_size() -> None:
    server = Server()
    server.say(*({"t": "ping", "ts": number} for number in range(100)))
    frame = server.session.outbox.take()
    assert frame is not None
    assert [message["ts"] for message in json.loads(frame)] == list(range(100))
    server.session.outbox.written()
    server.say(*({"t": "call", "id": number, "to": "a.b"} for number in range(3)))
    for number in range(3):
        server.session.result(number, codec.body_of("x" * 100_000, what="body", limit=2**20))
    assert len(json.loads(server.session.outbox.take() or b"")) == 2


def test_after_bye_what_is_open_goes_on_and_nothing_new_begins() -> None:
    server = Server()
    server.say({"t": "call", "id": 1, "to": "a.b"})
    server.session.leave("upgrade", 1.5)
    assert server.say({"t": "call", "id": 2, "to": "a.b"}) == []
    server.session.result(1, ONE)
    bye, refused, result = server.heard()
    assert bye == {"t": "bye", "reason": "upgrade", "after": 1500}
    assert refused["error"]["code"] == "UNAVAILABLE"
    assert refused["error"]["may_have_run"] is False
    assert refused["error"]["retry_after_ms"] == 1500
    assert result["t"] == "result"


def test_a_client_that_says_bye_is_let_go() -> None:
    assert Server().say({"t": "bye", "reason": "done"}, {"t": "call", "id": 1, "to": "a"}) == [Close(1000, "bye: done")]


SMALL = st.integers(0, 6)


class OpenThings(RuleBasedStateMachine):
    """Whatever client and handlers do in whatever order: all that is opened ends once, and credit is never negative."""

    @initialize()
    def begin(self) -> None:
        self.server = Server(inflight=4, subscriptions=2)
        self.open: set[int] = set()
        self.running: set[int] = set()
        self.granted: dict[int, int] = {}
        self.items: dict[int, int] = {}

    def tell(self, message: dict[str, Any]) -> None:
        for action in self.server.say(message):
            assert isinstance(action, codec.Frame)
            if isinstance(action, codec.Call | codec.Open | codec.Subscribe):
                self.running.add(action.id)
        for heard in self.server.heard():
            self.hear(heard)

    def hear(self, message: dict[str, Any]) -> None:
        number = message["id"]
        assert number in self.open, f"{message} for what is not open"
        if message["t"] == "item":
            self.items[number] = self.items.get(number, 0) + 1
            assert self.items[number] <= self.granted[number]
        elif message["t"] != "event":
            self.open.discard(number)
            self.items.pop(number, None)
            self.granted.pop(number, None)

    @rule(number=SMALL, kind=st.sampled_from(["call", "open", "subscribe"]), credit=st.integers(0, 3))
    def ask(self, number: int, kind: str, credit: int) -> None:
        if number in self.open or number in self.running:
            return
        self.open.add(number)
        self.granted[number] = credit
        self.tell({"t": kind, "id": number, "to": "a.b", "subject": "a", "credit": credit})

    @rule(number=SMALL, n=st.integers(1, 3))
    def give_credit(self, number: int, n: int) -> None:
        if number in self.granted:
            self.granted[number] += n
        self.tell({"t": "credit", "id": number, "n": n})

    @rule(number=SMALL, kind=st.sampled_from(["cancel", "unsubscribe", "item", "end"]))
    def interfere(self, number: int, kind: str) -> None:
        self.tell({"t": kind, "id": number, "body": 1})

    @rule(number=SMALL)
    def produce(self, number: int) -> None:
        if self.server.session.credit(number):
            self.server.session.item(number, ONE)
        self.server.session.event(number, "a", 1, ONE)
        self.flush()

    @rule(number=SMALL, how=st.sampled_from(["result", "end", "fail"]))
    def finish(self, number: int, how: str) -> None:
        if number not in self.running:
            return
        self.running.discard(number)
        session = self.server.session
        match how:
            case "result":
                session.result(number, ONE)
                session.end(number)
            case "end":
                session.end(number)
            case _:
                session.fail(number, NotFound("no"))
        self.flush()

    def flush(self) -> None:
        for heard in self.server.heard():
            self.hear(heard)

    @invariant()
    def both_sides_agree_on_what_is_open(self) -> None:
        if hasattr(self, "server"):
            assert {number for number in range(7) if self.server.session.is_current(number)} == self.open


OpenThings.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOpenThings = OpenThings.TestCase


def client(**limits: Any) -> tuple[ClientSession, Clock]:
    clock = Clock()
    return ClientSession(token="good", limits=Limits(**limits), clock=clock), clock


def connected() -> tuple[ClientSession, Server]:
    session, _ = client()
    server = Server(greeted=False)
    exchange(session, server)
    assert session.is_open
    assert server.session.is_open
    return session, server


def exchange(session: ClientSession, server: Server) -> tuple[list[Any], list[Any]]:
    """Carry frames both ways until all is quiet; what the client and what the server has to do."""
    for_client: list[Any] = []
    for_server: list[Any] = []
    moved = True
    while moved:
        moved = False
        for source, target, actions in (
            (session, server.session, for_server),
            (server.session, session, for_client),
        ):
            while (frame := source.outbox.take()) is not None:
                hear = server.hear if target is server.session else target.received
                actions.extend(hear(frame.decode()))
                source.outbox.written()
                moved = True
    return for_client, for_server


def test_a_client_and_a_server_greet_each_other() -> None:
    session, _ = connected()
    assert session.ready is not None
    assert session.ready.user == "ana"


def test_a_call_and_a_stream_cross() -> None:
    session, server = connected()
    number = session.call("kv.get", ONE, deadline=1.5, priority=2)
    stream = session.open("kv.scan", None, credit=2, deadline=None, priority=None)
    _, (call, opened) = exchange(session, server)
    assert (call.id, call.to, bytes(call.body), call.deadline, call.priority) == (
        number,
        "kv.get",
        b"1",
        1500.0,
        2,
    )
    assert (opened.id, opened.credit) == (stream, 2)
    server.session.result(number, ONE)
    server.session.item(stream, ONE)
    server.session.end(stream)
    (result, item, end), _ = exchange(session, server)
    assert (result.id, item.id, end.id) == (number, stream, stream)
    assert session.calls == 0


def test_what_comes_after_a_cancel_is_dropped() -> None:
    session, server = connected()
    number = session.call("kv.get", None, deadline=None, priority=None)
    session.cancel(number)
    session.cancel(number)
    _, actions = exchange(session, server)
    assert [type(action) for action in actions] == [codec.Call, codec.Cancel]
    server.session.result(number, ONE)
    assert exchange(session, server) == ([], [])


def test_an_item_beyond_the_credit_ends_the_link() -> None:
    session, server = connected()
    number = session.open("kv.scan", None, credit=1, deadline=None, priority=None)
    exchange(session, server)
    session.received(json.dumps({"t": "item", "id": number, "body": 1}))
    (close,) = session.received(json.dumps({"t": "item", "id": number, "body": 1}))
    assert close.code == CloseCode.PROTOCOL
    assert "beyond its credit" in close.reason


def test_a_message_that_is_too_long_for_the_server_is_not_sent() -> None:
    session, _ = connected()
    with pytest.raises(TooBig, match=r"kv.put takes 2.0 MiB"):
        session.call("kv.put", codec.body_of("x" * 2**21, what="body", limit=2**30), deadline=None, priority=None)
    assert session.calls == 0
    assert len(session.outbox) == 0


@pytest.mark.parametrize("name", ["x" * 257, "ä" * 257])
def test_a_name_that_the_server_would_not_take_is_not_sent(name: str) -> None:
    session, _ = connected()
    with pytest.raises(Invalid, match="at most 256 characters"):
        session.call(name, None, deadline=None, priority=None)
    with pytest.raises(Invalid, match="at most 256 characters"):
        session.open(name, None, credit=1, deadline=None, priority=None)
    with pytest.raises(Invalid, match="at most 256 characters"):
        session.send(name, None, priority=None)
    with pytest.raises(Invalid, match="at most 256 characters"):
        session.publish(name, None)
    with pytest.raises(Invalid, match="at most 256 characters"):
        session.subscribe(name, None)
    with pytest.raises(Invalid, match="at most 256 characters"):
        session.subscribe("a.b", name)
    assert len(session.outbox) == 0


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    session, clock = client(handshake=2.0)
    clock.now += 2.0
    assert session.tick() == [Close(CloseCode.HANDSHAKE_TIMEOUT, "no handshake within 2 s")]


@given(
    st.lists(st.text(max_size=30) | st.dictionaries(st.sampled_from(["t", "id", "v"]), st.integers()).map(json.dumps))
)
def test_neither_end_ever_raises_about_what_it_is_told(texts: list[str]) -> None:
    for session in (Server().session, connected()[0]):
        closes = [action for text in texts for action in session.received(text) if isinstance(action, Close)]
        assert len(closes) <= 1
        assert (session.closed is not None) == bool(closes)
