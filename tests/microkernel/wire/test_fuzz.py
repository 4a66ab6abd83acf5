"""Hostile frames against codec, assembly and both sessions: nothing but a close with a reason may come out.

They are two hundred thousand in CI and a million at night. They come in blocks of a thousand, each from its own seed. A
failure names the block; to replay it alone, set `MICROKERNEL_FUZZ_BLOCK` to that number and run the same test.
"""

from __future__ import annotations

import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from microkernel.capability import Identity, Rights
from microkernel.errors import Invalid
from microkernel.wire import binary, codec
from microkernel.wire.binary import ABORT, FRAME_BYTES, MORE, PART, frame_header
from microkernel.wire.body import Bulk
from microkernel.wire.chunks import Assembly
from microkernel.wire.client_session import ClientSession
from microkernel.wire.codec import CloseCode, ProtocolError
from microkernel.wire.limits import Limits
from microkernel.wire.server_session import ServerSession
from microkernel.wire.session import Close

BLOCK = 1000
NIGHT = 5  # times as many blocks as in CI
TEXT, LIMIT = 64 * 1024, 2**20
NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**20, 2**24, 2**31, 2**32 - 1)
LONG_NUMBERS = (*NUMBERS, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 16)
COMPLAINTS = {CloseCode.PROTOCOL, CloseCode.TOO_BIG, CloseCode.VERSION, CloseCode.BINARY, CloseCode.RATE}
TOKENS = (
    "{", "}", "[", "]", ",", ":", '"', "null", "true", "-1", "1e999", "9" * 30, "0.5", "[[[[", '{"a":',
    "\\u0000", "\ud800", '"t"', '"id"', '"body"', '"$buffer"', '"call"', '"auth"', '"ack"', '"item"', '"result"', "é",
)  # fmt: skip

JSONS = [
    b'{"t":"call","id":1,"to":"kv.put","body":{"tensor":{"$buffer":0,"dtype":"uint8","shape":[3]}}}',
    b'{"t":"result","id":7,"body":[{"$buffer":1},{"$buffer":0}]}',
    b'{"t":"publish","subject":"a.b","body":{"$buffer":0,"dtype":"float32","shape":[2,2]}}',
    b'{"t":"teleport","id":3}',
    b'{"t":"ping","ts":1}',
]
FRAMES = [
    binary.pack(each, [memoryview(bytes(range(size))) for size in sizes], compressed=False).joined()
    for each in JSONS
    for sizes in ((), (3,), (16, 0), (16, 33, 1))
]
CLIENT_MESSAGES = [
    {"t": "auth", "v": 1, "token": "t", "resume": {"session": "s", "seen": 0}, "binary": 1000},
    {"t": "call", "id": 1, "to": "kv.get", "body": {"key": "k"}, "deadline": 100, "priority": 3, "trace": "00-1"},
    {"t": "open", "id": 2, "to": "kv.scan", "credit": 3},
    {"t": "credit", "id": 2, "n": 5},
    {"t": "item", "id": 2, "body": 1},
    {"t": "end", "id": 2},
    {"t": "cancel", "id": 1, "why": "x"},
    {"t": "send", "to": "kv.put", "body": None},
    {"t": "publish", "subject": "a.b", "body": [1, 2.5, "x"]},
    {"t": "subscribe", "id": 3, "subject": "a.>", "group": "g", "since": 4},
    {"t": "unsubscribe", "id": 3},
    {"t": "ack", "seen": 0},
    {"t": "ping", "ts": 1.5},
    {"t": "pong", "ts": 1.5},
    {"t": "bye", "reason": "x", "after": 5},
    {"t": "teleport", "id": 9},
]
SERVER_MESSAGES = [
    {"t": "result", "id": 1, "body": {"a": 1}},
    {"t": "error", "id": 1, "error": {"code": "NOT_FOUND", "message": "x"}},
    {"t": "error", "error": 5},
    {"t": "item", "id": 2, "body": 1},
    {"t": "end", "id": 2},
    {"t": "event", "id": 3, "subject": "a.b", "offset": 1, "body": {}},
    {"t": "ack", "seen": 1},
    {"t": "bye", "reason": "x", "after": 100},
    {"t": "ping", "ts": 1},
    {"t": "hello", "v": 1, "node": "n", "epoch": "e", "heartbeat": 15, "max": {}},
    {"t": "ready", "session": "s", "epoch": "e", "rights": ["*"], "user": "u"},
]


def in_ci_and_at_night(count: int) -> pytest.MarkDecorator:
    """Parametrizes a test with how many blocks it takes."""
    return pytest.mark.parametrize("count", [count, pytest.param(NIGHT * count, marks=pytest.mark.slow)])


def blocks(count: int, first: int) -> Iterator[tuple[int, random.Random]]:
    """Seeds and their chances: `count` blocks from `first` on, or the one that is to be replayed."""
    replayed = os.environ.get("MICROKERNEL_FUZZ_BLOCK")
    for block in [int(replayed)] if replayed else range(first, first + count):
        yield block, random.Random(block)


