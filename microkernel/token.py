"""Signed tokens: rights as one line of text that its holder can narrow and nobody can widen. Sans-IO.

After Macaroons (Birgisson et al., "Macaroons: Cookies with Contextual Caveats for Decentralized Authorization in the
Cloud", NDSS 2014): a token is a chain of blocks, each of which only takes away, and one signature:

    mk1.<base64url of: (length, block), (length, block), …, signature>
    signature = HMAC(… HMAC(HMAC(key, first block), second block) …, last block)

The node alone has the key and makes the first block. Who holds a token can add one: the signature is the key for the
next one. To take a block off, one would have to turn SHA-256 around. What a token permits is the intersection of its
blocks. Nothing of a token is looked at, beyond its lengths, before its signature is found good.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec

from microkernel.capability import ADMIN, LONGEST_TOKEN, PREFIX, ROOT, Identity, Rate, Rights
from microkernel.errors import Invalid
from microkernel.message import Message, convert, fault_of
from microkernel.subjects import check_pattern

__all__ = [
    "ID",
    "PREFIX",
    "Block",
    "Patterns",
    "blocks_of",
    "identity_of",
    "issue",
    "make_block",
    "narrow",
    "new_id",
    "verify",
    "within",
]

MAX_BLOCKS = 16
MAX_PATTERNS = 32  # of one kind in one block
MAX_PARENTS = 2 * MAX_BLOCKS
MAX_MET = 64  # patterns of one kind that blocks come to together: the worst token costs some 10 ms
SIGNATURE = hashlib.sha256().digest_size
LENGTH = 2  # bytes, big endian

ID = re.compile(r"[0-9a-f]{32}")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_CALLS = re.compile(r"\*|[A-Za-z0-9_-]{1,128}(\.[A-Za-z0-9_-]{1,128})?|[A-Za-z0-9_-]{1,128}\.\*")
_TEXT = re.compile(r"[A-Za-z0-9_-]+")

Patterns = Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_PATTERNS)]


class Block(Message, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One link of the chain. What is None bounds nothing; in the first block it gives nothing.

    `allow` and `deny` are of calls, `publish` and `subscribe` of subjects; `top_priority` is the most urgent priority,
    0 to 9; `rate` is in messages a second, `burst` in messages, `expires` is Unix time in seconds. Only the first block
    has a `user`, and in `parents` the ids of the token on whose authority it was made. What is not known here is
    refused: it may be a bound of a later version. Raises `ValueError` that names the field.
    """

    id: str
    user: str | None = None
    parents: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_PARENTS)] = ()
    allow: Patterns | None = None
    deny: Patterns = ()
    publish: Patterns | None = None
    subscribe: Patterns | None = None
    top_priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] | None = None
    expires: float | None = None

    def __post_init__(self) -> None:
        for given in (self.id, *self.parents):
            _require(ID, given, "id")
        if self.user is not None:
            _require(_USER, self.user, "user")
            if self.user == ROOT:
                raise ValueError(f"the user '{ROOT}' is that of the node's own token")
        for pattern in (*(self.allow or ()), *self.deny):
            _require(_CALLS, pattern, "pattern of calls")
        for pattern in (*(self.publish or ()), *(self.subscribe or ())):
            try:
                check_pattern(pattern)
            except Invalid as error:
                raise ValueError(error.message) from error
        if (self.rate is None) != (self.burst is None):
            raise ValueError("rate and burst come together")


def _require(rule: re.Pattern[str], given: str, what: str) -> None:
    if not rule.fullmatch(given):
        raise ValueError(f"'{given[:64]}' is no {what}")


