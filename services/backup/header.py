"""Headers of entries in an archive: tar as POSIX has it, in the one way that we write it. Sans-IO.

The format is ustar of POSIX.1-1988, with a `size` record of POSIX.1-2001 (pax) before the header of an entry of 8 GiB
or more (https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html). Whoever reads one makes it again from
what it says, and compares: a link, a device, another owner or a byte that has fallen over are all not what we write.
"""

from __future__ import annotations

import re

import msgspec

from microkernel.errors import DataLoss

__all__ = ["BLOCK", "Header", "decode", "encode", "padding"]

BLOCK = 512  # bytes
NAME, PREFIX = 100, 155  # bytes that a name, and what is before its last part, have in a header
LARGEST = 8**11  # bytes of an entry from which on its size has no room in a header
LATEST = 8**11  # seconds

OWNER = b"0000600\x00" + 2 * b"0000000\x00"  # mode, user and group
FORM = bytes(100) + b"ustar\x0000" + bytes(64) + 2 * b"0000000\x00"  # no link, no names of owners, no device
SAME = sum(OWNER) + 8 * 0x20 + sum(FORM)  # the sum itself counts as blanks

_SIZE = re.compile(rb"(\d{1,3}) size=([1-9]\d{0,18})\n\0*")
_OCTAL = re.compile(rb"[0-7]{11}\0")


class Header(msgspec.Struct, frozen=True):
    """A file of `size` bytes; `at` is Unix time in seconds."""

    name: str
    size: int
    at: int


def encode(header: Header) -> bytes:
    """The blocks before the bytes of an entry."""
    if header.size < LARGEST:
        return _block(header.name, header.size, header.at, b"0")
    record = _record(header.size)
    more = _block("pax_header", len(record), header.at, b"x")
    return more + record.ljust(BLOCK, b"\0") + _block(header.name, 0, header.at, b"0")


def decode(blocks: bytes) -> tuple[Header | None, int]:
    """The header that begins with these blocks, and how many bytes it has; None where it takes more of them.

    Raises `DataLoss` for all that `encode` does not write.
    """
    first, size = blocks[:BLOCK], None
    length = BLOCK
    if first[156:157] == b"x":
        length = 3 * BLOCK
        if len(blocks) < length:
            return None, length
        record = _SIZE.fullmatch(blocks[BLOCK : 2 * BLOCK])
        if record is None:
            raise DataLoss("a header says more than the size of an entry")
        first, size = blocks[2 * BLOCK : length], int(record[2])
    name, prefix = (first[begin:end].rstrip(b"\0") for begin, end in ((0, 100), (345, 500)))
    whole = prefix + b"/" + name if prefix else name
    if not (_OCTAL.fullmatch(first[124:136]) and _OCTAL.fullmatch(first[136:148]) and whole.isascii()):
        raise DataLoss("a header is damaged, or is none")
    header = Header(whole.decode(), int(first[124:135], 8) if size is None else size, int(first[136:147], 8))
    if not name or len(whole) > NAME + PREFIX or encode(header) != blocks[:length]:
        raise DataLoss("a header is damaged, or not as a backup has it: a plain file with nothing else to it")
    return header, length


def padding(size: int) -> int:
    """Zeros behind the bytes of an entry."""
    return -size % BLOCK


def _record(size: int) -> bytes:
    """`LENGTH size=SIZE`, where the length counts itself."""
    rest = f" size={size}\n"
    length = len(rest)
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return f"{length}{rest}".encode()


def _block(name: str, size: int, at: int, kind: bytes) -> bytes:
    prefix, short = b"", name.encode("ascii")
    if len(short) > NAME:
        prefix, _, short = short.rpartition(b"/")
    if not 0 <= at < LATEST or len(short) > NAME or len(prefix) > PREFIX:
        raise DataLoss(f"no header has room for '{name}' at {at}")
    numbers = b"%011o\0%011o\0" % (size, at)
    # The sum of all bytes, of which most are always the same: to add up 512 would take as long as all the rest.
    total = SAME + sum(short) + sum(numbers) + kind[0] + sum(prefix)
    return b"".join((
        short.ljust(NAME, b"\0"), OWNER, numbers, b"%06o\0 " % total, kind, FORM, prefix.ljust(PREFIX + 12, b"\0"),
    ))  # fmt: skip
