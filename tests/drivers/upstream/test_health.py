"""When a server is asked, when it is left alone, and when it is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.upstream.health import Health


class Ward:
    """A server's health, looked at once, with a clock."""

    def __init__(self, every: float = 5.0) -> None:
        self.now = 100.0
        self.health = Health(every, lambda: self.now, chance=lambda: 0.5)
        self.health.looked(None, 0.01)

    def state(self) -> str:
        return "lost" if self.health.lost() else "suspect" if self.health.fault() else "healthy"


def test_one_that_was_never_asked_is_not_asked_to_answer():
    health = Health(5.0, lambda: 0.0)
    assert health.lost() == "it was not asked yet"
    health.looked("no connection", 0.01)
    assert health.lost() == "no connection"
    health.looked(None, 0.01)
    assert (health.lost(), health.fault()) == (None, None)


def test_one_that_does_not_answer_a_look_is_suspect_and_lost_after_the_third():
    ward = Ward()
    states = []
    for _ in range(4):
        ward.health.looked("no connection", 0.01)
        states.append(ward.state())
    assert states == ["suspect", "suspect", "lost", "lost"]
    ward.health.looked(None, 0.01)
    assert ward.state() == "healthy"


def test_it_is_looked_at_less_and_less_often_while_it_is_away():
    ward = Ward()
    waits = [ward.health.next_look()]
    for _ in range(8):
        ward.health.looked("no connection", 0.01)
        waits.append(ward.health.next_look())
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0, 60.0]


def test_a_slow_server_is_not_kept_busy_by_looks():
    ward = Ward(every=1.0)
    ward.health.looked(None, 3.0)
    assert ward.health.next_look() == 12.0


def test_looks_of_many_nodes_do_not_come_at_once():
    ways = [Health(5.0, lambda: 0.0, chance=lambda number=number: number) for number in (0.0, 0.5, 0.999)]
    assert [round(health.next_look(), 2) for health in ways] == [4.0, 5.0, 6.0]


def test_one_whose_answers_break_is_left_alone_after_the_third_and_tried_again_one_at_a_time():
    ward = Ward()
    states = []
    for _ in range(3):
        ward.health.failed("it failed (500)")
        states.append(ward.state())
    assert states == ["suspect", "suspect", "lost"]
    assert ward.health.lost() == "it failed (500); it is asked again in 2 s"
    ward.health.looked(None, 0.01)
    assert ward.state() == "lost"  # that it lists its models says nothing of its answers
    ward.now += 2.1
    assert (ward.state(), ward.health.on_trial) == ("suspect", True)
    ward.health.answered()
    assert (ward.state(), ward.health.on_trial) == ("healthy", False)


def test_each_failed_trial_makes_the_rest_longer_up_to_a_minute():
    ward = Ward()
    rests = []
    for _ in range(2):
        ward.health.failed("500")
    for _ in range(8):
        ward.health.failed("500")
        began = ward.now
        while ward.state() == "lost":
            ward.now += 0.5
        rests.append(ward.now - began)
    assert rests == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_answers_that_began_before_it_was_left_alone_do_not_make_the_rest_longer():
    ward = Ward()
    for _ in range(50):
        ward.health.failed("500")
    ward.now += 2.1
    assert ward.state() == "suspect"


def test_whoever_looks_comes_when_the_rest_is_over():
    ward = Ward(every=60.0)
    for _ in range(3):
        ward.health.failed("500")
    assert ward.health.next_look() == pytest.approx(2.0)


def test_an_answer_between_two_failures_begins_the_count_again():
    ward = Ward()
    for _ in range(5):
        ward.health.failed("500")
        ward.health.failed("500")
        ward.health.answered()
    assert ward.state() == "healthy"


def test_a_failure_is_forgotten_after_a_while_in_which_nothing_else_failed():
    ward = Ward()
    ward.health.failed("500")
    ward.health.looked(None, 0.01)
    assert ward.state() == "suspect"
    ward.now += 31.0
    ward.health.looked(None, 0.01)
    assert ward.state() == "healthy"


def test_one_that_was_away_comes_back_as_another():
    ward = Ward()
    for _ in range(2):
        ward.health.failed("reset")
    for _ in range(3):
        ward.health.looked("no connection", 0.01)
    ward.health.looked(None, 0.01)
    assert ward.state() == "healthy"


def test_a_key_that_is_refused_is_refused_next_time_too():
    ward = Ward()
    ward.health.failed("it does not take the key", lasting=True)
    assert ward.state() == "lost"
    ward.health.changed()
    assert ward.state() == "healthy"


STEPS = st.lists(st.sampled_from(["look", "no look", "answer", "fail", "refuse", "wait"]), max_size=40)


@given(STEPS)
def test_whatever_has_happened_a_server_that_is_well_again_is_asked_again(steps):
    ward = Ward()
    for step in steps:
        match step:
            case "look":
                ward.health.looked(None, 0.01)
            case "no look":
                ward.health.looked("away", 0.01)
            case "answer":
                ward.health.answered()
            case "fail":
                ward.health.failed("500")
            case "refuse":
                ward.health.failed("key", lasting=True)
            case "wait":
                ward.now += 10.0
        assert 0.0 < ward.health.next_look() <= 72.0
    ward.now += 75.0
    ward.health.looked(None, 0.01)
    assert ward.health.lost() is None
    ward.health.answered()
    assert ward.state() == "healthy"
