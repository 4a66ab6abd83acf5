"""Autobahn's groups 1 to 5, 7 and 10: framing, pings, reserved bits and opcodes, fragments, closing; and some of ours.

Cases that Autobahn has no number for begin with a letter.
"""

from __future__ import annotations

from conformance.case import (
    DROPPED,
    ECHO,
    FRAME_BY_FRAME,
    HELLO,
    NO_CODE,
    NO_UTF8,
    NORMAL,
    NOT_MK,
    PROTOCOL_ERROR,
    Case,
    Say,
    text,
)
from conformance.frames import Frame, Opcode, close_frame

__all__ = ["framing_cases"]

NO_TEXT = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
BREAKS = (PROTOCOL_ERROR,)
VALID_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
INVALID_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
SIX = (  # aiohttp 3.14: ALLOWED_CLOSE_CODES of its reader is the whole of WSCloseCode, which has ABNORMAL_CLOSURE
    "aiohttp takes 1006 in a close frame for a code that may be sent, and answers it with 1000"
)
ANYTHING = "aiohttp takes a new message after an empty first fragment: its reader asks whether there are octets of it"


def framing_cases() -> list[Case]:
    """All of them, in order."""
    return [*_framing(), *_pings(), *_reserved(), *_fragments(), *_closing(), *_codes(), *_fragmenting()]


def _framing() -> list[Case]:
    texts = [
        # Nothing is no JSON: the frame is good, and mk.v1 refuses it.
        Case("1.1.1", "an empty text", (text(b""),), closes=(NOT_MK,)),
        *(
            Case(f"1.1.{place}", f"a text of {size} octets", (Say(size=size),), (ECHO,))
            for place, size in enumerate((125, 126, 127, 128, 65535, 65536), 2)
        ),
        Case("1.1.8", "a text of 65,536 octets in chops of 997", (Say(size=65536),), (ECHO,), chop=997),
    ]
    binaries = [
        # What does not begin as mk.v1's binary frames do is refused by it; theirs are multiples of 16 octets.
        Case("1.2.1", "an empty binary", (Frame(Opcode.BINARY),), closes=(NOT_MK,)),
        *(
            Case(f"1.2.{place}", f"a binary of {size} octets", (_octets(size),), closes=(NOT_MK,))
            for place, size in ((2, 125), (3, 126), (4, 127), (6, 65535))
        ),
        Case("1.2.5", "a binary of 128 octets", (Say(size=128, binary=True),), (ECHO,)),
        Case("1.2.7", "a binary of 65,536 octets", (Say(size=65536, binary=True),), (ECHO,)),
        Case("1.2.8", "the same in chops of 997", (Say(size=65536, binary=True),), (ECHO,), chop=997),
    ]
    return texts + binaries


def _pings() -> list[Case]:
    ten = [_ping(f"payload-{number}".encode()) for number in range(10)]
    stray = Frame(Opcode.PONG, b"unsolicited pong payload")
    return [
        Case("2.1", "an empty ping", (_ping(),), (_pong(),)),
        Case("2.2", "a ping with a text", (_ping(HELLO),), (_pong(HELLO),)),
        Case("2.3", "a ping with octets that are no text", (_ping(NO_TEXT),), (_pong(NO_TEXT),)),
        Case("2.4", "a ping of 125 octets", (_ping(b"\xfe" * 125),), (_pong(b"\xfe" * 125),)),
        Case("2.5", "a ping of 126 octets, which is one too many", (_ping(b"\xfe" * 126),), closes=BREAKS),
        Case("2.6", "a ping of 125 octets, one by one", (_ping(b"\xfe" * 125),), (_pong(b"\xfe" * 125),), chop=1),
        Case("2.7", "an empty pong that answers nothing", (Frame(Opcode.PONG),)),
        Case("2.8", "a pong with a payload that answers nothing", (stray,)),
        Case("2.9", "a pong that answers nothing, then a ping", (stray, _ping(HELLO)), (_pong(HELLO),)),
        Case("2.10", "ten pings", tuple(ten), tuple(_pong(each.payload) for each in ten)),
        Case("2.11", "ten pings, octet by octet", tuple(ten), tuple(_pong(each.payload) for each in ten), chop=1),
    ]


