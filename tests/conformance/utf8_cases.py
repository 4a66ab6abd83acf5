"""Autobahn's group 6: text that is UTF-8 and text that is not, after Markus Kuhn's UTF-8 decoder stress test.

What is valid is decided by hand, sequence by sequence, and never by the decoder of the Python that runs the tests.
"""

from __future__ import annotations

from conformance.case import ECHO, HELLO, NO_UTF8, NOT_MK, Case, Say, text
from conformance.frames import Frame, Opcode

__all__ = ["utf8_cases"]

KOSME = bytes.fromhex("ce ba e1 bd b9 cf 83 ce bc ce b5")  # κόσμε, its accent an oxia: three octets
GREETING = "Hello-µ@ßöäüàá-UTF-8!!".encode()
SURROGATE = KOSME + b"\xed\xa0\x80" + b"edited"  # the twelfth octet of it is wrong
TOO_HIGH = KOSME + b"\xf4\x90\x80\x80" + b"edited"  # as is this one's 13th: it would be U+110000
BROKEN = (
    b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80",
    b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf",
)  # fmt: skip
HIGH, LOW = (b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf"), (b"\xed\xb0\x80", b"\xed\xbf\xbf")

# By group: what it shows, whether its sequences are valid, and they. Where a group has both, the wrong ones are marked.
Group = tuple[str, bool, tuple[bytes, ...]]
SEQUENCES: tuple[tuple[Group, ...], ...] = (
    (("good text", True, (b"hello$world", b"hello\xc2\xa2world", b"hello\xe2\x82\xacworld",
                          b"hello\xf0\xa4\xad\xa2world", KOSME)),),
    tuple(
        ("the beginning of a good text", end in {2, 5, 7, 9, 11}, (KOSME[:end],)) for end in range(1, len(KOSME) + 1)
    ),
    (("the first of a length", True, (b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80")),),
    (("the first of 5 and 6 octets", False, (b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80")),),
    (("the last of a length", True, (b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf")),),
    (("the last of 4, 5 and 6 octets", False,
      (b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf")),),
    (("beside a border", True, (b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf")),
     ("beyond the last", False, (b"\xf4\x90\x80\x80",))),
    (("continuation octets alone", False,
      (b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80", b"\x80\xbf\x80\xbf", b"\x80\xbf\x80\xbf\x80",
       b"\x80\xbf\x80\xbf\x80\xbf", bytes(range(0x80, 0xBF)))),),
    (("first octets alone", False,
      tuple(b"".join(bytes((each, 0x20)) for each in range(*ends))
            for ends in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD)))),),
    (("the last octet is missing", False, BROKEN),),
    (("all of these in a row", False, (b"".join(BROKEN),)),),
    (("octets that are never used", False, (b"\xfe", b"\xff", b"\xfe\xfe\xff\xff")),),
    (("a slash that is too long", False,
      (b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf")),),
    (("the longest that are too long", False,
      (b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf")),),
    (("a zero that is too long", False,
      (b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80")),),
    (("a half of a surrogate pair", False, (*HIGH, b"\xed\xb0\x80", b"\xed\xbe\x80", b"\xed\xbf\xbf")),),
    (("a surrogate pair", False, tuple(high + low for high in HIGH for low in LOW)),),
    (("not a character, and valid all the same", True,
      (b"\xef\xbf\xbe", b"\xef\xbf\xbf",
       *(bytes((first, second, 0xBF, last))
         for first in range(0xF0, 0xF5) for second in (0x8F, 0x9F, 0xAF, 0xBF) for last in (0xBE, 0xBF)
         if (first, second) != (0xF0, 0x8F) and (first < 0xF4 or second == 0x8F)))),),
    (("specials", True, tuple(b"\xef\xbf" + bytes((last,)) for last in range(0xB9, 0xC0))),),
)  # fmt: skip


def utf8_cases() -> list[Case]:
    """All of them, in order."""
    return [*_fragments(), *_fail_fast(), *_sequences()]


def _fragments() -> list[Case]:
    empty = Frame(Opcode.CONTINUATION, b"", fin=False)
    return [
        Case("6.1.1", "an empty text", (text(b""),), closes=(NOT_MK,)),
        Case("6.1.2", "a text of three empty fragments",
             (text(b"", fin=False), empty, Frame(Opcode.CONTINUATION)), closes=(NOT_MK,)),
        Case("6.1.3", "a fragment between two empty ones", (Say(empty_ends=True),), (ECHO,)),
        Case("6.2.1", "a good text", (Say(GREETING),), (ECHO,)),
        Case("6.2.2", "a good text cut between two characters", (Say(GREETING, cuts=(15,)),), (ECHO,)),
        Case("6.2.3", "a good text in fragments of an octet", (Say(GREETING, every=1),), (ECHO,)),
        Case("6.2.4", "the same in Greek", (Say(KOSME, every=1),), (ECHO,)),
        Case("6.3.1", "half of a surrogate pair", (Say(SURROGATE),), closes=(NO_UTF8,)),
        Case("6.3.2", "the same in fragments of an octet", (Say(SURROGATE, every=1),), closes=(NO_UTF8,)),
    ]  # fmt: skip


def _fail_fast() -> list[Case]:
    # Where the text goes wrong, the connection may be failed at once or at the message's end (section 8.1 says that,
    # not when). A ping follows the wrong fragment: who has read it so far may answer, and need not.
    pings = Frame(Opcode.PING, b"so far good"), Frame(Opcode.PING, HELLO)
    pongs = Frame(Opcode.PONG, b"so far good"), Frame(Opcode.PONG, HELLO)
    between = (1, pings[0]), (2, pings[1])
    return [
        Case("6.4.1", "the middle fragment of three is wrong", (Say(TOO_HIGH, cuts=(11, 15), between=between),), pongs,
             1, (NO_UTF8,)),
        Case("6.4.2", "and ends at the octet that is wrong", (Say(TOO_HIGH, cuts=(12, 13), between=between),), pongs,
             1, (NO_UTF8,)),
        Case("6.4.3", "the middle chop of three is wrong", (Say(TOO_HIGH, cuts=(11, 15)),), closes=(NO_UTF8,),
             chop_at_cuts=True),
        Case("6.4.4", "and ends at the octet that is wrong", (Say(TOO_HIGH, cuts=(12, 13)),), closes=(NO_UTF8,),
             chop_at_cuts=True),
    ]  # fmt: skip


def _sequences() -> list[Case]:
    cases = []
    for place, groups in enumerate(SEQUENCES, 5):
        members = [(what, valid, octets) for what, valid, sequences in groups for octets in sequences]
        for number, (what, valid, octets) in enumerate(members, 1):
            closes = () if valid else (NO_UTF8,)
            if octets == b"\x00":
                closes = (NOT_MK,)  # valid UTF-8, and JSON has no such character unless it is written \u0000
            answers = () if closes else (ECHO,)
            told = f"{what}: {octets[:6].hex()}"
            cases.append(Case(f"6.{place}.{number}", told, (Say(octets),), answers, closes=closes))
    return cases
