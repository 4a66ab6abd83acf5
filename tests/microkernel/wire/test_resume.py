"""Sessions that go on over another link: nothing is lost and nothing comes twice, wherever the first one broke."""

from __future__ import annotations

import itertools
import json
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.capability import Identity, Rights
from microkernel.errors import Invalid
from microkernel.wire import codec
from microkernel.wire.client_session import ClientSession
from microkernel.wire.codec import CloseCode, ProtocolError
from microkernel.wire.limits import Limits
from microkernel.wire.server_session import ServerSession
from microkernel.wire.session import Authenticate, Close
from microkernel.wire.state import Replay, SessionState

ANA = Identity("ana", Rights())


class World:
    """A client, a server, and links between them that break; what each side has said and what it has heard."""

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**{"rate": 1e6, "burst": 10**6, **limits})
        self.names = itertools.count(1)
        self.ids = itertools.count(1)
        self.state = SessionState()
        self.kept: SessionState | None = None  # the server's
        self.client_said: list[Any] = []
        self.client_heard: list[Any] = []
        self.server_said: list[Any] = []
        self.server_heard: list[Any] = []
        self.open: dict[int, str] = {}  # at the server: what is still to be ended
        self.sessions: list[str] = []
        self.ended: set[int] = set()
        self.door: ServerSession  # what the work goes through: the last session object that had the state
        self.link()

    def link(self) -> None:
        self.client = ClientSession(token="t", limits=self.limits, clock=lambda: 0.0, state=self.state, ids=self.ids)
        self.server = ServerSession(
            node="n", epoch="e", session=f"s{next(self.names)}", limits=self.limits, clock=lambda: 0.0
        )
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()

    def cut(self) -> None:
        self.client.lost("cut")
        self.server.lost("cut")
        self.link()

    def write(self) -> None:
        """Whatever is ready leaves both ends, and may still be lost."""
        for session, wire in ((self.client, self.to_server), (self.server, self.to_client)):
            while (frame := session.outbox.take()) is not None:
                session.outbox.written()
                wire.append(frame)

    def deliver(self, *, to_server: bool) -> None:
        """One frame arrives."""
        wire = self.to_server if to_server else self.to_client
        if not wire:
            return
        text = wire.popleft().decode()
        if to_server:
            self.serve(self.server.received(text))
        else:
            for action in self.client.received(text):
                assert not isinstance(action, Close), action
                if isinstance(action, codec.Ready):
                    self.sessions.append(action.session)
                elif not isinstance(action, codec.Hello | codec.Pong | codec.Bye | codec.Credit):
                    self.client_heard.append(action)

    def serve(self, actions: list[Any]) -> None:
        for action in actions:
            assert not isinstance(action, Close), action
            if isinstance(action, Authenticate):
                self.greet(action)
                continue
            if isinstance(action, codec.Credit):
                continue  # compared as the credit that is left
            self.server_heard.append(action)
            if isinstance(action, codec.Call | codec.Open | codec.Subscribe):
                self.open[action.id] = type(action).__name__
            elif isinstance(action, codec.Cancel | codec.Unsubscribe):
                self.open.pop(action.id, None)

    def greet(self, action: Authenticate) -> None:
        wish, kept = action.resume, self.kept
        assert wish is not None
        if kept is not None and kept.replay is not None and kept.session == wish.session:
            assert kept.replay.can_resume(wish.seen)
            self.door = self.server
            actions = self.server.authenticated(ANA, kept)
        else:
            actions = self.server.authenticated(ANA)
            self.kept, self.door = self.server.state, self.server
        self.serve(actions)

    def settle(self) -> None:
        """Everything arrives."""
        for _ in range(1000):
            self.write()
            if not self.to_server and not self.to_client:
                return
            self.deliver(to_server=True)
            self.deliver(to_server=False)
        raise AssertionError("the two never stop talking")

    # What the two sides do

    def say(self, kind: str, number: int) -> None:
        """The client says something, as far as it has anything to say it about."""
        if not self.state.session:
            return
        client, state, body = self.client, self.state, msgspec.Raw(str(number).encode())
        match kind:
            case "call":
                call = client.call("a.b", body, deadline=None, priority=None)
                self.client_said.append(codec.Call(call, "a.b", body))
            case "open":
                stream = client.open("a.b", body, credit=number, deadline=None, priority=None)
                self.client_said.append(codec.Open(stream, "a.b", body, credit=number))
            case "subscribe":
                self.client_said.append(codec.Subscribe(client.subscribe("a.*", None), "a.*"))
            case "send":
                client.send("a.b", body, priority=None)
                self.client_said.append(codec.Send("a.b", body))
            case "publish":
                client.publish("a.b", body)
                self.client_said.append(codec.Publish("a.b", body))
            case "credit" if state.streams:
                client.credit(min(state.streams), number + 1)
            case "input":
                for stream in [stream for stream in state.inputs if client.room(stream)][:1]:
                    client.item(stream, body)
                    self.client_said.append(codec.Item(stream, body))

    def said_of_open(self) -> list[Any]:
        """What the client has said, but for items into streams that the server had ended: those are dropped."""
        return [said for said in self.client_said if not self.is_into_ended(said)]

    def heard_of_open(self) -> list[Any]:
        return [heard for heard in self.server_heard if not self.is_into_ended(heard)]

    def is_into_ended(self, message: Any) -> bool:
        return isinstance(message, codec.Item) and message.id in self.ended

    def answer(self, kind: str, number: int) -> None:
        """The server tells something, whether or not a link is there."""
        if not self.open or self.kept is None:
            return
        target = sorted(self.open)[number % len(self.open)]
        server, opened, body = self.door, self.open[target], msgspec.Raw(str(number).encode())
        match kind, opened:
            case "result", "Call":
                server.result(target, body)
                self.server_said.append(codec.Result(target, body))
                del self.open[target]
            case "item", "Open" if server.credit(target):
                server.item(target, body)
                self.server_said.append(codec.Item(target, body))
            case "event", "Subscribe":
                server.event(target, "a.b", len(self.server_said), body)
                self.server_said.append(codec.Event(target, "a.b", len(self.server_said), body))
            case "grant", "Open":
                server.grant(target, number % 3 + 1)
            case "end", "Open" | "Subscribe":
                server.end(target)
                self.ended.add(target)
                self.server_said.append(codec.End(target))
                del self.open[target]


