"""Frames: what comes is a list of valid messages or a protocol error with a reason, and nothing else."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Code, Invalid, NotFound, TooBig
from microkernel.wire import codec
from microkernel.wire.codec import ProtocolError, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
TYPES = st.sampled_from(
    ["hello", "auth", "ready", "call", "result", "error", "send", "open", "item", "end", "credit", "cancel", "publish",
     "subscribe", "unsubscribe", "event", "ping", "pong", "bye", "down", "x"]
)  # fmt: skip
FIELDS = st.sampled_from(["id", "to", "body", "credit", "n", "v", "token", "subject", "deadline", "ts", "error", "why"])
NEARLY = st.builds(lambda t, rest: {**rest, "t": t}, TYPES, st.dictionaries(FIELDS, JSON, max_size=6))


@given(st.text() | JSON.map(json.dumps) | NEARLY.map(json.dumps) | st.lists(NEARLY, max_size=4).map(json.dumps))
def test_any_text_is_valid_messages_or_a_protocol_error_with_a_reason(text: str) -> None:
    try:
        messages = decode(text)
    except ProtocolError as error:
        assert error.reason
        assert error.code >= 4500
    else:
        for message in messages:
            if not isinstance(message, codec.Unknown):
                assert decode(encode(message).decode()) is not None


@given(st.binary(max_size=60))
def test_bytes_that_were_text_once_never_raise_anything_else(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode("\x00" + raw.decode(errors="surrogateescape"))


@given(st.lists(st.tuples(st.integers(0, 2**53 - 1), JSON), min_size=1, max_size=20))
def test_many_messages_in_one_frame_come_out_as_they_went_in(calls: list[tuple[int, object]]) -> None:
    frames = [codec.Result(number, codec.body_of(body, what="body", limit=2**20)) for number, body in calls]
    decoded = decode(codec.join(encode(frame) for frame in frames).decode())
    assert [(frame.id, bytes(frame.body)) for frame in decoded] == [(frame.id, bytes(frame.body)) for frame in frames]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("nope", "no JSON"),
        ("[" * 100_000, "recursion"),
        ("\ud800", "no JSON"),
        ("7", "Expected `object`, got `int`"),
        ('{"id":1}', "missing required field `t`"),
        ('{"t":7}', "Expected `str`, got `int` - at `$.t`"),
        ('{"t":"call","id":1}', "missing required field `to`"),
        ('{"t":"call","id":"1","to":"x"}', "Expected `int`, got `str` - at `$.id`"),
        ('{"t":"call","id":-1,"to":"x"}', "at `$.id`"),
        ('{"t":"call","id":9007199254740992,"to":"x"}', "at `$.id`"),
        ('{"t":"call","id":1,"to":"x","priority":10}', "at `$.priority`"),
        ('{"t":"call","id":1,"to":"x","deadline":-1}', "at `$.deadline`"),
        ('{"t":"open","id":1,"to":"x","credit":-1}', "at `$.credit`"),
        ('{"t":"credit","id":1,"n":0}', "at `$.n`"),
        ('{"t":"call","id":1,"to":"%s"}' % ("x" * 257), "length <= 256 - at `$.to`"),
        ('{"t":"open","id":1,"to":"%s"}' % ("x" * 257), "length <= 256 - at `$.to`"),
        ('{"t":"send","to":"%s"}' % ("x" * 257), "length <= 256 - at `$.to`"),
        ('{"t":"publish","subject":"%s"}' % ("x" * 257), "length <= 256 - at `$.subject`"),
        ('{"t":"subscribe","id":1,"subject":"%s"}' % ("x" * 257), "length <= 256 - at `$.subject`"),
        ('{"t":"subscribe","id":1,"subject":"a","group":"%s"}' % ("x" * 257), "length <= 256 - at `$.group`"),
        ('{"t":"call","id":1,"to":"x","key":"%s"}' % ("x" * 129), "length <= 128 - at `$.key`"),
        ('{"t":"open","id":1,"to":"x","key":"%s"}' % ("x" * 129), "length <= 128 - at `$.key`"),
        ('[{"t":"ping"},{"t":"ping","ts":"now"}]', "message 2 of 2: Expected `float`, got `str` - at `$.ts`"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(text)
    assert reason in caught.value.reason


def test_unknown_fields_are_ignored_and_unknown_types_are_kept_apart() -> None:
    known, unknown = decode('[{"t":"ping","ts":1,"colour":"red"},{"t":"teleport","id":4,"to":{}}]')
    assert known == codec.Ping(1.0)
    assert unknown == codec.Unknown("teleport", 4)


def test_an_empty_array_is_a_frame_without_messages() -> None:
    assert decode(" [] ") == []


def test_a_body_is_decoded_straight_into_the_type_asked_for() -> None:
    class Put(msgspec.Struct):
        key: str
        value: bytes

    (call,) = decode('{"t":"call","id":1,"to":"kv.put","body":{"key":"a","value":"eA=="}}')
    assert isinstance(call, codec.Call)
    assert codec.decode_body(call.body, Put) == Put("a", b"x")
    with pytest.raises(Invalid, match="key"):
        codec.decode_body(msgspec.Raw(b'{"key":1,"value":""}'), Put)


def test_a_message_without_a_body_has_an_empty_one_and_sends_none() -> None:
    (call,) = decode('{"t":"call","id":1,"to":"x"}')
    assert codec.decode_body(call.body) == {}
    assert encode(codec.Call(1, "x")) == b'{"t":"call","id":1,"to":"x"}'


def test_ready_always_says_whether_the_session_was_resumed() -> None:
    ready = json.loads(encode(codec.Ready("s", "e", ("*",), "ana")))
    assert ready["resumed"] is False
    assert ready["seen"] == 0
    assert ready["rights"] == ["*"]


def test_what_json_cannot_say_and_what_is_too_long_is_told_by_name() -> None:
    with pytest.raises(Invalid, match="the result of kv.get cannot be sent"):
        codec.body_of(object(), what="the result of kv.get", limit=100)
    with pytest.raises(TooBig, match=r"the result of kv.get takes 2.0 MiB; a text frame holds 1.0 MiB"):
        codec.body_of("x" * 2**21, what="the result of kv.get", limit=2**20)


def test_an_error_of_a_later_version_does_not_end_the_link() -> None:
    (frame,) = decode('{"t":"error","id":1,"error":{"code":"ON_FIRE","message":"hot"}}')
    assert isinstance(frame, codec.Error)
    report = codec.report_of(frame)
    assert report.code is Code.INTERNAL
    assert "ON_FIRE" in report.message


def test_an_error_crosses_with_all_it_says() -> None:
    error = NotFound(
        "no service 'x'", remedy="look at `mk services`", service="kernel", retry_after=0.5, causes=("a", "b")
    )
    (frame,) = decode(encode(codec.error_frame(3, error)).decode())
    assert isinstance(frame, codec.Error)
    assert codec.report_of(frame) == error.report()


@given(st.text(max_size=200))
def test_a_close_reason_fits_its_frame_at_a_whole_character(reason: str) -> None:
    raw = codec.reason_text(reason)
    assert len(raw) <= 123
    raw.decode()
