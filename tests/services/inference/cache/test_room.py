"""Room in the cache: what is evicted for whom, and who gets no more; a refusal changes nothing."""

from __future__ import annotations

import pytest

from microkernel.errors import PreconditionFailed
from services.inference.cache.cache import Room
from services.inference.cache.keys import PAGE, page_keys

SPACE = b"model"


def prompt(pages: float, first: int = 0) -> list[int]:
    return list(range(first, first + int(pages * PAGE)))


def test_room_once_granted_is_not_taken_again(cache):
    table = cache.begin("a", SPACE, [])
    assert cache.extend(table, 17) is Room.GRANTED
    pages = list(table.pages)
    assert cache.extend(table, 32) is Room.GRANTED
    assert (len(pages), table.pages) == (2, pages)


def test_a_pool_without_a_page_left_is_full_and_nothing_has_changed(cache):
    table = cache.run(prompt(7))
    before = list(table.pages), cache.status()
    assert cache.extend(table, 9 * PAGE) is Room.FULL
    assert (list(table.pages), cache.status()) == before
    assert cache.extend(table, 8 * PAGE) is Room.GRANTED


def test_free_pages_are_taken_before_cached_ones(cache):
    cache.leave(prompt(4))
    cache.run(prompt(4, 1000))
    assert cache.status().evictions == 0


def test_the_prompt_used_least_recently_is_evicted_first(cache):
    cache.leave(prompt(3))
    cache.leave(prompt(3, 1000))
    cache.hit(prompt(3.5))
    cache.run(prompt(4, 2000))
    assert cache.hit(prompt(3, 1000)) == PAGE
    assert cache.hit(prompt(3.5)) == 3 * PAGE


def test_the_end_of_a_prefix_is_evicted_before_its_beginning(cache):
    cache.leave(prompt(4))
    cache.evict(3)
    assert cache.hit(prompt(4)) == PAGE


def test_an_eviction_that_would_not_be_enough_does_not_begin(cache):
    cache.leave(prompt(4))
    cache.run(prompt(4, 1000))
    assert cache.extend(cache.begin("a", SPACE, [1]), 5 * PAGE) is Room.FULL
    assert (cache.status().evictions, cache.hit(prompt(4.5))) == (0, 4 * PAGE)


def test_evict_stops_where_all_that_is_left_is_in_use(cache):
    cache.leave(prompt(2, 1000))
    cache.run(prompt(3))
    assert cache.evict(9) == 2
    assert cache.evict(-1) == 0
    assert cache.counts() == (5, 0, 3)


def test_a_lower_tier_is_told_of_a_page_before_it_is_reused(cache):
    saved = []
    cache.on_evict = lambda page, key, owner: saved.append((page, key, owner, cache.status().free))
    pages = cache.leave(prompt(2))
    cache.run(prompt(7, 1000), owner="b")
    assert saved == [(pages[1], page_keys(SPACE, "a", prompt(2))[1], "a", 6)]


def test_a_page_that_could_not_be_saved_is_kept(cache):
    def fail(page: int, key: bytes, owner: str) -> None:
        raise OSError("disk full")

    cache.leave(prompt(2))
    cache.on_evict = fail
    with pytest.raises(OSError, match="disk full"):
        cache.evict(1)
    assert cache.hit(prompt(2.5)) == 2 * PAGE


def test_an_owner_at_its_quota_gets_no_more_pages(cache):
    cache.set_quota("a", 2)
    table = cache.run(prompt(2))
    assert cache.extend(table, 2 * PAGE + 1) is Room.OVER_QUOTA
    assert cache.extend(cache.begin("b", SPACE, [1]), 6 * PAGE) is Room.GRANTED


def test_an_owner_at_its_quota_gives_up_its_own_cached_pages_and_not_anothers(cache):
    cache.leave(prompt(1), owner="b")
    cache.leave(prompt(2), owner="a")
    cache.set_quota("a", 2)
    cache.run(prompt(2, 1000), owner="a")
    assert cache.hit(prompt(2), owner="a") == 0
    assert cache.hit(prompt(1.5), owner="b") == PAGE


def test_a_page_in_many_tables_is_charged_once(cache):
    cache.set_quota("a", 3)
    first = cache.run(prompt(2.5))
    second = cache.begin("a", SPACE, prompt(2.5))
    assert (first.pages[:2], cache.status().owners["a"].used) == (second.pages, 3)


def test_a_quota_lowered_below_what_is_held_takes_nothing_from_tables_and_lets_none_be_added(cache):
    table = cache.run(prompt(3))
    cache.set_quota("a", 1)
    assert table.length == 3 * PAGE
    assert cache.extend(table, 3 * PAGE + 1) is Room.OVER_QUOTA


def test_a_quota_lowered_evicts_what_is_cached_beyond_it(cache):
    cache.leave(prompt(3))
    cache.set_quota("a", 1)
    assert cache.counts() == (7, 1, 0)


def test_what_a_lowered_quota_left_in_use_is_not_cached_once_it_is_released(cache):
    table = cache.run(prompt(3))
    cache.set_quota("a", 1)
    cache.release(table)
    assert cache.counts() == (7, 1, 0)


def test_an_owner_over_its_quota_may_still_fill_the_page_it_has(cache):
    table = cache.run(prompt(2.5))
    cache.truncate(table, 2 * PAGE + 1)
    cache.set_quota("a", 0)
    assert cache.extend(table, 3 * PAGE) is Room.GRANTED


def test_an_owner_over_its_quota_may_still_write_the_pages_reserved_for_it(cache):
    table = cache.run(prompt(1.5))
    cache.extend(table, 8 * PAGE)
    cache.release(cache.fork(table))
    cache.set_quota("a", 0)
    assert cache.extend(table, table.length + 1) is Room.GRANTED


def test_pinned_pages_outlive_their_table_and_every_eviction(cache):
    table = cache.run(prompt(2.5))
    pin = cache.pin(table)
    cache.release(table)
    assert cache.evict(8) == 0
    assert cache.hit(prompt(2.5)) == 2 * PAGE
    cache.unpin(pin)
    assert cache.evict(8) == 2


def test_pages_pinned_twice_wait_for_both_pins(cache):
    table = cache.run(prompt(1))
    pins = [cache.pin(table), cache.pin(table)]
    cache.release(table)
    cache.unpin(pins[0])
    assert cache.evict(8) == 0
    cache.unpin(pins[1])
    assert cache.evict(8) == 1


def test_unpinning_twice_is_told(cache):
    pin = cache.pin(cache.run(prompt(1)))
    cache.unpin(pin)
    with pytest.raises(PreconditionFailed, match="unpinned already"):
        cache.unpin(pin)


def test_a_pin_does_not_keep_broken_pages(cache):
    table = cache.run(prompt(2))
    pin = cache.pin(table)
    cache.release(table)
    cache.clear(cache.run(prompt(1.5)))
    assert cache.counts() == (8, 0, 0)
    cache.unpin(pin)
    assert cache.evict(8) == 0


def test_unpinning_gives_up_what_is_over_the_quota(cache):
    table = cache.run(prompt(2))
    pin = cache.pin(table)
    cache.release(table)
    cache.set_quota("a", 1)
    assert cache.counts() == (6, 2, 0)
    cache.unpin(pin)
    assert cache.counts() == (7, 1, 0)