STEPS = st.one_of(
    st.tuples(st.sampled_from(["call", "open", "subscribe", "send", "publish", "credit", "input"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["result", "item", "event", "grant", "end"]), st.integers(0, 9)),
    st.tuples(st.just("write"), st.just(0)),
    st.tuples(st.just("deliver"), st.integers(0, 1)),
    st.tuples(st.just("deliver"), st.integers(0, 1)),
    st.tuples(st.just("cut"), st.just(0)),
)


def run(steps: list[tuple[str, int]], **limits: Any) -> World:
    world = World(**limits)
    world.settle()
    for kind, number in steps:
        match kind:
            case "cut":
                world.cut()
            case "write":
                world.write()
            case "deliver":
                world.deliver(to_server=bool(number))
            case "result" | "item" | "event" | "grant" | "end":
                world.answer(kind, number)
            case _:
                world.say(kind, number)
    world.settle()
    return world


def comparable(frames: list[Any]) -> list[Any]:
    return [json.loads(codec.encode(frame)) for frame in frames]


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=60), st.sampled_from([4096, 64]))
def test_whatever_breaks_both_sides_hear_all_that_was_said_once_and_in_order(
    steps: list[tuple[str, int]], messages: int
) -> None:
    world = run(steps, messages=messages)
    assert set(world.sessions) == {"s1"}
    assert comparable(world.heard_of_open()) == comparable(world.said_of_open())
    assert comparable(world.client_heard) == comparable(world.server_said)
    assert world.kept is not None
    assert world.state.streams == world.kept.streams
    assert world.state.inputs == world.kept.inputs


def conversation(cut_after: tuple[int, int] | None) -> World:
    """A talk of all kinds, of which every frame has one message; the link is cut once so many have arrived each way."""
    world = World()
    world.settle()
    steps = [
        ("call", 0), ("open", 3), ("subscribe", 0), ("send", 1), ("result", 0), ("item", 0), ("event", 1), ("grant", 0),
        ("input", 1), ("item", 0), ("credit", 1), ("publish", 2), ("call", 3), ("input", 2), ("item", 0), ("event", 1),
        ("result", 2), ("end", 0), ("end", 0),
    ]  # fmt: skip
    arrived = [0, 0]
    for kind, number in steps:
        world.say(kind, number) if kind in SAID else world.answer(kind, number)
        world.write()
        for way, wire in enumerate((world.to_server, world.to_client)):
            while wire:
                if cut_after is not None and arrived[way] == cut_after[way]:
                    cut_after = None
                    world.cut()
                    break
                arrived[way] += 1
                world.deliver(to_server=way == 0)
                world.write()
        if not world.client.is_open:
            world.settle()
    world.settle()
    return world


SAID = frozenset({"call", "open", "subscribe", "send", "publish", "credit", "input"})


