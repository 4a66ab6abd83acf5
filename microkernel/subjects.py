"""Publish and subscribe: which subscriptions match a subject. Sans-IO (hot: once an event).

Subjects are names joined by dots. In a pattern `*` stands for one name and a final `>` for one or more, as in NATS
(https://docs.nats.io/nats-concepts/subjects).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Generic, TypeVar

from microkernel.errors import Invalid

__all__ = ["Subjects", "check_pattern", "check_subject"]

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


class _Node(Generic[T]):
    __slots__ = ("children", "members")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.members: dict[int, tuple[str | None, T]] = {}


class _Group:
    __slots__ = ("members", "turn")

    def __init__(self) -> None:
        self.members = 0
        self.turn = 0


class Subjects(Generic[T]):
    """A trie of subscriptions; matching costs one step a name, however many subscriptions there are."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._ids = itertools.count(1)
        self._patterns: dict[int, tuple[str, ...]] = {}
        self._groups: dict[str, _Group] = {}

    def __len__(self) -> int:
        return len(self._patterns)

    def add(self, pattern: str, subscriber: T, group: str | None = None) -> int:
        """Subscribe; of all subscribers in one `group` that match, each event goes to one. Returns an id."""
        names = check_pattern(pattern)
        node = self._root
        for name in names:
            node = node.children.setdefault(name, _Node())
        number = next(self._ids)
        node.members[number] = (group, subscriber)
        if group is not None:
            self._groups.setdefault(group, _Group()).members += 1
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
        group, _ = path[-1].members.pop(number)
        if group is not None:
            self._leave(group)
        for node, name in zip(reversed(path[:-1]), reversed(names), strict=True):
            child = node.children[name]
            if child.members or child.children:
                break
            del node.children[name]

    def match(self, subject: str) -> list[T]:
        """All who get an event of `subject`: everyone outside of groups, and one of each group in turn."""
        found: list[T] = []
        groups: dict[str, list[T]] = {}
        for group, subscriber in self._walk(self._root, check_subject(subject), 0):
            if group is None:
                found.append(subscriber)
            else:
                groups.setdefault(group, []).append(subscriber)
        for group, members in groups.items():
            state = self._groups[group]
            found.append(members[state.turn % len(members)])
            state.turn += 1
        return found

    def _leave(self, group: str) -> None:
        state = self._groups[group]
        state.members -= 1
        if not state.members:
            del self._groups[group]

    def _walk(self, node: _Node[T], names: tuple[str, ...], place: int) -> Iterator[tuple[str | None, T]]:
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
