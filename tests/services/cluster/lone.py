"""One membership whose peers are played by the test."""

from __future__ import annotations

import random
from typing import Any, TypeVar

from services.cluster.membership.actions import Action, Changed, Fenced, Probe
from services.cluster.membership.membership import Membership
from services.cluster.membership.rules import Rules
from services.cluster.messages import Card, Gossip, Mark, MemberState, Summary, Update

RULES = Rules()

A = TypeVar("A")


def update(node: str, incarnation: int = 1, state: MemberState = MemberState.ALIVE, **fields: Any) -> Update:
    fields = {"life": incarnation if state.over else 1, "address": f"at-{node}", **fields}
    return Update(node=node, incarnation=incarnation, state=state, **fields)


def gossip(source: str, *updates: Update, **fields: Any) -> Gossip:
    """What a member says that reaches as many as there are in any of these tests, unless told otherwise."""
    return Gossip(**{"source": source, "incarnation": 1, "life": 1, "living": 100, "updates": updates, **fields})


class Lone:
    """The node `name`; `actions` are all that it asked for since the last `take`."""

    def __init__(
        self, *others: str, name: str = "me", incarnation: int = 1, rules: Rules = RULES, **fields: Any
    ) -> None:
        self.now = 100.0
        self.actions: list[Action] = []
        self.membership = Membership(
            name, incarnation, f"at-{name}", now=self.now, chance=random.Random(0), rules=rules, **fields
        )
        self.membership._beliefs.rumours.drop(name)
        if others:
            self.do(self.membership.joined(gossip(others[0], *map(update, others)), self.now))
            self.actions.clear()

    def do(self, actions: list[Action]) -> list[Action]:
        self.actions += actions
        return actions

    def hear(self, source: str, *updates: Update, **fields: Any) -> list[Action]:
        return self.do(self.membership.heard(gossip(source, *updates, **fields), self.now))

    def compare(self, source: str, *marks: Mark, **fields: Any) -> Gossip:
        said = gossip(source, update(source), **fields)
        answer, actions = self.membership.compared(Summary(gossip=said, marks=marks), self.now)
        self.do(actions)
        return answer

    def wait(self, seconds: float, *, silent: tuple[str, ...] = (), mute: bool = False) -> None:
        """Let so much time pass; all but the `silent` answer each probe at once, and nobody does for a `mute` one."""
        until = self.now + seconds
        while self.membership.due() <= until:
            self.now = max(self.now, self.membership.due())
            for action in self.do(self.membership.tick(self.now)):
                if isinstance(action, Probe) and not mute and action.node not in silent:
                    self.answer(action.node)
        self.now = until

    def answer(self, node: str, rtt: float | None = 0.001, **fields: Any) -> list[Action]:
        member = self.membership.member(node)
        assert member is not None
        said = gossip(node, **{"incarnation": member.incarnation, "life": member.life, **fields})
        return self.do(self.membership.answered(node, said.incarnation, rtt, self.now, said))

    def take(self, kind: type[A]) -> list[A]:
        """The actions of a kind so far, which are forgotten."""
        taken = [each for each in self.actions if isinstance(each, kind)]
        self.actions.clear()
        return taken

    def changes(self) -> list[tuple[str, MemberState]]:
        """Who became what, this node apart."""
        return [(each.member.node, each.member.state) for each in self.take(Changed) if each.member.node != "me"]

    def fenced(self) -> list[Fenced]:
        return self.take(Fenced)

    def state(self, node: str) -> MemberState | None:
        member = self.membership.member(node)
        return None if member is None else member.state

    def told(self, node: str = "") -> dict[str, Update]:
        """What goes along with the next message to a node."""
        return {each.node: each for each in self.membership.gossip_to(node).updates}


def card(edition: int, *services: str) -> Card:
    return Card(edition=edition, services=services)