def test_a_cut_at_any_message_of_either_direction_changes_nothing() -> None:
    whole = conversation(None)
    assert len(whole.client_heard) > 8
    assert len(whole.server_heard) > 6
    for to_server, to_client in itertools.product(range(16), range(16)):
        broken = conversation((to_server, to_client))
        assert comparable(broken.client_heard) == comparable(whole.client_heard), (to_server, to_client)
        assert comparable(broken.server_heard) == comparable(whole.server_heard), (to_server, to_client)


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_a_history_with_cuts_is_the_history_without(steps: list[tuple[str, int]]) -> None:
    """The same steps in the same order, first over links that break, then over one that does not."""
    calm: list[tuple[str, int]] = []
    for step in steps:  # without cuts everything said arrives at once, so the server has the same to answer
        if step[0] not in {"cut", "write", "deliver"}:
            calm += [step, ("cut", 0)]
    broken = World()
    whole = World()
    for world, breaks in ((broken, True), (whole, False)):
        world.settle()
        for kind, number in calm:
            if kind == "cut":
                if breaks:
                    world.write()
                    world.cut()
                world.settle()
            elif kind in {"result", "item", "event", "grant", "end"}:
                world.answer(kind, number)
            else:
                world.say(kind, number)
        world.settle()
    assert comparable(broken.server_heard) == comparable(whole.server_heard)
    assert comparable(broken.client_heard) == comparable(whole.client_heard)


def test_acknowledged_messages_are_kept_no_longer() -> None:
    world = World(messages=64)
    world.settle()
    for number in range(200):
        world.say("call", number)
        world.settle()
        world.answer("result", 0)
        world.settle()
    for state in (world.state, world.kept):
        assert state is not None
        assert state.replay is not None
        assert state.replay.sent == 200
        assert len(state.replay.kept()) <= 8  # an eighth of the limit


def test_who_never_acknowledges_is_cut_as_a_slow_reader_and_its_session_ends() -> None:
    world = World(messages=16)
    world.settle()
    assert world.kept is not None
    for _ in range(40):
        world.server.complain(Invalid("no"))
    (close,) = world.server.received('{"t":"ping","ts":1}')
    assert close.code == CloseCode.SLOW_READER
    assert "messages not acknowledged" in close.reason
    assert not world.server.can_resume


def test_a_client_that_does_not_ask_for_it_has_nothing_kept() -> None:
    world = World()
    world.server.received('{"t":"auth","v":1,"token":"t"}')
    world.server.authenticated(ANA)
    world.server.received('{"t":"call","id":1,"to":"a.b"}')
    world.server.lost("cut")
    assert not world.server.can_resume
    assert world.server.in_flight == 0


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        (1000, False),
        (1001, True),
        (1006, True),
        (CloseCode.GOING_AWAY, False),
        (CloseCode.SLOW_READER, False),
        (CloseCode.NO_ANSWER, True),
        (CloseCode.PROTOCOL, False),
        (CloseCode.RATE, False),
    ],
)
def test_how_the_link_ended_says_whether_the_session_goes_on(code: int, kept: bool) -> None:
    world = World()
    world.settle()
    world.say("call", 1)
    world.settle()
    world.server.lost("over", code)
    assert world.server.can_resume is kept
    assert world.server.in_flight == kept


def test_a_session_that_is_not_kept_is_replaced_and_the_client_knows_what_may_have_arrived() -> None:
    world = World()
    world.settle()
    world.say("call", 1)
    world.write()
    world.say("call", 2)
    world.kept = None
    world.cut()
    world.write()
    while world.client.ready is None:
        world.deliver(to_server=True)
        world.write()
        world.deliver(to_server=False)
    assert world.sessions == ["s1", "s2"]
    assert world.client.forgotten is not None
    assert [world.client.forgotten.may_have_arrived(number) for number in (1, 2)] == [True, False]
    assert world.client.calls == 0


def test_after_a_hand_over_the_old_link_has_no_say_any_more() -> None:
    world = World()
    world.settle()
    world.say("call", 1)
    world.settle()
    old, state = world.server, world.server.state
    old.hand_over()
    assert old.closed is not None
    assert old.closed.code == CloseCode.TAKEN_OVER
    assert old.received('{"t":"cancel","id":1}') == []
    assert state.in_flight == 1


def test_more_than_was_sent_cannot_be_acknowledged() -> None:
    replay = Replay(1000, 10)
    replay.put(b"x")
    with pytest.raises(ProtocolError, match="2 messages are acknowledged, of 1"):
        replay.acknowledge(2)
    replay.acknowledge(1)
    replay.acknowledge(0)  # an old one, overtaken by another
    assert replay.sent == 1
    assert not replay.can_resume(0)
