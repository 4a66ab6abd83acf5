"""How long a suspicion lasts, and what falling again and again costs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cluster.membership.rules import Rules
from services.cluster.membership.suspicion import MOST_ACCUSERS, Conduct, Suspicion

RULES = Rules()
SHORTEST = RULES.suspicion * RULES.period


def suspicion(members, *accusers):
    each = Suspicion(0.0, RULES, members, RULES.period)
    for accuser in accusers:
        each.accuse(accuser)
    return each


def test_a_lone_accuser_takes_long_and_each_that_confirms_shortens_it():
    ends = [suspicion(8, *"abcd"[:count]).ends for count in range(1, 5)]
    assert ends[0] == SHORTEST * RULES.doubt
    assert ends == sorted(ends, reverse=True)
    assert len(set(ends)) == 4
    assert ends[-1] == SHORTEST


def test_of_two_nobody_could_confirm_so_it_is_short_at_once():
    assert suspicion(2, "a").ends == SHORTEST


def test_of_three_the_third_is_enough():
    assert suspicion(3, "a").ends == SHORTEST * RULES.doubt
    assert suspicion(3, "a", "b").ends == SHORTEST


def test_among_more_members_it_is_longer_as_news_travels_longer():
    assert suspicion(10, *"abcd").ends == SHORTEST
    assert suspicion(1000, *"abcd").ends == 3 * SHORTEST


@given(st.lists(st.sampled_from("abcdefghijklmnop")), st.integers(2, 10_000))
def test_only_new_accusers_that_shorten_it_are_news_and_they_are_few(accusers, members):
    each = suspicion(members)
    for accuser in accusers:
        before, known = each.ends, set(each.accusers)
        if each.accuse(accuser):
            assert accuser not in known
            assert each.ends <= before
        else:
            assert each.ends == before
    assert len(each.accusers) <= MOST_ACCUSERS


def falls(*times):
    conduct = Conduct(RULES)
    for time in times:
        conduct.fell(time, RULES)
    return conduct


def test_two_falls_are_forgiven_and_three_within_a_minute_are_not():
    assert not falls(0.0, 30.0).quarantined(30.0)
    assert falls(0.0, 30.0, 60.0).quarantined(60.0)
    assert not falls(0.0, 30.0, 60.1).quarantined(60.1)


def test_it_is_over_when_nothing_happened_for_the_time():
    conduct = falls(0.0, 1.0, 2.0)
    assert conduct.until == 2.0 + RULES.quiet
    conduct.fell(20.0, RULES)
    assert conduct.until == 20.0 + RULES.quiet
    assert not conduct.quarantined(20.0 + RULES.quiet)


def test_each_time_is_twice_as_long_up_to_a_limit_and_an_hour_of_peace_begins_anew():
    conduct, now, lengths = Conduct(RULES), 0.0, []
    for _ in range(8):
        while not conduct.quarantined(now):
            conduct.fell(now, RULES)
        lengths.append(conduct.until - now)
        now = conduct.until + 61.0
    assert lengths == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0, 600.0]
    now += RULES.forgiven
    while not conduct.quarantined(now):
        conduct.fell(now, RULES)
    assert conduct.until - now == RULES.quiet
