"""Which of several instances gets a call."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from microkernel.balance import MOST_STICKY, Balance, Balancer, Candidate


def candidates(*loads):
    return [Candidate(number, load) for number, load in enumerate(loads)]


def test_round_robin_gives_each_its_turn():
    balancer = Balancer(Balance.ROUND_ROBIN)
    assert [balancer.choose(candidates(9, 0, 5), "").number for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_least_busy_takes_the_least_and_shares_ties():
    balancer = Balancer(Balance.LEAST_BUSY)
    assert balancer.choose(candidates(3, 1, 2), "").number == 1
    assert {balancer.choose(candidates(0, 0, 0), "").number for _ in range(6)} == {0, 1, 2}


def test_two_choices_never_takes_the_busiest_and_keeps_the_fullest_near_the_average():
    chance = random.Random(1)
    balancer, loads = Balancer(Balance.TWO_CHOICES, chance), [0] * 10
    for _ in range(10_000):
        loads[balancer.choose(candidates(*loads), "").number] += 1
    assert max(loads) - min(loads) < 10
    assert all(balancer.choose(candidates(0, 0, 9), "").number != 2 for _ in range(50))


@given(st.lists(st.text(), min_size=1, max_size=50), st.integers(2, 8), st.data())
def test_when_an_instance_goes_only_its_own_keys_move_and_they_come_back(keys, count, data):
    balancer = Balancer(Balance.HASH)
    everyone = candidates(*[0] * count)
    before = {key: balancer.choose(everyone, key).number for key in keys}
    gone = data.draw(st.integers(0, count - 1))
    left = [candidate for candidate in everyone if candidate.number != gone]
    for key, number in before.items():
        now = balancer.choose(left, key).number
        assert number in {now, gone}
        assert balancer.choose(everyone, key).number == number


def test_hashing_spreads_keys():
    balancer = Balancer(Balance.HASH)
    spread = Counter(balancer.choose(candidates(0, 0, 0, 0), f"key {number}").number for number in range(4000))
    assert min(spread.values()) > 800


def test_a_sticky_caller_stays_while_its_instance_lives_whatever_comes_beside_it():
    balancer = Balancer(Balance.STICKY, random.Random(2))
    first = balancer.choose(candidates(0, 0), "ana").number
    assert all(balancer.choose(candidates(100, 100, 0, 0), "ana").number == first for _ in range(20))
    left = [candidate for candidate in candidates(0, 0, 0) if candidate.number != first]
    second = balancer.choose(left, "ana").number
    assert second != first
    assert balancer.choose(candidates(0, 0, 0), "ana").number == second


def test_of_sticky_callers_the_least_recent_is_forgotten_and_no_more_are_kept():
    balancer = Balancer(Balance.STICKY)
    for number in range(MOST_STICKY * 2):
        balancer.choose(candidates(0, 0), f"caller {number}")
    assert len(balancer._stuck) == MOST_STICKY
