"""What is believed of a worker by what it shows; the times are given."""

from __future__ import annotations

from services.training.agent.liveness import DEAD, LONGEST_PHASE, SUSPECTED, Liveness, Standing
from services.training.beat import BEAT, Pulse


def pulses(beats: int, entered: int, phase: str = "backward") -> Pulse:
    return Pulse(beats, entered, 0, phase)


def test_a_worker_that_counts_and_gets_on_is_alive():
    liveness = Liveness(0.0)
    for number in range(100):
        assert liveness.look(pulses(number, number), number * BEAT) is Standing.ALIVE


def test_one_that_does_not_count_is_suspected_and_then_dead():
    liveness = Liveness(0.0)
    liveness.look(pulses(5, 5), 1.0)
    assert liveness.look(pulses(5, 5), 1.0 + SUSPECTED - 0.01) is Standing.ALIVE
    assert liveness.look(pulses(5, 5), 1.0 + SUSPECTED) is Standing.SUSPECTED
    assert liveness.look(pulses(5, 5), 1.0 + DEAD) is Standing.DEAD


def test_one_that_counts_again_is_alive_again():
    liveness = Liveness(0.0)
    liveness.look(pulses(5, 5), 1.0)
    liveness.look(pulses(5, 5), 2.0)
    assert liveness.look(pulses(6, 5), 2.1) is Standing.ALIVE


def test_a_loop_that_enters_no_other_phase_hangs_and_one_that_waits_for_orders_does_not():
    for phase, standing in (("summing", Standing.HUNG), ("waiting", Standing.ALIVE)):
        liveness = Liveness(0.0)
        for number in range(int(LONGEST_PHASE / BEAT) + 2):
            found = liveness.look(pulses(number, 1, phase), number * BEAT)
        assert found is standing


def test_a_phase_may_take_long_where_others_did():
    liveness, now = Liveness(0.0), 0.0
    liveness.look(pulses(0, 1), now)
    for number in range(1, 600):
        now += BEAT
        liveness.look(pulses(number, 1), now)
    liveness.look(pulses(600, 2), now)  # one of a minute
    for number in range(601, 601 + int(LONGEST_PHASE / BEAT) + 10):
        now += BEAT
        assert liveness.look(pulses(number, 2), now) is Standing.ALIVE


def test_what_it_could_not_do_while_others_had_the_device_says_nothing():
    liveness = Liveness(0.0)
    liveness.look(pulses(5, 5), 1.0)
    liveness.rested(100.0)
    assert liveness.look(pulses(5, 5), 100.1) is Standing.ALIVE
