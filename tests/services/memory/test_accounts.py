"""Bytes reserved and free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Denied, Invalid, NotFound, Overloaded
from services.memory.accounts import Accounts
from services.memory.messages import Holding, OwnerUse, ReportUse, Reserve, Resize, Tier, in_units


def accounts(limit=1000):
    made = Accounts()
    made.open("cpu0", Tier.DEVICE, limit)
    return made


def ask(count, owner="a", device="cpu0"):
    return Reserve(purpose="weights of m", bytes=count, device=device), owner


def test_what_does_not_fit_is_refused_with_the_numbers():
    made = accounts(2_000_000)
    made.reserve(*ask(1_500_000))
    with pytest.raises(Overloaded, match=r"weights of m needs 1\.0 MB on cpu0, and 500\.0 kB of its 2\.0 MB are free"):
        made.reserve(*ask(1_000_000))


def test_what_the_device_has_free_counts_as_well():
    with pytest.raises(Overloaded):
        accounts().reserve(*ask(500), available=400)


def test_bytes_come_back_once():
    made = accounts()
    reservation = made.reserve(*ask(1000))
    assert made.release(reservation.id, "a") == reservation
    assert made.release(reservation.id, "a") is None
    made.reserve(*ask(1000))


def test_an_owner_gives_back_all_of_its_own_and_nothing_else():
    made = accounts()
    made.reserve(*ask(300, "a"))
    made.reserve(*ask(300, "b"))
    made.reserve(*ask(300, "a"))
    assert len(made.release_owner("a")) == 2
    assert made.reserved("cpu0", Tier.DEVICE) == 300


def test_unknown_accounts_and_negative_sizes_are_refused():
    with pytest.raises(NotFound):
        accounts().reserve(*ask(1, device="gpu7"))
    with pytest.raises(Invalid):
        accounts().reserve(*ask(-1))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 600))))
def test_never_more_than_the_limit_is_reserved_and_the_sum_is_right(steps):
    made, held = accounts(), {}
    for take, number in steps:
        if take:
            try:
                reservation = made.reserve(*ask(number))
            except Overloaded:
                assert sum(held.values()) + number > 1000
            else:
                held[reservation.id] = number
        elif held:
            made.release(min(held), "a")
            held.pop(min(held))
        assert made.reserved("cpu0", Tier.DEVICE) == sum(held.values()) <= 1000


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (25_000_000_000, "25.0 GB")]
)
def test_sizes_are_written_as_people_read_them(count, text):
    assert in_units(count) == text


def test_what_is_anothers_is_not_given_back():
    made = accounts()
    reservation = made.reserve(*ask(300, "a"))
    with pytest.raises(Denied):
        made.release(reservation.id, "b")
    assert made.reserved("cpu0", Tier.DEVICE) == 300


def test_as_much_is_given_as_fits_where_that_is_enough():
    made = accounts()
    made.reserve(*ask(700))
    given = made.reserve(Reserve(purpose="pages", bytes=900, at_least=200), "a")
    assert given.bytes == 300
    with pytest.raises(Overloaded, match="pages needs 1 B"):
        made.reserve(Reserve(purpose="pages", bytes=900, at_least=1), "a")


def test_what_is_taken_already_need_not_be_free():
    made = accounts()
    assert made.reserve(Reserve(purpose="files", bytes=900, taken=600), "a", available=300).bytes == 900


def test_a_reservation_grows_and_shrinks_and_a_refusal_leaves_it_as_it_was():
    made = accounts()
    one = made.reserve(*ask(400))
    assert made.resize(Resize(id=one.id, bytes=900), "a").bytes == 900
    with pytest.raises(Overloaded):
        made.resize(Resize(id=one.id, bytes=1100), "a")
    assert made.reserved("cpu0", Tier.DEVICE) == 900
    assert made.resize(Resize(id=one.id, bytes=1100, at_least=900), "a").bytes == 1000
    assert made.resize(Resize(id=one.id, bytes=100), "a").bytes == 100
    assert made.reserved("cpu0", Tier.DEVICE) == 100


def test_a_reservation_that_shrinks_is_not_asked_whether_it_fits():
    made = accounts()
    one = made.reserve(*ask(400))
    assert made.resize(Resize(id=one.id, bytes=300), "a", available=0).bytes == 300


def test_nobody_resizes_what_is_another_s_or_not_there():
    made = accounts()
    one = made.reserve(*ask(400, "a"))
    with pytest.raises(Denied):
        made.resize(Resize(id=one.id, bytes=1), "b")
    with pytest.raises(NotFound):
        made.resize(Resize(id=99, bytes=1), "a")


def held(name: str, resident: int, *owners: OwnerUse) -> Holding:
    return Holding(name=name, device="cpu0", resident_bytes=resident, owners=owners)


def test_in_use_is_what_services_say_and_of_the_silent_ones_what_they_reserved():
    made = accounts()
    made.reserve(*ask(500, "a"))
    made.reserve(*ask(200, "b"))
    assert made.used("cpu0", Tier.DEVICE) == 700
    made.report(ReportUse(device="cpu0", holdings=(held("m", 60), held("n", 70))), "a")
    assert made.used("cpu0", Tier.DEVICE) == 330
    made.report(ReportUse(device="cpu0", holdings=(held("m", 10),)), "a")
    assert made.used("cpu0", Tier.DEVICE) == 210
    made.release_owner("a")
    assert made.used("cpu0", Tier.DEVICE) == 200


def test_an_owner_s_use_is_the_sum_over_all_models():
    made = accounts()
    ann, bob = OwnerUse(owner="ann", bytes=10, hits=1, misses=2), OwnerUse(owner="bob", bytes=5)
    made.report(ReportUse(device="cpu0", holdings=(held("m", 0, bob, ann), held("n", 0, ann))), "a")
    [account] = made.accounts()
    assert account.owners == (OwnerUse(owner="ann", bytes=20, hits=2, misses=4), bob)
