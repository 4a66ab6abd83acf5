"""The cache: a prompt finds what its owner has computed, and what ends leaves only what can be found."""

from __future__ import annotations

import pytest

from microkernel.errors import Invalid, PreconditionFailed
from services.inference.cache.cache import OwnerStatus, Room
from services.inference.cache.keys import PAGE, page_keys

SPACE = b"model"


def prompt(pages: float, first: int = 0) -> list[int]:
    return list(range(first, first + int(pages * PAGE)))


def test_a_prompt_finds_the_full_pages_of_one_that_ended(cache):
    pages = cache.leave(prompt(2.5))
    table = cache.begin("a", SPACE, prompt(2.5))
    assert (table.pages, table.length) == (pages[:2], 2 * PAGE)


def test_a_prompt_finds_the_full_pages_of_one_that_still_runs(cache):
    running = cache.run(prompt(2.5))
    assert cache.begin("a", SPACE, prompt(3)).pages == running.pages[:2]


def test_a_page_is_found_as_soon_as_it_is_full(cache):
    table = cache.run(prompt(1)[:-1])
    assert cache.hit(prompt(2)) == 0
    cache.write(table, [PAGE - 1])
    assert cache.hit(prompt(2)) == PAGE


def test_the_last_token_of_a_prompt_is_always_computed(cache):
    cache.leave(prompt(2))
    assert cache.hit(prompt(2)) == PAGE
    assert cache.hit([*prompt(2), 7]) == 2 * PAGE


def test_an_empty_prompt_finds_nothing(cache):
    cache.leave(prompt(1))
    assert cache.hit([]) == 0


def test_one_owners_prompt_never_finds_anothers(cache):
    cache.leave(prompt(2.5), owner="a")
    assert cache.hit(prompt(2.5), owner="b") == 0


def test_one_models_prompt_never_finds_anothers(cache):
    cache.leave(prompt(2.5))
    assert cache.hit(prompt(2.5), space=b"other") == 0


def test_hits_and_misses_are_counted_in_tokens_for_each_owner(cache):
    cache.leave(prompt(2.5), owner="a")
    cache.leave(prompt(2.5), owner="a")
    cache.leave(prompt(1), owner="b")
    status = cache.status()
    assert (status.hits, status.misses) == (32, 40 + 8 + 16)
    assert status.owners == {"a": OwnerStatus(2, None, 32, 48), "b": OwnerStatus(1, None, 0, 16)}


def test_a_prompt_that_finds_no_room_takes_and_counts_nothing(cache):
    cache.leave(prompt(2))
    cache.run(prompt(4, 1000))
    before = cache.status()
    assert cache.admit("a", SPACE, prompt(7)) is Room.FULL
    assert cache.admit("a", SPACE, prompt(3.5), most=5) is Room.FULL
    cache.set_quota("a", 6)
    assert cache.admit("a", SPACE, prompt(3.5)) is Room.OVER_QUOTA
    cache.set_quota("a", None)
    assert cache.status() == before


def test_what_is_admitted_has_room_for_all_of_its_tokens(cache):
    cache.leave(prompt(2))
    table = cache.admit("a", SPACE, prompt(3.5), most=4)
    assert (table.length, len(table.pages)) == (2 * PAGE, 4)


def test_a_table_knows_the_keys_of_its_full_pages(cache):
    table = cache.run(prompt(2.5))
    assert table.keys == page_keys(SPACE, "a", prompt(2.5))
    assert cache.begin("a", SPACE, prompt(2.5)).keys == table.keys


def test_pages_read_from_a_lower_tier_are_found_by_the_next(cache):
    table = cache.begin("a", SPACE, prompt(3.5))
    assert cache.extend(table, 3 * PAGE) is Room.GRANTED  # to read three pages of page_keys into table.pages
    cache.advance(table, prompt(3))
    assert cache.begin("a", SPACE, prompt(3.5)).pages == table.pages


def test_batch_mates_that_compute_the_same_page_end_up_with_one(cache):
    one, other = (cache.begin("a", SPACE, prompt(2.5)) for _ in range(2))
    cache.write(one, prompt(2.5))
    cache.write(other, prompt(2.5))
    assert one.pages[:2] == other.pages[:2]
    assert one.pages[2] != other.pages[2]
    assert cache.counts() == (4, 0, 4)


def test_a_page_taken_over_from_a_batch_mate_that_ended_is_in_use(cache):
    one, other = (cache.begin("a", SPACE, prompt(1)) for _ in range(2))
    cache.write(one, prompt(1))
    cache.release(one)
    cache.write(other, prompt(1))
    assert cache.evict(8) == 0


def test_without_deduplication_each_batch_mate_keeps_its_own_page(keeping_duplicates):
    cache = keeping_duplicates
    one, other = (cache.begin("a", SPACE, prompt(1.5)) for _ in range(2))
    cache.write(one, prompt(1.5))
    cache.write(other, prompt(1.5))
    assert not set(one.pages) & set(other.pages)
    cache.release(other)
    assert cache.counts() == (6, 0, 2)


