"""Signed tokens: what they permit together, and that nobody but the node can make or widen one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.capability import ADMIN, ALL, Identity, Rights
from microkernel.errors import Invalid
from microkernel.token import (
    MAX_BLOCKS,
    MAX_MET,
    PREFIX,
    Block,
    blocks_of,
    identity_of,
    issue,
    make_block,
    narrow,
    new_id,
    verify,
    within,
)

KEY = bytes(range(32))
OTHER_KEY = bytes(32)

TARGETS = [*sorted(ADMIN), "kernel.services", "kv.get", "kv.put", "kv", "maths.add", "maths", "k.get"]
CALLS = st.lists(st.sampled_from(["*", "kernel.*", "kv.*", "maths.*", "k.*", "kv", *TARGETS]), max_size=4)
NAMES = ["a", "b", "c"]
SUBJECTS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda names, tail: ".".join([*names, *tail]),
    st.lists(st.sampled_from([*NAMES, "*"]), min_size=0, max_size=3),
    st.sampled_from([["a"], ["*"], [">"], ["b", ">"]]),
)
BLOCKS = st.builds(
    dict,
    allow=st.none() | CALLS,
    deny=CALLS,
    publish=st.none() | st.lists(PATTERNS, max_size=3),
    subscribe=st.none() | st.lists(PATTERNS, max_size=3),
    top_priority=st.none() | st.integers(0, 9),
    expires=st.none() | st.floats(1, 1e9),
)


def chain(blocks: list[dict[str, object]]) -> list[str]:
    """A token, and each that was narrowed from the one before."""
    first, *rest = blocks
    tokens = [issue(KEY, make_block(user="ana", **first))]
    for each in rest:
        tokens.append(narrow(tokens[-1], make_block(**each)))
    return tokens


def identity(token: str, key: bytes = KEY) -> Identity:
    blocks = verify(key, token)
    assert blocks is not None
    return identity_of(blocks)


# Narrowing


@settings(max_examples=400, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=5), SUBJECTS, PATTERNS)
def test_no_sequence_of_narrowings_ever_widens_what_a_token_permits(blocks, subject, pattern) -> None:
    before = None
    for token in chain(blocks):
        now = identity(token)
        if before is not None:
            assert now.user == before.user
            assert now.top_priority >= before.top_priority
            assert (now.expires or 1e18) <= (before.expires or 1e18)
            assert now.token_ids[: len(before.token_ids)] == before.token_ids
            for target in TARGETS:
                assert before.rights.permits(target) or not now.rights.permits(target)
            assert before.rights.permits_publish(subject) or not now.rights.permits_publish(subject)
            for heard in (subject, pattern):
                assert before.rights.permits_subscribe(heard) or not now.rights.permits_subscribe(heard)
        before = now


def alone(block: Block, *, first: bool) -> Rights:
    """What a block permits where it is the only one."""
    calls, subjects = ((), ()) if first else (("*",), (">",))
    return Rights(
        allow=calls if block.allow is None else block.allow,
        deny=block.deny,
        publish=subjects if block.publish is None else block.publish,
        subscribe=subjects if block.subscribe is None else block.subscribe,
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=5), SUBJECTS)
def test_a_token_permits_exactly_what_each_of_its_blocks_permits(blocks, subject) -> None:
    token = chain(blocks)[-1]
    together = identity(token).rights
    each = [alone(block, first=place == 0) for place, block in enumerate(blocks_of(token))]
    for target in TARGETS:
        assert together.permits(target) == all(rights.permits(target) for rights in each)
    assert together.permits_publish(subject) == all(rights.permits_publish(subject) for rights in each)
    assert together.permits_subscribe(subject) == all(rights.permits_subscribe(subject) for rights in each)


def test_the_first_block_gives_nothing_that_it_does_not_name() -> None:
    bare = identity(issue(KEY, make_block(user="ana"))).rights
    assert bare == Rights(allow=(), publish=(), subscribe=())
    calls = identity(issue(KEY, make_block(user="ana", allow=["*"]))).rights
    assert calls.permits("kernel.add")
    assert not calls.permits_publish("colour.red")
    assert not calls.permits_subscribe("colour.red")


def test_the_right_to_look_at_the_kernel_narrowed_by_name_is_not_the_right_to_change_it() -> None:
    token = issue(KEY, make_block(user="ana", allow=["kernel.*"]))
    for target in sorted(ADMIN):
        assert not identity(narrow(token, make_block(allow=[target]))).rights.permits(target)
        assert not identity(narrow(token, make_block(allow=["*"]))).rights.permits(target)


def test_the_user_cannot_be_changed() -> None:
    token = issue(KEY, make_block(user="ana", allow=["*"]))
    with pytest.raises(Invalid, match="names its user, and no other does"):
        narrow(token, make_block(user="bob"))
    assert verify(KEY, forged_with(token, {"id": new_id(), "user": "bob"})) is None
    assert verify(KEY, forged_with(token, {"id": new_id(), "parents": [new_id()]})) is None


def forged_with(token: str, block: object) -> str:
    """`token` narrowed by whatever its holder likes, rightly signed: holders need not use our code."""
    body = base64.urlsafe_b64decode(token.removeprefix(PREFIX) + "==")
    raw = block if isinstance(block, bytes) else json.dumps(block).encode()
    body = body[:-32] + len(raw).to_bytes(2, "big") + raw + hmac.digest(body[-32:], raw, "sha256")
    return PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "block",
    [
        {"id": new_id(), "only_on_sundays": True},
        {"id": new_id(), "top_priority": -1},
        {"id": new_id(), "top_priority": 10},
        {"id": new_id(), "rate": 0, "burst": 1},
        {"id": new_id(), "rate": -1.5, "burst": 1},
        {"id": new_id(), "rate": 1.0},
        {"id": new_id(), "allow": "kv.*"},
        {"id": new_id(), "allow": ["kv.**"]},
        {"id": new_id(), "subscribe": ["a.>.b"]},
        {"id": new_id(), "allow": ["kv.get"] * 33},
        {"id": "short"},
        {"id": "Z" * 32},
        {},
        [],
        None,
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 1000,
    ],
)
def test_a_block_that_is_not_understood_makes_the_token_worthless_and_not_wider(block: object) -> None:
    token = issue(KEY, make_block(user="ana", allow=["*"]))
    assert verify(KEY, forged_with(token, {"id": new_id(), "allow": ["kv.*"]})) is not None
    assert verify(KEY, forged_with(token, block)) is None


@pytest.mark.parametrize("user", ["root", "", "a b", "-ana", "ä", "x" * 65, "ana\n"])
def test_no_signed_token_is_for_a_user_who_could_be_mistaken(user: str) -> None:
    with pytest.raises(Invalid, match="user"):
        make_block(user=user)


def test_a_token_is_narrowed_only_so_often_and_grows_only_so_long() -> None:
    token = issue(KEY, make_block(user="ana", allow=["*"]))
    for _ in range(MAX_BLOCKS - 1):
        token = narrow(token, make_block())
    assert verify(KEY, token) is not None
    with pytest.raises(Invalid, match="at most 15 times"):
        narrow(token, make_block())
    assert verify(KEY, forged_with(token, {"id": new_id()})) is None
    with pytest.raises(Invalid, match="characters"):
        issue(KEY, make_block(user="ana", allow=[f"service{number:0100}.*" for number in range(32)]))


def test_patterns_that_multiply_are_refused_and_not_worked_out() -> None:
    token = issue(KEY, make_block(user="ana", subscribe=[f"{n}.*.*.*" for n in "abcdefgh"]))
    token = narrow(token, make_block(subscribe=[f"*.{n}.*.*" for n in "abcdefgh"]))
    assert len(identity(token).rights.subscribe or ()) == MAX_MET
    with pytest.raises(Invalid, match="patterns"):
        narrow(token, make_block(subscribe=["*.*.a.*", "*.*.b.*"]))
    blocks = verify(KEY, forged_with(token, {"id": new_id(), "subscribe": ["*.*.a.*", "*.*.b.*"]}))
    assert blocks is not None
    with pytest.raises(Invalid, match="patterns"):
        identity_of(blocks)


def test_rates_of_all_blocks_hold_and_the_least_is_told() -> None:
    token = narrow(issue(KEY, make_block(user="ana", rate=5.0, burst=10)), make_block(rate=2.0, burst=50))
    who = identity(token)
    assert [each.id for each in who.rates] == list(who.token_ids)
    assert (who.rate, who.burst) == (2.0, 10)


# Made on the authority of another token


@settings(max_examples=300, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=3), BLOCKS, SUBJECTS)
def test_a_token_made_on_the_authority_of_another_permits_nothing_beyond_it_and_ends_with_it(
    blocks, asked, subject
) -> None:
    authority = identity(chain(blocks)[-1])
    made = identity(issue(KEY, within(authority, make_block(user="bob", **asked))))
    for target in TARGETS:
        assert authority.rights.permits(target) or not made.rights.permits(target)
    assert authority.rights.permits_publish(subject) or not made.rights.permits_publish(subject)
    assert authority.rights.permits_subscribe(subject) or not made.rights.permits_subscribe(subject)
    assert made.top_priority >= authority.top_priority
    assert (made.expires or 1e18) <= (authority.expires or 1e18)
    assert set(authority.token_ids) < set(made.token_ids)


# Forging


def test_the_signature_is_the_chain_that_the_module_describes() -> None:
    token = narrow(issue(KEY, make_block(user="ana", allow=["kv.*"])), make_block(deny=["kv.put"]))
    body = base64.urlsafe_b64decode(token.removeprefix(PREFIX) + "==")
    key = hmac.new(KEY, b"microkernel token mk1", hashlib.sha256).digest()
    place = 0
    while place < len(body) - 32:
        length = int.from_bytes(body[place : place + 2], "big")
        key = hmac.new(key, body[place + 2 : place + 2 + length], hashlib.sha256).digest()
        place += 2 + length
    assert body[place:] == key


def test_a_block_cannot_be_taken_off_moved_or_used_with_another_token() -> None:
    one = issue(KEY, make_block(user="ana", allow=["*"]))
    two = narrow(narrow(one, make_block(allow=["kv.*"])), make_block(deny=["kv.put"]))
    other = issue(KEY, make_block(user="bob", allow=["kv.get"]))
    bodies = [base64.urlsafe_b64decode(token.removeprefix(PREFIX) + "==") for token in (one, two, other)]
    parts = []
    for body in bodies:
        place, blocks = 0, []
        while place < len(body) - 32:
            end = place + 2 + int.from_bytes(body[place : place + 2], "big")
            blocks.append(body[place:end])
            place = end
        parts.append((blocks, body[-32:]))
    (first, _), (three, signature), (foreign, foreign_signature) = parts
    signatures = [part[1] for part in parts]
    for blocks in (
        three[:1],
        three[:2],
        three[1:],
        three[::-1],
        [three[0], three[2]],
        foreign + three[1:],
        [],
        first * 2,
    ):
        for signed in (signature, foreign_signature, bytes(32), *signatures):
            forged = PREFIX + base64.urlsafe_b64encode(b"".join(blocks) + signed).rstrip(b"=").decode()
            assert verify(KEY, forged) is None or forged in {one, two, other}


def test_a_token_of_another_key_is_nothing() -> None:
    token = issue(KEY, make_block(user="ana", allow=["*"]))
    assert verify(OTHER_KEY, token) is None
    assert verify(KEY, issue(OTHER_KEY, make_block(user="ana", allow=["*"]))) is None


def test_a_hundred_thousand_mutations_of_a_token_are_all_refused() -> None:
    chance = random.Random(20141)
    tokens = chain([{"allow": ["kv.*", "maths.add"], "expires": 1e9}, {"deny": ["kv.put"]}, {"top_priority": 7}])
    good = set(tokens)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.+/ \n\x00ä"
    for _ in range(100_000):
        text = chance.choice(tokens)
        kind, place = chance.randrange(6), chance.randrange(len(text))
        if kind == 0:
            mutated = text[:place] + chance.choice(letters) + text[place + 1 :]
        elif kind == 1:
            mutated = text[:place]
        elif kind == 2:
            mutated = text[:place] + text[place + chance.randrange(1, 9) :]
        elif kind == 3:
            mutated = text[:place] + chance.choice(letters) * chance.randrange(1, 4) + text[place:]
        elif kind == 4:
            mutated = text[:place] + chance.choice(tokens)[place:]
        else:
            other = chance.randrange(len(text))
            letters_of = list(text)
            letters_of[place], letters_of[other] = letters_of[other], letters_of[place]
            mutated = "".join(letters_of)
        if mutated not in good:
            assert verify(KEY, mutated) is None, mutated


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=300).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_whatever_is_shown_is_answered_and_never_believed(text: str) -> None:
    for given_text in (text, PREFIX + text, PREFIX + text.rstrip("=")):
        assert verify(KEY, given_text) is None
        with pytest.raises(Invalid):
            blocks_of(given_text)


def test_there_is_one_way_only_to_write_a_token() -> None:
    token = issue(KEY, make_block(user="ana", allow=["*"]))
    while len(token.removeprefix(PREFIX)) % 4 == 0:  # all bits of the last character count: try another length
        token = narrow(token, make_block(user=None, deny=["a" * random.randrange(1, 9)]))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    near = [token[:-1] + letter for letter in alphabet]
    assert [text for text in near if verify(KEY, text)] == [token]
    for text in (token + "=", token + "==", f" {token}", f"{token}\n", PREFIX + token, token.replace("mk1", "MK1")):
        assert verify(KEY, text) is None


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    from microkernel import token as module

    monkeypatch.setattr(module, "hmac", type("hmac", (), {"digest": hmac.digest, "compare_digest": compare}))
    good = issue(KEY, make_block(user="ana"))
    assert verify(KEY, good) is not None
    assert verify(OTHER_KEY, good) is None
    assert len(compared) == 2


def test_nothing_of_a_token_is_read_before_its_signature_is_found_good(monkeypatch: pytest.MonkeyPatch) -> None:
    from microkernel import token as module

    def read(raws: list[bytes]) -> tuple[Block, ...]:
        raise AssertionError(f"{raws} was read")

    good = issue(KEY, make_block(user="ana"))
    monkeypatch.setattr(module, "_decoded", read)
    assert verify(OTHER_KEY, good) is None
    with pytest.raises(AssertionError, match="was read"):
        verify(KEY, good)


def test_an_identity_crosses_a_link_as_it_is() -> None:
    from microkernel.message import convert, to_builtins

    who = identity(issue(KEY, make_block(user="ana", allow=["kv.*"], rate=1.0, burst=2, expires=time.time())))
    assert convert(to_builtins(who), Identity, what="an identity") == who
    assert convert({"user": "root", "rights": {}}, Identity, what="an identity") == Identity("root", ALL)
