"""Rates of owners, and waits that are foreseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid, Overloaded
from services.inference.admission import Admission, OwnerRate, Wait


def admitted(admission: Admission, owner: str, now: float) -> bool:
    try:
        admission.ask(owner, now)
    except Overloaded:
        return False
    return True


def test_an_owner_has_its_requests_of_a_minute_at_once_and_then_one_by_one():
    admission = Admission({"ann": OwnerRate(requests=6)})
    assert [admitted(admission, "ann", 0.0) for _ in range(8)] == [True] * 6 + [False] * 2
    with pytest.raises(Overloaded, match="may have 6 requests in a minute") as caught:
        admission.ask("ann", 1.0)
    assert caught.value.retry_after == pytest.approx(9.0)
    assert not admitted(admission, "ann", 9.9)
    assert admitted(admission, "ann", 10.0)
    assert not admitted(admission, "ann", 10.1)


def test_an_owner_that_had_too_many_tokens_waits_until_the_rate_has_caught_up():
    admission = Admission({"ann": OwnerRate(tokens=600)})
    admission.ask("ann", 0.0)
    admission.charge("ann", 900, 0.0)
    with pytest.raises(Overloaded) as caught:
        admission.ask("ann", 0.0)
    assert caught.value.retry_after == pytest.approx(30.0)
    assert admitted(admission, "ann", 30.0)


def test_each_owner_has_an_account_of_its_own_and_who_is_not_named_the_rate_of_all():
    admission = Admission({"*": OwnerRate(requests=1), "root": OwnerRate()})
    assert [admitted(admission, owner, 0.0) for owner in ("ann", "bob", "ann")] == [True, True, False]
    assert all(admitted(admission, "root", 0.0) for _ in range(100))


def test_without_rates_everybody_is_admitted():
    admission = Admission({})
    admission.charge("ann", 10**9, 0.0)
    assert admitted(admission, "ann", 0.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(Invalid, match="ann"):
        Admission({"ann": OwnerRate(tokens=rate)})


@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 20)), max_size=100),
)
def test_over_any_time_an_owner_gets_no_more_than_its_rate_and_one_minute_s_worth(rate, asked):
    admission, now, had = Admission({"ann": OwnerRate(requests=rate)}), 0.0, 0
    for gap, count in asked:
        now += gap
        try:
            admission.ask("ann", now, requests=count)
        except Overloaded as error:
            assert error.retry_after > 0
        else:
            had += count
    assert had <= max(rate, 20) + rate * now / 60.0 + 1e-6


def test_a_wait_is_what_those_before_it_keep_their_places():
    wait = Wait()
    wait.check(0.0, running=9, waiting=9, places=4)  # nothing is known: nobody is refused
    wait.note(8.0)
    assert wait.estimate(running=3, waiting=0, places=4) == 0.0
    assert wait.estimate(running=4, waiting=0, places=4) == 2.0
    assert wait.estimate(running=4, waiting=7, places=4) == 16.0
    with pytest.raises(Overloaded, match="7 requests wait for 4 places, some 16 s, and the limit is 10 s") as caught:
        wait.check(10.0, running=4, waiting=7, places=4)
    assert caught.value.retry_after == pytest.approx(6.0)