def _reserved() -> list[Case]:
    return [
        Case("3.1", "a text with RSV 1", (text(rsv=1),), closes=BREAKS),
        _after_a_text("3.2", text(rsv=2)),
        _after_a_text("3.3", text(rsv=3), chop=FRAME_BY_FRAME),
        _after_a_text("3.4", text(rsv=4), chop=1),
        Case("3.5", "a binary with RSV 5", (Frame(Opcode.BINARY, NO_TEXT, rsv=5),), closes=BREAKS),
        Case("3.6", "a ping with RSV 6", (Frame(Opcode.PING, HELLO, rsv=6),), closes=BREAKS),
        Case("3.7", "a close with RSV 7", (Frame(Opcode.CLOSE, rsv=7),), closes=BREAKS),
        *_reserved_opcodes("4.1", 3),
        *_reserved_opcodes("4.2", 11),
    ]


def _reserved_opcodes(group: str, first: int) -> list[Case]:
    payload = b"reserved opcode payload"
    return [
        Case(f"{group}.1", f"an empty frame of opcode {first}", (Frame(first),), closes=BREAKS),
        Case(f"{group}.2", f"a frame of opcode {first + 1}", (Frame(first + 1, payload),), closes=BREAKS),
        _after_a_text(f"{group}.3", Frame(first + 2)),
        _after_a_text(f"{group}.4", Frame(first + 3, payload)),
        _after_a_text(f"{group}.5", Frame(first + 4, payload), chop=1),
    ]


def _after_a_text(number: str, wrong: Frame, *, chop: int = 0) -> Case:
    """A frame that means nothing between a message and a ping; the ping is not answered any more."""
    what = f"a good text, a frame of opcode {wrong.opcode} with RSV {wrong.rsv}, a ping"
    # The message comes back before the connection is failed, or not at all: it is answered by a task.
    return Case(number, what, (Say(), wrong, _ping()), (ECHO,), needed=0, closes=BREAKS, chop=chop)


def _fragments() -> list[Case]:
    said, pinged = Say(parts=2), Say(parts=2, between=((1, _ping(HELLO)),))
    chops = ("in one write", 0), ("frame by frame", FRAME_BY_FRAME), ("octet by octet", 1)
    lost, more = _continuation(b"non-continuation payload"), _continuation(b"fragment", fin=False)
    pings = _ping(b"pongme 1!"), _ping(b"pongme 2!")
    five = Say(parts=5, between=((2, pings[0]), (4, pings[1])))
    answers = (_pong(b"pongme 1!"), _pong(b"pongme 2!"), ECHO)
    two = (text(b"fragment2", fin=False), _continuation(b"fragment3"))
    return [
        *(
            Case(f"5.{place}", f"a {opcode.name.lower()} in two fragments", (Frame(opcode, b"1", fin=False), lost),
                 closes=BREAKS)
            for place, opcode in ((1, Opcode.PING), (2, Opcode.PONG))
        ),
        *(Case(f"5.{3 + n}", f"a text in two, {how}", (said,), (ECHO,), chop=c) for n, (how, c) in enumerate(chops)),
        *(
            Case(f"5.{6 + n}", f"a text in two, a ping between, {how}", (pinged,), (_pong(HELLO), ECHO), chop=c)
            for n, (how, c) in enumerate(chops)
        ),
        *(
            Case(f"5.{9 + n}", f"the last fragment of nothing, {how}", (lost, Say()), closes=BREAKS, chop=c)
            for n, (how, c) in enumerate(chops)
        ),
        *(
            Case(f"5.{12 + n}", f"a fragment of nothing, {how}", (more, Say()), closes=BREAKS, chop=c)
            for n, (how, c) in enumerate(chops)
        ),
        Case("5.15", "a text in two, then a fragment of nothing", (said, more, text()), (ECHO,), 0, BREAKS),
        Case("5.16", "twice a fragment of nothing and a text in two", (more, *two) * 2, closes=BREAKS),
        Case("5.17", "twice the last fragment of nothing and a text in two", (lost, *two) * 2, closes=BREAKS),
        Case("5.18", "a text in two, both of opcode text", (text(b"1", fin=False), text(b"2")), closes=BREAKS),
        Case("5.19", "a text in five with two pings between", (five,), answers),
        Case("5.20", "the same, frame by frame", (five,), answers, chop=FRAME_BY_FRAME),
        Case("a.1", "an empty first fragment, then a new text", (text(b"", fin=False), Say(), _ping()), closes=BREAKS,
             wrong=ANYTHING),
        Case("a.2", "a binary fragment, then one of a text", (_octets(9, fin=False), text(b"2", fin=False)),
             closes=BREAKS),
    ]  # fmt: skip


