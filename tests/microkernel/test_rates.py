"""Rates of tokens: one account for each bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.capability import Rate
from microkernel.rates import Rates

ONE = Rate("a" * 32, rate=2.0, burst=4)


def test_a_burst_is_admitted_and_then_the_even_rate() -> None:
    rates = Rates()
    assert [rates.take([ONE], 10.0) for _ in range(4)] == [0.0] * 4
    assert rates.take([ONE], 10.0) == pytest.approx(0.5)
    assert rates.take([ONE], 10.4) == pytest.approx(0.1)
    assert rates.take([ONE], 10.5) == 0.0
    assert rates.take([ONE], 10.5) > 0


def test_what_is_refused_takes_nothing_from_any_account() -> None:
    rates, scarce = Rates(), Rate("b" * 32, rate=1.0, burst=1)
    assert rates.take([ONE, scarce], 0.0) == 0.0
    for _ in range(100):
        assert rates.take([ONE, scarce], 0.0) == pytest.approx(1.0)
    assert [rates.take([ONE], 0.0) for _ in range(3)] == [0.0] * 3


def test_tokens_narrowed_from_one_share_its_account() -> None:
    rates = Rates()
    narrowed = [[ONE, Rate(f"{number:032}", rate=100.0, burst=100)] for number in range(50)]
    assert sum(rates.take(each, 0.0) == 0.0 for each in narrowed) == 4


def test_accounts_are_bounded_and_the_one_in_use_is_kept() -> None:
    rates, admitted = Rates(accounts=8), 0
    bound = Rate("a" * 32, rate=0.001, burst=50)
    for number in range(100):
        admitted += rates.take([bound, Rate(f"{number:032}", rate=1.0, burst=1)], 0.0) == 0.0
        assert len(rates) <= 8
    assert admitted == 50


@settings(max_examples=200, deadline=None)
@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), max_size=200))
def test_in_no_span_of_time_is_more_admitted_than_a_burst_and_the_rate(rate, burst, asked) -> None:
    rates, bound, now = Rates(), Rate("a" * 32, rate, burst), 0.0
    admitted: list[tuple[float, int]] = []
    for pause, count in asked:
        now += pause
        if rates.take([bound], now, count) == 0.0:
            admitted.append((now, count))
    for place, (begin, _) in enumerate(admitted):
        total = 0
        for moment, count in admitted[place:]:
            total += count
            assert total <= burst + rate * (moment - begin) + 1e-6 * rate + 1e-6
