"""Nodes that were removed and certificates that were lost: who is refused, since when, and for how long."""

from __future__ import annotations

import threading

import pytest
from certified import NOW
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid, PreconditionFailed
from services.cluster.certificates.certificate import LONGEST_LIFETIME
from services.cluster.certificates.contexts import Peer
from services.cluster.certificates.refusals import GRACE, MOST_REFUSALS, Refusal, Refusals


def peer(node="n1", *, issued=NOW, serial="abc") -> Peer:
    return Peer(node=node, serial=serial, issued=issued, expires=issued + 3600)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cluster" / "refused.json"


@pytest.fixture
def refusals(path):
    return Refusals(path, now=NOW)


def test_nobody_is_refused_at_first(refusals):
    assert not refusals.covers(peer())


def test_a_removed_node_is_refused_and_no_other(refusals):
    refusals.refuse("n1", now=NOW)
    assert refusals.covers(peer("n1"))
    assert not refusals.covers(peer("n2"))


def test_a_certificate_that_is_made_after_the_removal_is_good(refusals):
    refusals.refuse("n1", now=NOW)
    assert refusals.covers(peer(issued=NOW))
    assert not refusals.covers(peer(issued=NOW + 1))


def test_a_single_certificate_is_refused_and_no_other_of_the_node(refusals):
    refusals.refuse_serial("abc", now=NOW)
    assert refusals.covers(peer(serial="abc", issued=NOW + 60))
    assert not refusals.covers(peer(serial="abd"))


def test_a_refusal_survives_a_restart(refusals, path):
    refusals.refuse("n1", now=NOW)
    refusals.refuse_serial("abc", now=NOW)
    again = Refusals(path, now=NOW)
    assert again.all() == refusals.all()
    assert again.covers(peer("n1", serial="1"))
    assert again.covers(peer("n9", serial="abc"))


def test_a_refusal_is_kept_until_the_last_certificate_has_ended_and_a_day_more(refusals, path):
    refusals.refuse("n1", now=NOW)
    end = NOW + LONGEST_LIFETIME + GRACE
    assert Refusals(path, now=end).covers(peer())
    assert not Refusals(path, now=end + 1).covers(peer())


def test_of_two_refusals_of_a_node_the_later_one_counts_in_whatever_order_they_come(refusals, path):
    late, early = Refusal(node="n1", at=NOW), Refusal(node="n1", at=NOW - 60)
    for order in ((late, early), (early, late)):
        mine = Refusals(path.with_name(f"{order[0].at}.json"), now=NOW)
        mine.add(*order, now=NOW)
        assert mine.all() == (late,)


def test_refusals_that_another_node_tells_are_kept_too(refusals, path):
    refusals.refuse("n1", now=NOW)
    other = Refusals(path.with_name("other.json"), now=NOW)
    other.add(*refusals.all(), now=NOW)
    assert other.covers(peer("n1"))
    assert Refusals(path.with_name("other.json"), now=NOW).covers(peer("n1"))


def test_no_more_are_kept_than_there_is_room_for_and_none_is_lost(refusals):
    first = [Refusal(node=f"n{number}", at=NOW) for number in range(MOST_REFUSALS)]
    refusals.add(*first, now=NOW)
    with pytest.raises(PreconditionFailed, match="no more can be kept"):
        refusals.refuse("another", now=NOW)
    refusals.refuse("n7", now=NOW + 5)  # one that is there already
    assert len(refusals.all()) == MOST_REFUSALS
    refusals.refuse("another", now=NOW + LONGEST_LIFETIME + GRACE + 10)


def test_the_largest_list_can_be_read_again(refusals, path):
    longest = [Refusal(node=f"{number:0>63}", at=NOW + number / 7) for number in range(MOST_REFUSALS)]
    refusals.add(*longest, now=NOW)
    assert len(Refusals(path, now=NOW).all()) == MOST_REFUSALS


def test_a_refusal_that_is_not_on_the_disk_holds_and_says_so(refusals, path):
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(PreconditionFailed, match="in force, but not on the disk"):
        refusals.refuse("n1", now=NOW)
    assert refusals.covers(peer("n1"))


def test_refusals_from_many_threads_are_all_kept(refusals, path):
    threads = [threading.Thread(target=refusals.refuse, args=(f"n{each}",), kwargs={"now": NOW}) for each in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.node for each in Refusals(path, now=NOW).all()} == {f"n{each}" for each in range(16)}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[", '[{"at":1}]', '[{"at":1,"node":"n1","serial":"a"}]', '[{"at":1,"node":"N 1"}]', '[{"serial":"a"}]'],
)
def test_a_damaged_list_is_not_taken_for_an_empty_one(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(PreconditionFailed, match="is damaged, so a node that was removed might come back"):
        Refusals(path, now=NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_empty_list_or_damage(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("refusals") / "refused.json"
    path.write_bytes(raw)
    try:
        found = Refusals(path, now=NOW)
    except PreconditionFailed:
        return
    assert (found.all(), raw.strip()) == ((), b"[]")


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PreconditionFailed, match="cannot read"):
        Refusals(tmp_path, now=NOW)


@pytest.mark.parametrize("serial", ["", "0", "0a", "xyz", "ABC", "a" * 41])
def test_what_is_no_serial_number_is_refused(refusals, serial):
    with pytest.raises(Invalid):
        refusals.refuse_serial(serial, now=NOW)


def test_what_is_no_name_of_a_node_is_refused(refusals):
    with pytest.raises(Invalid):
        refusals.refuse("N 1", now=NOW)