def test_without_deduplication_what_follows_a_page_kept_twice_is_found_all_the_same(keeping_duplicates):
    cache = keeping_duplicates
    one, other = (cache.begin("a", SPACE, prompt(1)) for _ in range(2))
    cache.write(one, prompt(1))
    cache.write(other, prompt(2))
    assert cache.hit(prompt(2.5)) == 2 * PAGE


def test_releasing_keeps_full_pages_and_frees_the_others(cache):
    table = cache.run(prompt(2.5))
    cache.extend(table, 5 * PAGE)
    cache.release(table)
    assert cache.counts() == (6, 2, 0)


@pytest.mark.parametrize("call", ["release", "clear", "fork", "pin"])
def test_a_released_table_is_refused(cache, call):
    table = cache.run(prompt(1))
    cache.release(table)
    with pytest.raises(PreconditionFailed, match="released already"):
        getattr(cache, call)(table)


def test_a_released_table_is_neither_extended_nor_written_nor_cut(cache):
    table = cache.run(prompt(1))
    cache.release(table)
    for call in (lambda: cache.extend(table, 1), lambda: cache.advance(table, [1]), lambda: cache.truncate(table, 0)):
        with pytest.raises(PreconditionFailed, match="released already"):
            call()


def test_writing_where_nothing_was_granted_is_told_and_changes_nothing(cache):
    table = cache.run(prompt(1))
    with pytest.raises(PreconditionFailed, match="17 tokens are written .* may have 16"):
        cache.advance(table, [1])
    assert table.length == PAGE


def test_tokens_that_are_no_numbers_are_told_and_change_nothing(cache):
    table = cache.begin("a", SPACE, [])
    cache.extend(table, PAGE)
    with pytest.raises(Invalid, match="32-bit"):
        cache.advance(table, [1, 2**31])
    assert table.length == 0


def test_nothing_of_a_cleared_table_is_found_again(cache):
    table = cache.run(prompt(2.5))
    cache.clear(table)
    assert cache.counts() == (8, 0, 0)
    assert cache.hit(prompt(2.5)) == 0


def test_clearing_forgets_what_the_table_had_found_too(cache):
    cache.leave(prompt(1))
    cache.clear(cache.run(prompt(2.5)))
    assert cache.hit(prompt(2.5)) == 0


def test_clearing_forgets_what_the_table_entered_before_it_was_cut(cache):
    table = cache.run(prompt(1))
    cache.truncate(table, 4)
    cache.write(table, prompt(1, 1000))
    cache.clear(table)
    assert cache.hit(prompt(1.5)) == 0


def test_clearing_a_fork_forgets_what_it_shares(cache):
    table = cache.run(prompt(1.5))
    cache.clear(cache.fork(table))
    assert cache.hit(prompt(1.5)) == 0


def test_clearing_leaves_other_prefixes_cached(cache):
    cache.leave(prompt(1, 1000))
    cache.clear(cache.run(prompt(2.5)))
    assert cache.hit(prompt(1.5, 1000)) == PAGE


def test_a_table_that_shares_cleared_pages_keeps_them_and_caches_nothing_behind_them(cache):
    broken = cache.run(prompt(1.5))
    mate = cache.begin("a", SPACE, prompt(2.5))
    cache.clear(broken)
    assert mate.length == PAGE
    cache.release(cache.run(prompt(1)))  # computed anew: cached again
    cache.write(mate, prompt(2.5)[PAGE:])
    assert cache.hit(prompt(2.5)) == PAGE
    assert mate.keys == page_keys(SPACE, "a", prompt(2.5))
    cache.release(mate)
    assert cache.counts() == (7, 1, 0)


def test_pages_that_only_count_are_free_when_their_sequence_ends_and_never_found(counting):
    table = counting.run(prompt(2.5))
    assert counting.counts() == (5, 0, 3)
    assert counting.hit(prompt(2.5)) == 0
    counting.release(table)
    assert counting.counts() == (8, 0, 0)
    assert counting.status().hits == 0


def test_pages_that_only_count_keep_to_the_quota(counting):
    counting.set_quota("a", 2)
    table = counting.begin("a", SPACE, prompt(3))
    assert counting.extend(table, 3 * PAGE) is Room.OVER_QUOTA
    assert counting.extend(table, 2 * PAGE) is Room.GRANTED


def test_a_sequence_whose_pages_only_count_can_be_cut_and_not_forked(counting):
    table = counting.run(prompt(2.5))
    counting.truncate(table, PAGE + 3)
    assert counting.counts() == (6, 0, 2)
    with pytest.raises(PreconditionFailed, match="cannot be forked"):
        counting.fork(table)
