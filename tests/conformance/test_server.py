"""The node at `/mk` keeps RFC 6455: Autobahn's cases, played by a client of raw sockets.

An answer that does not come is a failure after `PATIENCE` seconds; nothing else depends on time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from conformance.case import DROPPED, NO_CODE, NORMAL, PROTOCOL_ERROR, TOO_BIG, Case, Role, Say, text
from conformance.echo_node import Calls, Conversation, echo_node
from conformance.frames import Frame, Opcode, close_frame
from conformance.framing_cases import framing_cases
from conformance.parameters import parameters
from conformance.raw import Refused, dial
from conformance.size_cases import MIB, size_cases
from conformance.utf8_cases import utf8_cases

PATIENCE = 60.0
ROOMY = {"text": 17 * MIB, "buffer": 64 * MIB}

OFFERS = (  # groups 12 and 13: what a client may ask of permessage-deflate (RFC 7692, section 7.1)
    "permessage-deflate",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; client_max_window_bits; server_max_window_bits=9",
    "permessage-deflate; client_max_window_bits; server_max_window_bits=15",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=9",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=15",
    "permessage-deflate; server_no_context_takeover; server_max_window_bits=9, permessage-deflate",
)
DEFLATED = bytes.fromhex("aa56ca48cdc9c957b20200")  # some JSON as permessage-deflate sends it
COMPRESSED_SIZES = ((64, 0), (1024, 0), (131072, 0), (8192, 256), (131072, 4096))  # octets, and of a fragment


@pytest.mark.parametrize("case", parameters([*framing_cases(), *utf8_cases()]))
async def test_the_server_keeps_the_rfc_in_case(case):
    async with echo_node() as url:
        await play(case, url)


@pytest.mark.parametrize("case", parameters(size_cases(Role.SERVER)))
async def test_the_server_takes_messages_of_every_size_in_case(case):
    async with echo_node(**ROOMY) as url:
        await play(case, url)


@pytest.mark.parametrize("size", [4 * MIB, 16 * MIB])
async def test_a_server_refuses_what_is_beyond_its_limits_by_the_head_of_the_frame(size):
    """With the limits that are set when nobody says otherwise, nothing of such a frame is waited for."""
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        head = socket.encoded([Frame(Opcode.TEXT, bytes(size))])[:14]
        await socket.write([head])
        assert await end_of(conversation) == (0, TOO_BIG)


async def test_a_server_refuses_fragments_that_are_beyond_its_limits_together():
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        piece = Frame(Opcode.CONTINUATION, b" " * (MIB - 1), fin=False)
        await socket.send(text(b" " * (MIB - 1), fin=False), piece)
        await socket.write([socket.encoded([piece])[:14]])
        assert await end_of(conversation) == (0, TOO_BIG)


@pytest.mark.parametrize(
    ("number", "size", "binary"),
    [(f"9.7.{n}", size, False) for n, size in enumerate((64, 256, 1024, 4096), 3)]
    + [(f"9.8.{n}", size, True) for n, size in enumerate((256, 1024, 4096), 4)],
)
async def test_a_thousand_messages_come_back_one_by_one(number, size, binary):
    """Messages of 0 and 16 octets (9.7.1, 9.7.2, 9.8.1 to 9.8.3) are shorter than any call is."""
    case = Case(number, "a message", (Say(size=size, binary=binary),))
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        content = case.content(Calls(), 0)
        chops = case.chops(Calls(), socket.encoded)
        for _ in range(1000):
            await socket.write(chops)
            assert await conversation.next() == (0, content)


@pytest.mark.parametrize("offer", OFFERS, ids=[f"13.{place}" for place in range(1, 8)])
async def test_an_offer_to_compress_is_declined_and_uncompressed_messages_go_on(offer):
    said = tuple(Say(size=size, every=every) for size, every in COMPRESSED_SIZES)
    case = Case("12", "messages of many sizes", said, tuple(range(len(said))))
    asked = {"Sec-WebSocket-Extensions": offer}
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url, asked) as socket:
        assert "sec-websocket-extensions" not in socket.headers
        conversation = Conversation(socket)
        await conversation.open()
        await converse(case, conversation)


@pytest.mark.parametrize("fin", [True, False], ids=["whole", "in fragments"])
async def test_a_compressed_message_is_a_protocol_error_since_nothing_was_agreed(fin):
    asked = {"Sec-WebSocket-Extensions": OFFERS[0]}
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url, asked) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        await socket.send(text(DEFLATED, fin=fin, rsv=4))
        assert await end_of(conversation) == (0, PROTOCOL_ERROR)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="aiohttp takes frames that a client has not masked: its reader never asks",
)
async def test_a_frame_without_a_mask_is_a_protocol_error():
    """RFC 6455, section 5.1; Autobahn has no case for it."""
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        await socket.write([Frame(Opcode.PING, b"bare").encoded(masked=False)])
        assert await end_of(conversation) == (0, PROTOCOL_ERROR)


@pytest.mark.parametrize("head", ["827e0005", "827f0000000000000005"], ids=["2 octets", "8 octets"])
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="aiohttp takes a length in more octets than it needs")
async def test_a_length_in_more_octets_than_it_needs_is_a_protocol_error(head):
    """RFC 6455, section 5.2; Autobahn has no case for it. What is in the frame is refused by `mk.v1` with 4501."""
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        octets = bytearray.fromhex(head)
        octets[1] |= 128  # masked, with a key of zeros
        await socket.write([bytes(octets) + bytes(4) + b"12345"])
        assert await end_of(conversation) == (0, PROTOCOL_ERROR)


async def test_a_length_with_its_highest_bit_set_ends_the_link():
    """RFC 6455, section 5.2: that bit must be 0."""
    async with asyncio.timeout(PATIENCE), echo_node() as url, dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        await socket.write([bytes.fromhex("82ff8000000000000000") + bytes(4)])
        assert await end_of(conversation) in [(0, PROTOCOL_ERROR), (0, TOO_BIG)]


@pytest.mark.parametrize(
    "changes",
    [{"Sec-WebSocket-Key": None}, {"Sec-WebSocket-Key": "short"}, {"Upgrade": None}, {"Upgrade": "h2c"},
     {"Connection": None}, {"Connection": "close"}, {"Sec-WebSocket-Version": None}, {"Sec-WebSocket-Version": "25"}],
    ids=["no key", "a short key", "no upgrade", "another upgrade", "no connection", "another connection",
         "no version", "another version"],
)  # fmt: skip
async def test_a_handshake_that_lacks_something_is_answered_by_an_error_of_http(changes):
    """RFC 6455, section 4.2.1; Autobahn has no cases for handshakes."""
    async with asyncio.timeout(PATIENCE), echo_node() as url:
        with pytest.raises(Refused) as refused:
            async with dial(url, changes):
                pass
        assert refused.value.status in {400, 426}


async def test_who_asks_for_another_version_is_told_which_is_spoken():
    """RFC 6455, section 4.4."""
    async with asyncio.timeout(PATIENCE), echo_node() as url:
        with pytest.raises(Refused) as refused:
            async with dial(url, {"Sec-WebSocket-Version": "25"}):
                pass
        assert refused.value.headers.get("sec-websocket-version") == "13"


async def play(case: Case, url: str) -> None:
    """One case from the handshake to the end of the connection."""
    async with asyncio.timeout(PATIENCE), dial(url) as socket:
        conversation = Conversation(socket)
        await conversation.open()
        await converse(case, conversation)


async def converse(case: Case, conversation: Conversation) -> None:
    """Send what the case says and compare what comes with what it expects."""
    dialect = Calls()
    wanted = [
        answer if isinstance(answer, Frame) else (answer, case.content(dialect, answer)) for answer in case.answers
    ]
    await conversation.socket.write(case.chops(dialect, conversation.socket.encoded))
    if case.closes:
        came, code = await end_of(conversation, wanted)
        assert came >= (len(wanted) if case.needed is None else case.needed)
        assert code in case.closes
    else:
        answers = [await conversation.next() for _ in wanted]
        assert answers == wanted
        await conversation.socket.send(close_frame(NORMAL))
        assert await end_of(conversation) == (0, NORMAL)


async def end_of(conversation: Conversation, allowed: Sequence[object] = ()) -> tuple[int, int]:
    """How many of the answers `allowed` still come, and the code that the server closes with.

    Any other answer is a failure at once. The server ends the connection (section 7.1.1).
    """
    came = 0
    while (answer := await conversation.next()) is not None:
        if isinstance(answer, Frame) and answer.opcode == Opcode.CLOSE:
            code = NO_CODE if answer.close_code is None else answer.close_code
            await conversation.socket.send(close_frame(NORMAL))
            assert await conversation.next() is None
            return came, code
        assert [answer] == list(allowed[came : came + 1])
        came += 1
    return came, DROPPED
