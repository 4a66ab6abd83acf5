"""What a worker is told, in the order in which it can heed it."""

from __future__ import annotations

import socket

import pytest

from services.training.orders import Form, Rest, Rested, Save, Stop, decode_report, frame, frames
from services.training.worker.inbox import Inbox, Wish


def form(generation: int) -> Form:
    return Form(generation=generation, rank=0, world=1, port=1)


@pytest.fixture
def line(monkeypatch):
    """The agent's end, and the worker's inbox, whose end is not the end of the tests' process."""
    ends = []
    monkeypatch.setattr("services.training.worker.inbox.os._exit", ends.append)
    ours, theirs = socket.socketpair()
    inbox = Inbox(theirs)
    with ours, theirs:
        yield ours, inbox
        ours.shutdown(socket.SHUT_RDWR)
        inbox._thread.join(10)
    assert ends, "a worker whose agent has gone ends"


def wait_for(inbox: Inbox, wish: Wish) -> None:
    while inbox.wish is not wish:
        pass


def test_of_several_groups_that_were_called_the_last_one_is_met(line):
    agent, inbox = line
    agent.sendall(b"".join(frame(form(number)) for number in (1, 2, 3)))
    while inbox._calls < 3:
        pass
    assert inbox.is_called
    order = inbox.wait()
    assert isinstance(order, Form)
    assert order.generation == 3
    assert not inbox.is_called


def test_the_greatest_wish_holds_until_it_was_heeded(line):
    agent, inbox = line
    agent.sendall(frame(Rest()) + frame(Save()))
    wait_for(inbox, Wish.REST)
    inbox.heeded(Wish.SAVE)
    assert inbox.wish is Wish.REST
    inbox.heeded(Wish.REST)
    assert inbox.wish is Wish.NOTHING


def test_one_that_waits_for_a_group_hears_that_it_is_to_stop(line):
    agent, inbox = line
    agent.sendall(frame(Stop()))
    assert isinstance(inbox.wait(), Stop)
    assert not inbox.is_called, "a step is not cut off by that"
    assert inbox.wish is Wish.STOP


def test_reports_arrive_as_they_were_told(line):
    agent, inbox = line
    inbox.tell(Rested(step=7))
    buffer = bytearray(agent.recv(4096))
    assert [decode_report(body) for body in frames(buffer)] == [Rested(step=7)]
