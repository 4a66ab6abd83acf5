"""A small cache, with the few steps that most tests take."""

from __future__ import annotations

import pytest

from services.inference.cache.cache import Cache, Room
from services.inference.cache.table import Table

SPACE = b"model"


class Copies:
    """A storage that only notes what is copied where."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def copy(self, source: int, target: int) -> None:
        self.made.append((source, target))


class Driven(Cache):
    """A cache that is told what sequences do."""

    def write(self, table: Table, tokens: list[int]) -> Room:
        room = self.extend(table, table.length + len(tokens))
        if room is Room.GRANTED:
            self.advance(table, tokens)
        return room

    def run(self, tokens: list[int], owner: str = "a") -> Table:
        """A sequence that has computed its prompt."""
        table = self.admit(owner, SPACE, tokens)
        assert isinstance(table, Table)
        self.advance(table, tokens[table.length :])
        return table

    def leave(self, tokens: list[int], owner: str = "a") -> list[int]:
        """Compute a prompt and end; the pages it took."""
        table = self.run(tokens, owner)
        pages = list(table.pages)
        self.release(table)
        return pages

    def hit(self, tokens: list[int], owner: str = "a", space: bytes = SPACE) -> int:
        """How many tokens a prompt finds."""
        table = self.begin(owner, space, tokens)
        length = table.length
        self.release(table)
        return length

    def counts(self) -> tuple[int, int, int]:
        """Free, cached and held pages."""
        status = self.status()
        return status.free, status.cached, status.held


@pytest.fixture
def copies() -> Copies:
    return Copies()


@pytest.fixture
def cache(copies) -> Driven:
    return Driven(8, copies)


@pytest.fixture
def keeping_duplicates(copies) -> Driven:
    return Driven(8, copies, deduplicate=False)


@pytest.fixture
def counting(copies) -> Driven:
    """Its pages stand for what is elsewhere."""
    return Driven(8, copies, found_again=False)
