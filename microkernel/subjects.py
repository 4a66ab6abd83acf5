"""Publish and subscribe: which subscriptions match a subject. Sans-IO (hot: once an event).

Subjects are names joined by dots. In a pattern `*` stands for one name and a final `>` for one or more, as in NATS
(https://docs.nats.io/nats-concepts/subjects).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from microkernel.errors import Invalid

__all__ = ["Matches", "Member", "Subjects", "check_pattern", "check_subject", "covers", "next_in_turn"]

T = TypeVar("T")

MAX_LENGTH = 256
MAX_NAMES = 16
_NAME = re.compile(r"[A-Za-z0-9_\-:/@]+")


def check_subject(subject: str) -> tuple[str, ...]:
    """The names of a subject that something can be published on; raises `Invalid`."""
    return _split(subject, wildcards=False)


def check_pattern(pattern: str) -> tuple[str, ...]:
    """The names of a pattern that can be subscribed to; raises `Invalid`."""
    return _split(pattern, wildcards=True)


def covers(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    """Whether `wide` matches all that `narrow` matches; of a subject, whether `wide` matches it."""
    for place, name in enumerate(wide):
        if name == ">":
            return len(narrow) > place
        if place == len(narrow) or narrow[place] == ">" or name not in {"*", narrow[place]}:
            return False
    return len(wide) == len(narrow)


def _split(text: str, *, wildcards: bool) -> tuple[str, ...]:
    names = tuple(text.split("."))
    if len(text) > MAX_LENGTH or len(names) > MAX_NAMES:
        raise Invalid(f"a subject has at most {MAX_NAMES} names and {MAX_LENGTH} characters", field="subject")
    for place, name in enumerate(names):
        if wildcards and (name == "*" or (name == ">" and place == len(names) - 1)):
            continue
        if not _NAME.fullmatch(name):
            raise Invalid(f"'{text}' is no subject: '{name}' is not a name", field="subject")
    return names


_GroupKey = tuple[str | None, str]
"""Owner and name: two users may give their groups the same name."""


class Member(Generic[T]):
    """A subscriber; `served` is the turn in which it got its last event of a group."""

    __slots__ = ("group", "served", "subscriber")

    def __init__(self, subscriber: T, group: _GroupKey | None) -> None:
        self.subscriber = subscriber
        self.group = group
        self.served = 0


class Matches(Generic[T]):
    """Who gets an event: everyone in `everyone`, and one of each of `groups`."""

    __slots__ = ("everyone", "groups")

    def __init__(self, members: Iterator[Member[T]]) -> None:
        groups: dict[_GroupKey, list[Member[T]]] = {}
        everyone: list[T] = []
        for member in members:
            if member.group is None:
                everyone.append(member.subscriber)
            else:
                groups.setdefault(member.group, []).append(member)
        self.everyone = tuple(everyone)
        self.groups = tuple(tuple(each) for each in groups.values())


class _Node(Generic[T]):
    __slots__ = ("children", "members")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.members: dict[int, Member[T]] = {}


class Subjects(Generic[T]):
    """A trie of subscriptions; matching costs one step a name, however many subscriptions there are."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._ids = itertools.count(1)
        self._turns = itertools.count(1)
        self._patterns: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._patterns)

    def add(self, pattern: str, subscriber: T, group: str | None = None, owner: str | None = None) -> int:
        """Subscribe; of all of one `owner`'s `group` that match, each event goes to one. Returns an id."""
        names = check_pattern(pattern)
        node = self._root
        for name in names:
            node = node.children.setdefault(name, _Node())
        number = next(self._ids)
        node.members[number] = Member(subscriber, None if group is None else (owner, group))
        self._patterns[number] = names
        return number

    def remove(self, number: int) -> None:
        """Take a subscription back; unknown ids are fine."""
        names = self._patterns.pop(number, None)
        if names is None:
            return
        path = [self._root]
        for name in names:
            path.append(path[-1].children[name])
        del path[-1].members[number]
        for node, name in zip(reversed(path[:-1]), reversed(names), strict=True):
            child = node.children[name]
            if child.members or child.children:
                break
            del node.children[name]

    def matches(self, subject: str) -> Matches[T]:
        """Who is subscribed to `subject`. Raises `Invalid` for what is no subject."""
        return Matches(self._walk(self._root, check_subject(subject), 0))

    def choose(self, members: tuple[Member[T], ...], has_room: Callable[[T], bool] | None = None) -> T:
        """The member of a group whose turn it is: of those that have room, or of all if none has, the one that has
        waited longest; it goes to the end of the queue. Costs one step a member.

        A counter modulo the number of members would starve one of two that hear different subjects.
        """
        chosen = next_in_turn(members, has_room)
        chosen.served = next(self._turns)
        return chosen.subscriber

    def _walk(self, node: _Node[T], names: tuple[str, ...], place: int) -> Iterator[Member[T]]:
        if place == len(names):
            yield from node.members.values()
            return
        rest = node.children.get(">")
        if rest is not None:
            yield from rest.members.values()
        for name in (names[place], "*"):
            child = node.children.get(name)
            if child is not None:
                yield from self._walk(child, names, place + 1)


def next_in_turn(members: tuple[Member[T], ...], has_room: Callable[[T], bool] | None = None) -> Member[T]:
    """Whom `Subjects.choose` would choose; nobody's turn passes."""
    first: Member[T] | None = None
    for member in members:
        if (first is None or member.served < first.served) and (has_room is None or has_room(member.subscriber)):
            first = member
    return next_in_turn(members) if first is None else first
