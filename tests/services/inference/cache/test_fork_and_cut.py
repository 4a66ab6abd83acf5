"""Forks and cuts: pages are shared until somebody writes, and never written while they are."""

from __future__ import annotations

import pytest

from microkernel.errors import Invalid
from services.inference.cache.cache import Room
from services.inference.cache.keys import PAGE

SPACE = b"model"


def prompt(pages: float, first: int = 0) -> list[int]:
    return list(range(first, first + int(pages * PAGE)))


def test_a_fork_shares_all_pages_and_the_first_to_write_copies_the_last(cache, copies):
    table = cache.run(prompt(1.5))
    fork = cache.fork(table)
    shared = list(table.pages)
    assert fork.pages == shared
    cache.write(fork, [7])
    assert copies.made == [(shared[1], fork.pages[1])]
    cache.write(table, [8])
    assert (table.pages, len(copies.made)) == (shared, 1)


def test_whoever_was_forked_copies_the_last_page_too_if_it_writes_first(cache, copies):
    table = cache.run(prompt(1.5))
    fork = cache.fork(table)
    cache.write(table, [7])
    assert copies.made == [(fork.pages[1], table.pages[1])]


def test_a_page_that_was_reserved_takes_the_copy(cache):
    table = cache.run(prompt(1.5))
    cache.extend(table, 8 * PAGE)
    cache.fork(table)
    assert cache.extend(table, table.length + 1) is Room.GRANTED


def test_a_fork_at_the_border_of_a_page_copies_nothing(cache, copies):
    table = cache.run(prompt(2))
    cache.write(cache.fork(table), [7])
    cache.write(table, [8])
    assert copies.made == []


def test_a_fork_does_not_get_pages_that_are_only_reserved(cache):
    table = cache.run(prompt(1.5))
    cache.extend(table, 4 * PAGE)
    assert cache.fork(table).pages == table.pages[:2]


def test_a_copy_for_which_there_is_no_page_is_refused_and_nothing_has_changed(cache, copies):
    table = cache.run(prompt(7.5))
    fork = cache.fork(table)
    assert cache.extend(fork, fork.length + 1) is Room.FULL
    assert (fork.pages, copies.made) == (table.pages, [])
    cache.release(table)
    assert cache.extend(fork, fork.length + 1) is Room.GRANTED


def test_a_copy_that_fails_leaves_the_shared_page_where_it_is(cache, copies, monkeypatch):
    table = cache.run(prompt(1.5))
    fork = cache.fork(table)

    def fail(source: int, target: int) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(copies, "copy", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            cache.extend(fork, fork.length + 1)
    assert fork.pages[:2] == table.pages
    cache.write(fork, [7])
    assert fork.pages[1] != table.pages[1]
    cache.release(fork)
    cache.release(table)
    assert cache.counts() == (7, 1, 0)


def test_a_cut_gives_back_the_pages_behind_it(cache):
    table = cache.run([7] * 3 * PAGE)
    cache.truncate(table, PAGE)
    assert (table.length, len(table.pages)) == (PAGE, 1)
    assert cache.counts() == (5, 2, 1)


def test_a_page_cut_after_it_was_entered_is_copied_before_it_is_written_again(cache, copies):
    table = cache.run(prompt(2))
    full = table.pages[1]
    cache.truncate(table, PAGE + 4)
    cache.write(table, [99])
    assert copies.made == [(full, table.pages[1])]
    assert cache.begin("a", SPACE, prompt(2.5)).pages[1] == full


def test_a_page_cut_and_filled_with_the_same_tokens_is_the_cached_one_again(cache):
    table = cache.run(prompt(1))
    page = table.pages[0]
    cache.truncate(table, 4)
    cache.write(table, prompt(1)[4:])
    assert table.pages == [page]
    assert cache.counts() == (7, 0, 1)


@pytest.mark.parametrize("length", [-1, 17])
def test_a_cut_outside_of_the_sequence_is_refused(cache, length):
    with pytest.raises(Invalid, match="cannot be cut"):
        cache.truncate(cache.run(prompt(1)), length)
