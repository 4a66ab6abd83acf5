"""Autobahn's group 9: messages of many sizes, whole, in fragments and in chops; and what is beyond a limit.

A server's limits are settings: it is given larger ones here, so that all sizes of text come back. A client takes the
text that `mk.v1` allows when nobody says otherwise, 1 MiB, and binary frames have at most 1 MiB and 64 KiB on either
side: messages of group 9 that are longer are refused by `mk.v1`, and the sizes of the fragments are tried with 1 MiB.
"""

from __future__ import annotations

from conformance.case import ECHO, MK_TOO_BIG, Case, Role, Say

__all__ = ["MIB", "size_cases"]

KIB, MIB = 2**10, 2**20
SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB)
FRAGMENTS = (64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB)
CHOPS = (64, 128, 256, 512, KIB, 2 * KIB)
SLOW_FRAGMENT, SLOW_CHOP, SLOW_SIZE = 256, 256, 8 * MIB  # octets: up to the first two, and from the last one


def size_cases(role: Role) -> list[Case]:
    """All of them, in order."""
    server = role is Role.SERVER
    cases: list[Case] = []
    for group, binary in ((1, False), (2, True)):
        kind = "binary" if binary else "text"
        for place, size in enumerate(SIZES, 1):
            fits = size <= MIB or (server and not binary)
            cases.append(
                _case(
                    f"9.{group}.{place}",
                    f"a {kind} of {size} octets",
                    Say(size=size, binary=binary),
                    fits=fits,
                    slow=size >= SLOW_SIZE,
                )
            )
    for group, binary in ((3, False), (4, True)):
        size = 4 * MIB if server and not binary else MIB
        for place, every in enumerate(FRAGMENTS, 1):
            said = Say(size=size, binary=binary, every=every)
            cases.append(
                _case(f"9.{group}.{place}", f"{size} octets in fragments of {every}", said, slow=every <= SLOW_FRAGMENT)
            )
    for group, binary in ((5, False), (6, True)):
        for place, chop in enumerate(CHOPS, 1):
            said = Say(size=MIB, binary=binary)
            cases.append(
                _case(f"9.{group}.{place}", f"{MIB} octets in chops of {chop}", said, chop=chop, slow=chop <= SLOW_CHOP)
            )
    return cases  # fmt: skip


def _case(number: str, what: str, said: Say, *, fits: bool = True, chop: int = 0, slow: bool = False) -> Case:
    answers, closes = ((ECHO,), ()) if fits else ((), (MK_TOO_BIG,))
    return Case(number, what, (said,), answers, closes=closes, chop=chop, slow=slow)
