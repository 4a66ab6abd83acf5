"""The pool: a page is free or on one account, and quotas count each page once."""

from __future__ import annotations

import pytest

from microkernel.errors import Invalid
from services.inference.cache.pages import Pages


def test_a_pool_hands_out_each_of_its_pages_once():
    pages = Pages(5)
    assert sorted(pages.take("a") for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pages.free == 0


def test_the_page_freed_last_is_taken_first():
    pages = Pages(5)
    taken = [pages.take("a") for _ in range(3)]
    for page in taken:
        pages.let_go(page)
        pages.give_back(page)
    assert [pages.take("a") for _ in range(3)] == taken[::-1]


def test_pages_that_were_never_needed_are_not_taken_before_used_ones():
    pages = Pages(5)
    assert pages.take("a") == 0
    pages.let_go(0)
    pages.give_back(0)
    assert pages.take("a") == 0


def test_only_the_first_hold_and_the_last_letting_go_change_whether_a_page_is_held():
    pages = Pages(2)
    page = pages.take("a")
    assert not pages.hold(page)
    assert not pages.let_go(page)
    assert pages.let_go(page)
    assert pages.held == 0
    assert pages.hold(page)
    assert (pages.held, pages.references(page)) == (1, 1)


def test_a_page_stays_on_its_account_until_it_is_given_back():
    pages = Pages(2)
    page = pages.take("a")
    pages.hold(page)
    assert pages.used("a") == 1
    pages.let_go(page)
    pages.let_go(page)
    assert pages.used("a") == 1
    pages.give_back(page)
    assert pages.used("a") == 0


def test_an_owner_without_pages_and_quota_leaves_nothing_behind():
    pages = Pages(2)
    page = pages.take("a")
    pages.set_quota("b", 1)
    assert pages.owners == {"a", "b"}
    pages.let_go(page)
    pages.give_back(page)
    pages.set_quota("b", None)
    assert pages.owners == set()


def test_the_excess_is_what_an_owner_would_have_beyond_its_quota():
    pages = Pages(9)
    for _ in range(3):
        pages.take("a")
    assert pages.excess("a", 6) == 0
    pages.set_quota("a", 4)
    assert [pages.excess("a", more) for more in (0, 1, 2, 3)] == [0, 0, 1, 2]
    pages.set_quota("a", 1)
    assert pages.excess("a") == 2
    assert pages.excess("b", 9) == 0


def test_a_quota_below_zero_is_refused():
    with pytest.raises(Invalid, match="quota of -1"):
        Pages(1).set_quota("a", -1)


def test_a_pool_without_pages_is_refused():
    with pytest.raises(Invalid, match="0 pages"):
        Pages(0)


def freed(pages: Pages, count: int) -> list[int]:
    """Pages that were taken and given back."""
    taken = [pages.take("a") for _ in range(count)]
    for page in taken:
        pages.let_go(page)
        pages.give_back(page)
    return taken


def test_fewer_pages_may_be_taken_but_never_fewer_than_are():
    pages = Pages(5)
    taken = [pages.take("a") for _ in range(3)]
    pages.resize(2)
    assert (pages.limit, pages.free) == (3, 0)
    pages.let_go(taken[0])
    pages.give_back(taken[0])
    pages.resize(2)
    assert (pages.limit, pages.free) == (2, 0)
    pages.resize(9)
    assert (pages.limit, pages.free) == (5, 3)


def test_free_pages_are_resident_until_their_memory_was_given_back():
    pages = Pages(9)
    held = pages.take("a")
    dropped = freed(pages, 4)
    assert pages.resident == 5
    again = pages.take("a")
    assert pages.resident == 5
    assert pages.cool() == sorted({*dropped} - {again})
    assert pages.resident == 2
    assert pages.cool() == []
    assert {held, again}.isdisjoint(freed(pages, 7))


def test_after_memory_was_given_back_the_lowest_pages_are_taken_first():
    pages = Pages(5)
    freed(pages, 5)
    pages.cool()
    assert [pages.take("a") for _ in range(5)] == [0, 1, 2, 3, 4]
