"""A circuit breaker opens after failures in a row, lets one trial through, and closes when that goes well."""

from microkernel.breaker import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, Breaker


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.begin()
        breaker.failed(now)
    return breaker


def test_a_few_failures_change_nothing() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    assert breaker.allows(0.0)


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    assert breaker.allows(0.0)


def test_enough_failures_in_a_row_keep_calls_away() -> None:
    assert not opened().allows(0.0)


def test_after_a_pause_one_trial_is_let_through_and_no_second() -> None:
    breaker = opened()
    assert not breaker.allows(FIRST_PAUSE - 0.01)
    assert breaker.allows(FIRST_PAUSE)
    breaker.begin()
    assert not breaker.allows(FIRST_PAUSE)


def test_a_trial_that_goes_well_closes_it() -> None:
    breaker = opened()
    breaker.begin()
    breaker.succeeded()
    assert breaker.allows(0.0)


def test_each_failed_trial_makes_the_pause_longer_up_to_a_limit() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(8):
        pause = next(step / 2 for step in range(200) if breaker.allows(now + step / 2))
        pauses.append(pause)
        now += pause
        breaker.begin()
        breaker.failed(now)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)


def test_a_trial_that_was_cancelled_lets_another_one_through() -> None:
    breaker = opened()
    breaker.begin()
    breaker.abandoned()
    assert breaker.allows(FIRST_PAUSE)