def _closing() -> list[Case]:
    bye = close_frame(NORMAL)
    agreed = (NORMAL,)
    return [
        Case("7.1.1", "a message, then the close", (Say(),), (ECHO,)),
        Case("7.1.2", "two close frames", (bye, Frame(Opcode.CLOSE)), closes=agreed),
        Case("7.1.3", "a ping after the close", (bye, _ping()), closes=agreed),
        Case("7.1.4", "a text after the close", (bye, Say()), closes=agreed),
        Case("7.1.5", "the close between two fragments", (text(b"1", fin=False), bye, _continuation(b"2")),
             closes=agreed),
        # Whether the answers are on their way before the close is looked at is left to whoever is asked.
        Case("7.1.6", "256 KiB, a text, the close and a ping", (Say(size=2**18), Say(), bye, _ping()), (0, 1), 0,
             agreed),
        Case("7.3.1", "an empty close", (close_frame(),), closes=(NORMAL, NO_CODE)),
        Case("7.3.2", "a close of one octet", (close_frame(None, b"a"),), closes=BREAKS),
        Case("7.3.3", "a close with a code", (bye,), closes=agreed),
        Case("7.3.4", "a close with a reason", (close_frame(NORMAL, HELLO),), closes=agreed),
        Case("7.3.5", "a close with the longest reason", (close_frame(NORMAL, b"*" * 123),), closes=agreed),
        Case("7.3.6", "a close with a reason too long", (close_frame(NORMAL, b"*" * 124),), closes=BREAKS),
        Case("7.5.1", "a close whose reason is no UTF-8",
             (close_frame(NORMAL, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited"),), closes=(NO_UTF8, PROTOCOL_ERROR)),
    ]  # fmt: skip


def _codes() -> list[Case]:
    return [
        *(
            Case(f"7.7.{place}", f"a close with {code}", (close_frame(code),), closes=(NORMAL, code))
            for place, code in enumerate(VALID_CODES, 1)
        ),
        *(
            Case(f"7.9.{place}", f"a close with {code}, which is never sent", (close_frame(code),), closes=BREAKS,
                 wrong=SIX if code == DROPPED else "")
            for place, code in enumerate(INVALID_CODES, 1)
        ),
        *(  # The RFC leaves open what becomes of these; that the connection ends is not left open.
            Case(f"7.13.{place}", f"a close with {code}, which nobody has defined", (close_frame(code),),
                 closes=(NORMAL, PROTOCOL_ERROR, NO_CODE, DROPPED))
            for place, code in ((1, 5000), (2, 65535))
        ),
        *(
            Case(f"b.{place}", f"a close with {code}, of the registry", (close_frame(code),), closes=(NORMAL, code))
            for place, code in enumerate((1012, 1013, 1014), 1)
        ),
        Case("b.4", "a close with 1015, which is never sent", (close_frame(1015),), closes=BREAKS),
    ]  # fmt: skip


def _fragmenting() -> list[Case]:
    return [Case("10.1.1", "a text of 65,536 octets in fragments of 1,300", (Say(size=65536, every=1300),), (ECHO,))]


def _ping(payload: bytes = b"") -> Frame:
    return Frame(Opcode.PING, payload)


def _pong(payload: bytes = b"") -> Frame:
    return Frame(Opcode.PONG, payload)


def _continuation(payload: bytes, *, fin: bool = True) -> Frame:
    return Frame(Opcode.CONTINUATION, payload, fin)


def _octets(size: int, *, fin: bool = True) -> Frame:
    return Frame(Opcode.BINARY, b"\xfe" * size, fin)