def new_id() -> str:
    """A name for a block that nobody has used: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def make_block(**fields: Any) -> Block:
    """A block with an id of its own. Raises `Invalid` that names the field."""
    return convert({"id": new_id(), **fields}, Block, what="a token")


def within(authority: Identity, asked: Block) -> Block:
    """`asked` as far as `authority` reaches, and no longer than it. Raises `Invalid`."""
    rights = _met(authority.rights, asked)
    rates = [each for each in (authority.rate, asked.rate) if each is not None]
    bursts = [each for each in (authority.burst, asked.burst) if each is not None]
    ends = [each for each in (authority.expires, asked.expires) if each is not None]
    return msgspec.structs.replace(
        asked,
        parents=authority.token_ids,
        allow=rights.allow,
        deny=rights.deny,
        publish=rights.publish,
        subscribe=rights.subscribe,
        top_priority=max(authority.top_priority, asked.top_priority or 0),
        rate=min(rates, default=None),
        burst=min(bursts, default=None),
        expires=min(ends, default=None),
    )


def issue(key: bytes, block: Block) -> str:
    """A token of one block. Raises `Invalid` for one without a user."""
    if block.user is None:
        raise Invalid("a token is somebody's: name the user", field="user")
    raw = msgspec.json.encode(block)
    identity_of(_decoded([raw]))
    return _text([raw], _sign(_chain_key(key), raw))


def narrow(token: str, block: Block) -> str:
    """`token` with one more block: no node and no key are needed. Raises `Invalid`."""
    raws, signature = _split(token)
    if len(raws) >= MAX_BLOCKS:
        raise Invalid(f"a token is narrowed at most {MAX_BLOCKS - 1} times")
    raw = msgspec.json.encode(block)
    identity_of(_decoded([*raws, raw]))  # who narrows it is told, and not who shows it
    return _text([*raws, raw], _sign(signature, raw))


def verify(key: bytes, token: str) -> tuple[Block, ...] | None:
    """The blocks of a token that was signed with `key`; None for anything else. Takes no look at the time."""
    try:
        raws, signature = _split(token)
        expected = _chain_key(key)
        for raw in raws:
            expected = _sign(expected, raw)
        return _decoded(raws) if hmac.compare_digest(expected, signature) else None
    except Invalid:
        return None


def blocks_of(token: str) -> tuple[Block, ...]:
    """What a token says of itself, true or not: only `verify` tells. Raises `Invalid`."""
    return _decoded(_split(token)[0])


def identity_of(blocks: Sequence[Block]) -> Identity:
    """Who `blocks` stand for, and what all of them together permit. Raises `Invalid` for a list that grows too long."""
    first = blocks[0]
    assert first.user is not None
    rights = Rights(first.allow or (), first.deny, first.publish or (), first.subscribe or ())
    for block in blocks[1:]:
        rights = _met(rights, block)
    return Identity(
        user=first.user,
        rights=rights,
        top_priority=max(block.top_priority or 0 for block in blocks),
        rates=tuple(
            Rate(block.id, block.rate, block.burst)
            for block in blocks
            if block.rate is not None and block.burst is not None
        ),
        token_ids=(*first.parents, *(block.id for block in blocks)),
        expires=min((block.expires for block in blocks if block.expires is not None), default=None),
    )


# What two blocks permit together. The intersection of two patterns is one pattern or nothing, so that of two lists is
# a list again. That of subjects can be longer than both (`a.*`, `b.*` and `*.c`, `*.d`): it has a limit of its own.


def _met(rights: Rights, block: Block) -> Rights:
    return Rights(
        allow=rights.allow if block.allow is None else _meetings(rights.allow, block.allow, _call_met),
        deny=tuple(dict.fromkeys((*rights.deny, *block.deny))),
        publish=_subjects_met(rights.publish, block.publish),
        subscribe=_subjects_met(rights.subscribe, block.subscribe),
    )


def _subjects_met(rights: tuple[str, ...] | None, block: tuple[str, ...] | None) -> tuple[str, ...]:
    assert rights is not None  # the first block gives nothing that it does not name
    return rights if block is None else _meetings(rights, block, _subject_met)


def _meetings(ours: Sequence[str], theirs: Sequence[str], meet: Callable[[str, str], str | None]) -> tuple[str, ...]:
    found = dict.fromkeys(meet(one, other) for one in ours for other in theirs)
    found.pop(None, None)
    if len(found) > MAX_MET:
        raise Invalid(f"the blocks of this token together make more than {MAX_MET} patterns")
    return tuple(pattern for pattern in found if pattern is not None)


def _call_met(one: str, other: str) -> str | None:
    if other in {one, "*"}:
        return one
    if one == "*":
        return other
    for wide, narrow_one in ((one, other), (other, one)):
        # `kernel.*` is the right to look: it has nothing in common with the right to change the node.
        if wide.endswith(".*") and narrow_one.startswith(wide[:-1]) and narrow_one not in ADMIN:
            return narrow_one
    return None


def _subject_met(one: str, other: str) -> str | None:
    ours, theirs = one.split("."), other.split(".")
    names: list[str] = []
    for place in range(max(len(ours), len(theirs))):
        if place >= min(len(ours), len(theirs)):
            return None
        mine, its = ours[place], theirs[place]
        if mine == ">":
            return ".".join(names + theirs[place:])
        if its == ">":
            return ".".join(names + ours[place:])
        if mine != its and "*" not in {mine, its}:
            return None
        names.append(its if mine == "*" else mine)
    return ".".join(names)


# Text and bytes


def _chain_key(key: bytes) -> bytes:
    """What signs the first block: nothing else that is made from `key` is a token of this version."""
    return _sign(key, b"microkernel token mk1")


def _sign(key: bytes, what: bytes) -> bytes:
    return hmac.digest(key, what, "sha256")


def _text(raws: Sequence[bytes], signature: bytes) -> str:
    body = b"".join(len(raw).to_bytes(LENGTH, "big") + raw for raw in raws) + signature
    text = PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii")
    if len(text) > LONGEST_TOKEN:
        raise Invalid(f"the token would have {len(text)} characters; at most {LONGEST_TOKEN} can be sent")
    return text


def _split(token: str) -> tuple[list[bytes], bytes]:
    """The blocks as they stand, and the signature. There is one way only to write a token. Raises `Invalid`."""
    text = token.removeprefix(PREFIX)
    if text == token or len(token) > LONGEST_TOKEN or not _TEXT.fullmatch(text):
        raise Invalid(f"this is no signed token: one begins with {PREFIX} and has at most {LONGEST_TOKEN} characters")
    try:
        body = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise Invalid("this token is damaged: it is not base64url") from error
    if base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii") != text:  # bits after the last byte
        raise Invalid("this token is damaged: it is not written as tokens are")
    raws: list[bytes] = []
    place, end = 0, len(body) - SIGNATURE
    while place + LENGTH <= end:
        begin = place + LENGTH
        place = begin + int.from_bytes(body[place:begin], "big")
        raws.append(body[begin:place])
    if place != end or not 1 <= len(raws) <= MAX_BLOCKS:
        raise Invalid("this token is damaged: its lengths do not add up")
    return raws, body[end:]


def _decoded(raws: Sequence[bytes]) -> tuple[Block, ...]:
    try:
        blocks = tuple(_decoder.decode(raw) for raw in raws)
    except msgspec.ValidationError as error:
        sentence, field = fault_of(error)
        raise Invalid(f"a block of this token is not as it should be: {sentence}", field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid("a block of this token is not JSON") from error
    if blocks[0].user is None or any(block.user is not None or block.parents for block in blocks[1:]):
        raise Invalid("the first block of a token names its user, and no other does", field="user")
    return blocks


_decoder = msgspec.json.Decoder(Block)
