"""Bodies with buffers: what goes beside the JSON, and what comes back."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import microkernel as mk
from microkernel.buffers import Array
from microkernel.errors import Invalid, TooBig
from microkernel.wire import codec
from microkernel.wire.body import LONG_BYTES, Bulk, bulk_of, value_of

LONG = bytes(range(256)) * (LONG_BYTES // 256)
BINARY = 2**24
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: key != "$buffer"), inner),
    max_leaves=10,
)
ARRAYS = st.one_of(
    st.builds(lambda data: Array(data * 8, "float64", (1, len(data))), st.binary(max_size=20)),
    st.builds(Array, st.binary(max_size=20)),
)
WITH_ARRAYS = st.recursive(
    PLAIN | ARRAYS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=10
)


class Put(mk.Message):
    key: str
    raw: bytes = b""
    tensor: Array | None = None


def body(value: Any, **options: Any) -> Any:
    return codec.body_of(
        value, what="the body", limit=options.get("limit", 2**20), binary=options.get("binary", BINARY)
    )


@given(WITH_ARRAYS)
def test_whatever_holds_arrays_comes_back_as_it_was(value: Any) -> None:
    assert codec.decode_body(body(value)) == value


@given(PLAIN)
def test_what_holds_none_is_plain_json_and_costs_nothing(value: Any) -> None:
    assert body(value) == msgspec.Raw(msgspec.json.encode(value))


def test_an_array_goes_beside_the_json_without_a_copy() -> None:
    memory = bytearray(b"abcd")
    bulk = body({"a": [Array(memory, "uint16", (2,))]})
    assert bytes(bulk.json) == b'{"a":[{"$buffer":0,"dtype":"uint16","shape":[2]}]}'
    memory[0] = ord("x")
    assert bytes(bulk.buffers[0]) == b"xbcd"


def test_long_bytes_travel_beside_and_short_ones_as_base64() -> None:
    assert body(Put("k", b"short")) == msgspec.Raw(b'{"key":"k","raw":"c2hvcnQ=","tensor":null}')
    for value in (Put("k", LONG), {"key": "k", "raw": LONG}, {"key": "k", "raw": bytearray(LONG)}):
        bulk = body(value)
        assert isinstance(bulk, Bulk)
        assert b'"raw":{"$buffer":0}' in bytes(bulk.json)
        assert codec.decode_body(bulk, Put) == Put("k", LONG)
    assert codec.decode_body(body(LONG), bytes) == LONG
    assert codec.decode_body(body([[LONG], (LONG,)]), list[list[bytes]]) == [[LONG], [LONG]]


def test_bytes_that_go_beside_are_not_written_as_text_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def encode(self, value: Any) -> bytes:
            raise AssertionError(f"{len(value)} bytes were made text")

    monkeypatch.setattr("microkernel.wire.codec._encoder", Never())
    monkeypatch.setattr("microkernel.wire.body._plain", Never())
    for value in (LONG, bytearray(LONG), memoryview(LONG)):
        assert codec.text_of(value, BINARY) is None
        assert bytes(body(value).buffers[0]) == LONG


def test_where_no_type_says_bytes_they_are_the_text_that_they_are_in_json() -> None:
    assert codec.decode_body(body({"raw": LONG})) == msgspec.to_builtins({"raw": LONG})
    assert codec.given(body({"raw": LONG}), what="x").value == {"raw": LONG}


def test_to_an_end_that_takes_no_buffers_all_goes_as_text() -> None:
    put = Put("k", LONG, Array(b"abcd", "uint16", (2,)))
    text = body(put, binary=0)
    assert isinstance(text, msgspec.Raw)
    assert codec.decode_body(text, Put) == put
    assert codec.decode_body(text)["tensor"] == {"dtype": "uint16", "shape": [2], "data": "YWJjZA=="}


def test_what_json_cannot_say_is_refused_beside_an_array_too() -> None:
    for value in (object(), {"a": Array(b""), "b": object()}, {"a": Array(b""), "b": float}):
        with pytest.raises(Invalid, match="the body cannot be sent as JSON"):
            body(value)


def test_raw_json_beside_an_array_stays_what_it_is() -> None:
    value = {"a": Array(b"a"), "raw": msgspec.Raw(b'{"x":1}')}
    assert codec.decode_body(body(value)) == {"a": Array(b"a"), "raw": {"x": 1}}


def test_a_field_of_ones_own_is_not_taken_for_a_buffer() -> None:
    assert codec.decode_body(body({"$buffer": 0})) == {"$buffer": 0}
    assert codec.decode_body(body([Array(b"a"), '"$buffer":'])) == [Array(b"a"), '"$buffer":']
    with pytest.raises(Invalid, match=r"no field of its own called '\$buffer'"):
        body([Array(b"a"), {"$buffer": 0}])


@pytest.mark.parametrize(
    ("json", "buffers", "why"),
    [
        ('{"$buffer":1}', 1, "1 names no buffer, or one that was named before"),
        ('[{"$buffer":0},{"$buffer":0}]', 1, "0 names no buffer, or one that was named before"),
        ('{"$buffer":-1}', 1, "-1 names no buffer"),
        ('{"$buffer":true}', 2, "True names no buffer"),
        ('{"$buffer":0.0}', 1, "0.0 names no buffer"),
        ('{"$buffer":[0]}', 1, r"\[0\] names no buffer"),
        ("{}", 1, "1 of 1 buffers are named nowhere, such as 0"),
        ('{"$buffer":0}', 3, "2 of 3 buffers are named nowhere, such as 1"),
        ('{"$buffer":0,"dtype":"uint8"}', 1, "the place of buffer 0 needs a dtype and a shape, and nothing else"),
        ('{"$buffer":0,"dtype":"uint8","shape":[4],"x":1}', 1, "and nothing else"),
        ('{"$buffer":0,"dtype":"uint8","shape":[5]}', 1, r"buffer 0: .* takes 5 bytes, not 4"),
        ('{"$buffer":0,"dtype":"uint8","shape":[-4]}', 1, "not -4"),
        ('{"$buffer":0,"dtype":"uint8","shape":[9223372036854775807,9223372036854775807]}', 1, "bytes, not 4"),
        ('{"$buffer":0,"dtype":"uint8","shape":[99999999999999999999]}', 1, "not 9"),
        ('{"$buffer":0,"dtype":["uint8"],"shape":[4]}', 1, "no dtype"),
        ('{"$buffer":0,"dtype":"uint8","shape":{}}', 1, "at most 32"),
        ('{"$buffer":0', 1, "truncated"),
        ("[" * 100_000, 1, "recursion"),
    ],
)
def test_a_body_that_does_not_name_each_buffer_once_is_refused(json: str, buffers: int, why: str) -> None:
    bulk = Bulk(msgspec.Raw(json.encode()), tuple(memoryview(b"abcd") for _ in range(buffers)))
    with pytest.raises(Invalid, match=why):
        value_of(bulk, what="the body")


def test_a_body_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TooBig, match="the body takes 2.0 MiB, of which JSON is 0.0 MiB; a message holds 1.0 MiB"):
        body(Array(bytes(2**21)), binary=2**20)
    with pytest.raises(TooBig, match="of which JSON is 0.1 MiB at most"):
        body([Array(b"a"), "x" * 100_000], limit=64 * 1024)
    with pytest.raises(TooBig, match="holds 1025 arrays; a message holds 1024"):
        body([Array(b"a")] * 1025)


def test_the_same_array_twice_is_two_buffers() -> None:
    twice = Array(b"ab")
    assert value_of(bulk_of([twice, twice]), what="x") == [twice, twice]


def test_buffers_are_let_go_of_at_once_and_not_when_the_collector_comes_by() -> None:
    class Memory(bytearray):
        """Memory that can be watched."""

    gc.collect()
    gc.disable()
    try:
        memory = Memory(b"abcd")
        watched = weakref.ref(memory)
        value = value_of(bulk_of({"a": [Array(memory)]}), what="it")
        del memory, value
        assert watched() is None
    finally:
        gc.enable()