def run_blocks(count: int, first: int, case: Callable[[random.Random], None], request: pytest.FixtureRequest) -> None:
    """Run `case` a thousand times for each block; a failure says how to replay it."""
    for block, chance in blocks(count, first):
        number = 0
        try:
            for number in range(BLOCK):  # noqa: B007 - told in the failure
                case(chance)
        except Exception as error:  # noqa: BLE001 - whatever came out, the block that it came out of is told
            command = f'MICROKERNEL_FUZZ_BLOCK={block} python -m pytest -m "" "{request.node.nodeid}"'
            pytest.fail(f"case {number} of block {block}: {type(error).__name__}: {error}\nreplay it with: {command}")


def mutated(frame: bytes, chance: random.Random) -> bytes:
    """`frame` with one to four things wrong with it."""
    raw = bytearray(frame)
    for _ in range(chance.choice((1, 1, 2, 4))):
        size = len(raw)
        kind = chance.randrange(8)
        place = chance.randrange(size) if size else 0
        if kind == 0 and size:
            raw[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and size:
            raw[place] = chance.randrange(256)
        elif kind == 2:
            del raw[place:]
        elif kind == 3:
            del raw[place : place + chance.randrange(1, 17)]
        elif kind == 4:
            raw[place:place] = chance.randbytes(chance.randrange(1, 17))
        elif kind == 5 and size >= 24:
            struct.pack_into("<Q", raw, chance.randrange(16, size - 7), chance.choice(LONG_NUMBERS))
        elif kind == 6 and size >= 16:
            struct.pack_into("<I", raw, chance.choice((4, 12)), chance.choice(NUMBERS))
        elif size >= 16:
            struct.pack_into("<H", raw, chance.choice((2, 8, 10)), chance.choice(NUMBERS) & 0xFFFF)
    return bytes(raw)


def mutated_text(text: str, chance: random.Random) -> str:
    """`text` with one to four things wrong with it."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(text) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            text = text[:place] + chance.choice(TOKENS) + text[place:]
        elif kind == 1:
            text = text[:place] + chance.choice(TOKENS) + text[place + chance.randrange(1, 9) :]
        elif kind == 2:
            text = text[:place]
        elif kind == 3:
            text = text[:place] + text[place + chance.randrange(1, 9) :]
        else:
            text = text[:place] + chr(chance.randrange(0x250)) + text[place + 1 :]
    return text


def test_each_prefix_of_a_frame_is_refused_and_each_split_of_its_bytes_in_two() -> None:
    for frame in FRAMES:
        for place in range(len(frame)):
            for piece in (frame[:place], frame[place:] if place else b""):
                with pytest.raises(ProtocolError):
                    binary.message_of(piece, text=TEXT, limit=LIMIT)


@in_ci_and_at_night(100)
def test_frames_end_in_a_message_or_a_complaint(count: int, request: pytest.FixtureRequest) -> None:
    taken = 0

    def case(chance: random.Random) -> None:
        nonlocal taken
        frame = chance.randbytes(chance.randrange(64)) if chance.random() < 0.05 else b""
        frame = frame or mutated(chance.choice(FRAMES), chance)
        try:
            message: Any = binary.message_of(frame, text=TEXT, limit=LIMIT)
        except ProtocolError as error:
            assert error.code in COMPLAINTS
            return
        body = getattr(message, "body", None)
        if isinstance(body, Bulk):
            taken += 1
            assert sum(map(len, body.buffers)) <= len(frame)
            try:
                codec.decode_body(body)
            except Invalid:
                return

    run_blocks(count, 0, case, request)
    assert taken or "MICROKERNEL_FUZZ_BLOCK" in os.environ


@in_ci_and_at_night(40)
def test_bodies_end_in_a_value_or_a_complaint(count: int, request: pytest.FixtureRequest) -> None:
    bodies = ['{"$buffer":0,"dtype":"uint8","shape":[4]}', '[{"$buffer":0},{"$buffer":1}]', '{"a":[1,{"$buffer":0}]}']
    buffers = (memoryview(b"abcd"), memoryview(b"x" * 16))

    def case(chance: random.Random) -> None:
        text = mutated_text(chance.choice(bodies), chance).encode(errors="surrogatepass")
        try:
            codec.decode_body(Bulk(msgspec.Raw(text), buffers[: chance.randrange(3)]))  # type: ignore[arg-type] # ours
        except Invalid:
            return

    run_blocks(count, 1000, case, request)


@in_ci_and_at_night(10)
def test_parts_are_bounded_and_end_in_a_complaint(count: int, request: pytest.FixtureRequest) -> None:
    limit = 3 * FRAME_BYTES
    whole = binary.pack(JSONS[0], [memoryview(bytes(2 * FRAME_BYTES))]).joined()
    payload = memoryview(whole)[16:FRAME_BYTES]
    last = memoryview(whole)[2 * FRAME_BYTES - 16 :]
    incoming = Assembly(text=TEXT, limit=limit)
    json_bytes = len(JSONS[0])

    def case(chance: random.Random) -> None:
        nonlocal incoming
        stream = chance.randrange(1, 5)
        kind = chance.randrange(12)
        if kind < 3:
            frame = frame_header(MORE, json_bytes, 1, stream) + payload
        elif kind < 6:
            frame = frame_header(PART | MORE, 0, 0, stream) + payload
        elif kind < 9:
            frame = frame_header(PART, 0, 0, stream) + last
        elif kind < 11:
            frame = frame_header(ABORT, 0, 0, stream)
        else:
            flags, size = chance.randrange(32), chance.choice((0, 1, 16, 1000, len(payload)))
            frame = (
                frame_header(flags, chance.choice(NUMBERS), chance.randrange(3), chance.randrange(6)) + payload[:size]
            )
        try:
            incoming.received(frame)
        except ProtocolError as error:
            assert error.code in COMPLAINTS
            incoming = Assembly(text=TEXT, limit=limit)
        assert incoming.held <= limit + 4 * 16
        assert len(incoming) <= 4

    run_blocks(count, 2000, case, request)


def server_session() -> ServerSession:
    session = ServerSession(
        node="n", epoch="e", session="s", limits=Limits(text=TEXT, binary=LIMIT, messages=64), clock=lambda: 0.0
    )
    session.received('{"t":"auth","v":1,"token":"t","resume":{},"binary":1000000}')
    session.authenticated(Identity("ana", Rights()))
    session.outbox.clear()
    return session


def client_session() -> ClientSession:
    session = ClientSession(token="t", limits=Limits(text=TEXT, binary=LIMIT, messages=64), clock=lambda: 0.0)
    sizes = Limits(binary=LIMIT).announced()
    session.received(codec.encode(codec.Hello(1, "n", "e", 15.0, sizes)).decode())
    session.received(codec.encode(codec.Ready("s", "e", ("*",), "u")).decode())
    session.call("a.b", None, deadline=None, priority=None)
    session.open("a.b", None, credit=100, deadline=None, priority=None)
    session.subscribe("a.b", None)
    session.outbox.clear()
    return session


@in_ci_and_at_night(20)
@pytest.mark.parametrize(
    ("made", "messages", "first"),
    [(server_session, CLIENT_MESSAGES, 3000), (client_session, SERVER_MESSAGES, 4000)],
    ids=["server", "client"],
)
def test_frames_to_a_session_end_in_actions_or_a_close(
    made: Callable[[], Any], messages: list[dict[str, Any]], first: int, count: int, request: pytest.FixtureRequest
) -> None:
    texts = [json.dumps(message) for message in messages]
    session = made()

    def case(chance: random.Random) -> None:
        nonlocal session
        if chance.random() < 0.3:
            actions = session.received_binary(mutated(chance.choice(FRAMES), chance))
        else:
            text = chance.choice(texts)
            if chance.random() < 0.2:
                text = f"[{text},{chance.choice(texts)}]"
            if chance.random() < 0.8:
                text = mutated_text(text, chance)
            actions = session.received(text)
        closes = [action for action in actions if isinstance(action, Close)]
        assert session.outbox.pending_bytes < 2**20
        assert closes == actions[-1:] or not closes
        for close in closes:
            assert close.code in COMPLAINTS | {CloseCode.UNAUTHENTICATED, codec.NORMAL}
            assert len(codec.reason_text(close.reason)) <= 123
        if closes or session.outbox.pending_messages > 500:
            session = made()

    run_blocks(count, first, case, request)


@in_ci_and_at_night(10)
def test_greetings_end_in_a_question_or_a_close(count: int, request: pytest.FixtureRequest) -> None:
    texts = [json.dumps(message) for message in CLIENT_MESSAGES]

    def case(chance: random.Random) -> None:
        session = ServerSession(node="n", epoch="e", session="s", limits=Limits(), clock=lambda: 0.0)
        text = texts[0] if chance.random() < 0.7 else chance.choice(texts)
        if chance.random() < 0.3:
            text = f"[{text},{chance.choice(texts)}]"
        for action in session.received(mutated_text(text, chance)):
            if isinstance(action, Close):
                assert action.code in COMPLAINTS | {CloseCode.UNAUTHENTICATED}

    run_blocks(count, 5000, case, request)


def test_no_frame_makes_more_memory_than_itself() -> None:
    chance = random.Random(6000)
    long = [bytearray(binary.pack(each, [memoryview(bytes(100_000))]).joined()) for each in JSONS]
    frames = [mutated(bytes(chance.choice(long)), chance) for _ in range(300)]
    tracemalloc.start()
    try:
        for frame in frames:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            try:
                message: Any = binary.message_of(frame, text=TEXT, limit=2**40)
            except ProtocolError:
                message = None
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < len(frame) + 64 * 1024
            del message
    finally:
        tracemalloc.stop()
