"""Who gets which server, and who waits: the desk without a loop."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_servers import Parrot

from microkernel.errors import NotFound, Overloaded, Unavailable
from services.devices.desk import Desk, Seat, Ticket


class Office:
    """A desk with servers, its clock, and the tickets that were woken."""

    def __init__(self, *servers: Parrot, driver: str = "parrot") -> None:
        self.now = 0.0
        self.desk = Desk(lambda: self.now)
        self.woken: list[Ticket] = []
        for server in servers:
            self.desk.enter(Seat(driver, server))

    def ask(self, model: str = "m", where: str = "", urgency: int = 0) -> Ticket:
        ticket = Ticket(model, where, urgency, lambda: self.woken.append(ticket))
        self.desk.join(ticket)
        return ticket


def place(ticket: Ticket) -> str | None:
    return None if ticket.seat is None else ticket.seat.name


def test_equal_servers_take_turns():
    office = Office(Parrot("a", "m"), Parrot("b", "m"))
    names = []
    for _ in range(4):
        ticket = office.ask()
        names.append(place(ticket))
        office.desk.leave(ticket)
    assert names == ["a", "b", "a", "b"]


def test_a_server_of_three_times_the_weight_has_three_times_the_requests():
    office = Office(Parrot("a", "m", places=100, weight=3.0), Parrot("b", "m", places=100))
    assert Counter(place(office.ask()) for _ in range(40)) == {"a": 30, "b": 10}


def test_a_suspect_server_is_asked_only_where_no_healthy_one_has_a_place():
    ill, well = Parrot("a", "m"), Parrot("b", "m", places=2)
    ill.ill = "slow"
    office = Office(ill, well)
    assert [place(office.ask()) for _ in range(3)] == ["b", "b", "a"]


def test_only_servers_of_the_model_are_asked():
    office = Office(Parrot("a", "other"), Parrot("b", "m"))
    assert {place(office.ask()) for _ in range(3)} == {"b"}
    with pytest.raises(NotFound, match="'nothing'"):
        office.ask("nothing")


def test_where_names_a_device_or_a_driver():
    office = Office(Parrot("a", "m"), Parrot("b", "m"))
    assert {place(office.ask(where="b")) for _ in range(3)} == {"b"}
    assert {place(office.ask(where="parrot")) for _ in range(2)} == {"a"}
    with pytest.raises(NotFound, match="at 'c'"):
        office.ask(where="c")


def test_a_request_without_a_place_gets_the_first_that_comes_free_wherever_that_is():
    office = Office(Parrot("a", "m", places=1), Parrot("b", "m", places=1))
    office.ask()
    second, waiting = office.ask(), office.ask()
    assert (waiting.seat, place(second)) == (None, "b")
    office.desk.leave(second)
    assert place(waiting) == "b"
    assert office.woken == [waiting]


def test_the_more_urgent_goes_first_and_among_equals_who_came_first():
    office = Office(Parrot("a", "m", places=1))
    now = office.ask()
    later, sooner, soonest, last = (office.ask(urgency=urgency) for urgency in (5, 1, 0, 5))
    order = []
    for _ in range(4):
        office.desk.leave(now)
        now = office.woken[-1]
        order.append(now)
    assert order == [soonest, sooner, later, last]


def test_a_full_queue_is_told_with_a_time_to_come_back():
    office = Office(Parrot("a", "m", places=1, queue=2))
    first = office.ask()
    office.now = 8.0
    office.desk.leave(first)
    office.ask()
    waiting = [office.ask(), office.ask()]
    with pytest.raises(Overloaded, match="2 requests wait for 'm'") as caught:
        office.ask()
    assert caught.value.retry_after == pytest.approx(8.0 * 3)
    office.desk.leave(waiting[0])
    office.ask()


def test_one_that_left_the_queue_gets_no_place():
    office = Office(Parrot("a", "m", places=1))
    first, gone, next_ = office.ask(), office.ask(), office.ask()
    office.desk.leave(gone)
    office.desk.leave(first)
    assert (gone.seat, place(next_)) == (None, "a")


def test_who_waits_is_told_when_the_last_server_is_lost():
    bird = Parrot("a", "m", places=1)
    office = Office(bird)
    office.ask()
    waiting = office.ask()
    bird.away = "it burnt"
    office.desk.changed()
    assert isinstance(waiting.error, Unavailable)
    assert "a is quarantined: it burnt" in waiting.error.message
    assert waiting.error.may_have_run is False
    assert office.woken == [waiting]


def test_one_that_comes_again_after_a_failure_keeps_its_turn_and_goes_elsewhere():
    office = Office(Parrot("a", "m", places=1), Parrot("b", "m", places=1))
    first, second = office.ask(), office.ask()
    waiting = office.ask()
    first.tried.add("a")
    office.desk.leave(first)
    assert place(waiting) == "a"
    office.desk.join(first)
    behind = office.ask()
    office.desk.leave(second)
    assert (place(first), behind.seat) == ("b", None)


def test_how_long_a_server_was_busy_counts_each_moment_once():
    office = Office(Parrot("a", "m"))
    first = office.ask()
    office.now = 2.0
    second = office.ask()
    office.now = 3.0
    office.desk.leave(first)
    office.now = 5.0
    office.desk.leave(second)
    office.now = 9.0
    (seat,) = office.desk
    assert (seat.busy_seconds(9.0), seat.ended) == (5.0, 2)


def test_a_name_is_a_model_first_and_a_place_with_a_model_then():
    office = Office(Parrot("a", "m", "a/m"), Parrot("b", "m", "org/m"))

    def devices(name: str) -> list[tuple[str, str]]:
        return [(row.device, row.model) for row in office.desk.served(name)]

    assert devices("m") == [("a", "m"), ("b", "m")]
    assert devices("a/m") == [("a", "a/m")]
    assert devices("b/m") == [("b", "m")]
    assert devices("org/m") == [("b", "org/m")]
    assert devices("b/org/m") == [("b", "org/m")]
    assert devices("parrot/m") == [("a", "m"), ("b", "m")]
    assert devices("/m") == devices("c/m") == devices("") == []
    assert len(office.desk.served()) == 4


STEPS = st.lists(st.tuples(st.sampled_from(["ask", "leave", "lose", "mend"]), st.integers(0, 50)), max_size=60)


@given(STEPS)
def test_no_server_has_more_than_its_places_and_nobody_waits_beside_a_free_one(steps):
    birds = [Parrot("a", "m", places=1, queue=3), Parrot("b", "m", "n", places=2, queue=3)]
    office = Office(*birds)
    tickets: list[Ticket] = []
    for step, number in steps:
        if step == "ask":
            try:
                tickets.append(office.ask("mn"[number % 2], urgency=number % 3))
            except (Overloaded, Unavailable):
                continue
        elif step == "leave" and tickets:
            office.desk.leave(tickets.pop(number % len(tickets)))
        elif step in {"lose", "mend"}:
            birds[number % 2].away = "gone" if step == "lose" else None
            office.desk.changed()
        tickets = [ticket for ticket in tickets if ticket.error is None]
        for seat in office.desk:
            assert 0 <= seat.running <= seat.server.places
            assert seat.running == sum(ticket.seat is seat for ticket in tickets)
            assert not (seat.free and seat.server.lost() is None and office.desk.waiting(seat))
