"""One account an owner over several models of a device: exact, never over its limit, and nobody else's concern."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.cache.cache import Cache, Room
from services.inference.cache.keys import PAGE
from services.inference.cache.ledger import NODE, Ledger

SPACE = b"model"
LARGE, SMALL = 100, 30  # bytes a page of the two models


class NoCopies:
    def copy(self, source: int, target: int) -> None:
        raise AssertionError("no page is shared here")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def two(ledger: Ledger) -> tuple[Cache, Cache]:
    return tuple(Cache(20, NoCopies(), ledger=ledger, page_bytes=size) for size in (LARGE, SMALL))


def hold(cache: Cache, pages: int, owner: str = "ann", first: int = 0):
    """A table of so many full pages, or None where there is no room."""
    tokens = list(range(first, first + pages * PAGE))
    table = cache.begin(owner, SPACE, tokens)
    if cache.extend(table, len(tokens)) is not Room.GRANTED:
        cache.release(table)
        return None
    cache.advance(table, tokens[table.length :])
    return table


def test_pages_of_all_models_count_together(ledger):
    large, small = two(ledger)
    hold(large, 2)
    hold(small, 3)
    assert ledger.used("ann") == 2 * LARGE + 3 * SMALL


def test_an_owner_at_its_limit_gets_no_page_in_any_model_and_others_do(ledger):
    large, small = two(ledger)
    ledger.set_limits({"ann": 2 * LARGE}, None)
    assert hold(large, 2) is not None
    assert hold(small, 1) is None
    assert hold(small, 5, "bob") is not None


def test_what_is_only_cached_in_one_model_makes_room_in_another(ledger):
    large, small = two(ledger)
    ledger.set_limits({"ann": 2 * LARGE}, None)
    large.release(hold(large, 2))
    assert hold(small, 4) is not None
    assert (large.status().cached, ledger.used("ann")) == (0, 4 * SMALL)


def test_what_would_not_be_enough_is_not_forgotten(ledger):
    large, small = two(ledger)
    ledger.set_limits({"ann": 2 * LARGE}, None)
    held = hold(large, 1)
    large.release(hold(large, 1, first=1000))
    assert hold(small, 5) is None
    assert large.status().cached == 1
    large.release(held)


def test_its_own_cached_pages_go_before_those_in_other_models(ledger):
    large, small = two(ledger)
    ledger.set_limits({"ann": 2 * LARGE + 3 * SMALL}, None)
    large.release(hold(large, 2))
    small.release(hold(small, 3))
    assert hold(small, 3, first=1000) is not None
    assert (large.status().cached, small.status().cached) == (2, 0)


def test_a_lower_limit_is_kept_at_once_and_with_what_is_held_when_it_is_let_go(ledger):
    large, small = two(ledger)
    held = hold(large, 3)
    small.release(hold(small, 3))
    ledger.set_limits({"ann": LARGE}, None)
    assert (ledger.used("ann"), small.status().cached) == (3 * LARGE, 0)
    large.release(held)
    assert ledger.used("ann") == LARGE


def test_everybody_without_a_limit_of_their_own_has_the_common_one(ledger):
    large, _ = two(ledger)
    ledger.set_limits({"ann": None, "bob": 3 * LARGE}, LARGE)
    assert [hold(large, 3, owner) is not None for owner in ("ann", "bob", "eve")] == [True, True, False]


def test_what_the_node_does_for_itself_is_on_nobody_s_quota(ledger):
    large, _ = two(ledger)
    ledger.set_limits({NODE: 0}, 0)
    assert hold(large, 3, NODE) is not None
    assert ledger.used(NODE) == 3 * LARGE


def test_who_waits_is_told_once_when_its_owner_lets_something_go_in_another_model(ledger):
    large, small = two(ledger)
    told = []
    mine, bobs = hold(large, 1), hold(large, 1, "bob")
    small.wait("ann", lambda: told.append("ann"))
    large.release(bobs)
    assert told == []
    large.release(mine)
    large.release(hold(large, 1))
    assert told == ["ann"]


def test_who_waits_is_told_nothing_of_who_finds_no_room_either(ledger):
    large, small = two(ledger)
    ledger.set_limits({"ann": 2 * LARGE}, None)
    hold(large, 1)
    hold(small, 3)
    told = []
    small.wait("ann", lambda: told.append("ann"))
    assert large.admit("ann", SPACE, list(range(2 * PAGE))) is Room.OVER_QUOTA
    assert told == []


def test_who_waits_is_told_when_limits_change(ledger):
    large, _ = two(ledger)
    told = []
    large.wait("ann", lambda: told.append("ann"))
    ledger.set_limits({}, None)
    assert told == ["ann"]


def test_every_model_is_told_that_limits_have_changed_until_it_leaves(ledger):
    large, small = two(ledger)
    told = []
    large.on_quotas, small.on_quotas = (lambda: told.append(LARGE)), (lambda: told.append(SMALL))
    ledger.set_limits({"ann": LARGE}, None)
    small.close()
    ledger.set_limits({}, None)
    assert told == [LARGE, SMALL, LARGE]
    large.set_quota("ann", 1)
    assert told == [LARGE, SMALL, LARGE, LARGE]


def test_a_model_that_leaves_takes_its_bytes_along_and_who_waits_is_told(ledger):
    large, small = two(ledger)
    hold(large, 2)
    hold(small, 1)
    told = []
    small.wait("ann", lambda: told.append("ann"))
    large.close()
    assert (ledger.used("ann"), told) == (SMALL, ["ann"])
    large.close()
    assert ledger.used("ann") == SMALL


def test_what_a_closed_model_gives_back_is_not_taken_off_an_account_again(ledger):
    large, small = two(ledger)
    hold(small, 3)
    held = hold(large, 1)
    large.release(hold(large, 2, first=1000))
    told = []
    large.close()
    small.wait("ann", lambda: told.append("ann"))
    assert large.evict(2) == 2
    large.release(held)
    assert (ledger.used("ann"), told) == (3 * SMALL, [])


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_in_any_order_bytes_are_exact_and_no_limit_is_passed_by_what_is_taken(seed):
    choose, ledger = random.Random(seed), Ledger()
    caches = two(ledger)
    tables = []
    limits: dict[str, int | None] = {}
    for _ in range(60):
        match choose.randrange(5):
            case 0 | 1:
                cache, owner = choose.choice(caches), choose.choice("abc")
                table = hold(cache, choose.randint(1, 5), owner, PAGE * choose.randrange(6))
                if table is not None:
                    tables.append((cache, table))
                    limit = limits.get(owner)
                    assert limit is None or ledger.used(owner) <= limit
            case 2 if tables:
                cache, table = tables.pop(choose.randrange(len(tables)))
                cache.release(table)
            case 3:
                limits[choose.choice("abc")] = choose.choice((None, 0, 250, 500))
                ledger.set_limits(limits, None)
            case 4:
                choose.choice(caches).evict(choose.randint(0, 3))
        for owner in "abc":
            accounts = [cache.status().owners.get(owner) for cache in caches]
            used = [0 if account is None else account.used for account in accounts]
            assert ledger.used(owner) == used[0] * LARGE + used[1] * SMALL
            idle = sum(cache.idle_bytes(owner) for cache in caches)
            assert ledger.excess(owner) == 0 or idle == 0, "what is over the limit is held, all of it"
