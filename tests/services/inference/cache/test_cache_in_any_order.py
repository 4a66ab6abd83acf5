"""The cache under calls in any order: what is read through a table is what was written for exactly its tokens.

The storage holds, for each position, a number that stands for all tokens up to there and their owner; so a page
that was found, shared or reused wrongly shows as a wrong number. The pool is small, and the prompts are much alike.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.inference.cache.cache import Cache, Room
from services.inference.cache.keys import PAGE, page_keys
from services.inference.cache.table import Pin, Table

COUNT = 24
SPACE = b"model"
BROKEN = -2

owners = st.sampled_from(["a", "b", "c"])
letters = st.integers(0, 1)
choices = st.integers(0, 99)  # of a table or pin: modulo how many there are
tokens = st.builds(
    lambda pages, letter, tail: [token for page in pages for token in [page] * PAGE] + [letter] * tail,
    st.lists(letters, max_size=4),
    letters,
    st.sampled_from([0, 1, PAGE // 2, PAGE - 1]),
)


class Numbers:
    """A storage of one number a position."""

    def __init__(self) -> None:
        self.pages = [[-1] * PAGE for _ in range(COUNT)]
        self._known: dict[object, int] = {}

    def copy(self, source: int, target: int) -> None:
        self.pages[target] = list(self.pages[source])

    def right(self, owner: str, tokens: list[int]) -> list[int]:
        """What positions hold that were computed for these tokens."""
        numbers, last = [], self._known.setdefault(owner, len(self._known))
        for token in tokens:
            last = self._known.setdefault((last, token), len(self._known))
            numbers.append(last)
        return numbers


class AnyOrder(RuleBasedStateMachine):
    steps = 0

    @initialize(deduplicate=st.booleans())
    def start(self, deduplicate):
        self.storage = Numbers()
        self.cache = Cache(COUNT, self.storage, deduplicate=deduplicate, on_evict=self.see_eviction)
        self.tables: list[tuple[Table, list[int]]] = []
        self.pins: list[tuple[Pin, set[bytes]]] = []
        self.quotas: dict[str, int | None] = {}
        self.content: dict[bytes, list[int]] = {}  # what a page of each key has to hold

    @precondition(lambda self: len(self.tables) < 7)
    @rule(owner=owners, prompt=tokens, mates=st.integers(1, 2))
    def begin(self, owner, prompt, mates):
        begun = [self.begin_one(owner, prompt) for _ in range(mates)]
        for table in begun:  # only now, so that they compute the same pages
            self.go_on(table, prompt[table.length :], 0)

    def begin_one(self, owner: str, prompt: list[int]) -> Table:
        known = self.known(owner, prompt)
        table = self.cache.begin(owner, SPACE, prompt)
        assert table.length == known
        self.tables.append((table, prompt[: table.length]))
        return table

    def known(self, owner: str, prompt: list[int]) -> int:
        """How many tokens of a prompt are cached, up to the first gap."""
        keys = page_keys(SPACE, owner, prompt[:-1])
        return PAGE * [*(self.cache._prefixes.find(key) is not None for key in keys), False].index(False)

    @precondition(lambda self: len(self.tables) < 8)
    @rule(owner=owners, prompt=tokens, most=st.none() | st.integers(0, COUNT))
    def admit(self, owner, prompt, most):
        known, before = self.known(owner, prompt), self.cache.status()
        table = self.cache.admit(owner, SPACE, prompt, most=most)
        after = self.cache.status()
        if isinstance(table, Room):
            assert after == before
            return
        assert (table.length, after.hits - before.hits) == (known, known)
        assert after.misses - before.misses == len(prompt) - known
        assert most is None or after.held <= most
        self.tables.append((table, prompt[:known]))
        self.go_on(table, prompt[known:], 0)

    @precondition(lambda self: self.tables)
    @rule(which=choices, more=tokens, spare=st.integers(0, 2 * PAGE))
    def write(self, which, more, spare):
        self.go_on(self.tables[which % len(self.tables)][0], more, spare)

    def go_on(self, table: Table, more: list[int], spare: int) -> None:
        written = next(written for known, written in self.tables if known is table)
        if self.extend(table, table.length + len(more) + spare) is Room.GRANTED:
            self.store(table, self.storage.right(table.owner, written + more)[len(written) :])
            written += more
            keys, right = page_keys(SPACE, table.owner, written), self.storage.right(table.owner, written)
            self.content.update({key: right[index * PAGE :][:PAGE] for index, key in enumerate(keys)})
            self.cache.advance(table, more)

    def extend(self, table: Table, length: int) -> Room:
        needed = -(-length // PAGE) - len(table.pages)
        tail = table.pages[table.length // PAGE] if table.length % PAGE else None
        if length > table.length and tail is not None:
            needed += self.holders()[tail] > 1 or self.cache._prefixes.at(tail) is not None
        needed = max(0, needed)
        before, pages = self.cache.status(), list(table.pages)
        account = before.owners.get(table.owner)
        used = 0 if account is None else account.used
        quota = self.quotas.get(table.owner)
        idle = self.cache._prefixes.idle(table.owner)
        room = self.cache.extend(table, length)
        if needed and quota is not None and used + needed - quota > idle:
            assert room is Room.OVER_QUOTA
        elif needed > before.free + before.evictable:
            assert room is Room.FULL
        else:
            assert room is Room.GRANTED
            assert not needed or quota is None or self.cache.status().owners[table.owner].used <= quota
        if room is not Room.GRANTED:
            assert (self.cache.status(), table.pages) == (before, pages)
        return room

    def store(self, table: Table, numbers: list[int]) -> None:
        for position, number in enumerate(numbers, table.length):
            page = table.pages[position // PAGE]
            assert self.holders()[page] == 1, "two tables may write one page"
            assert self.cache._prefixes.at(page) is None, "a page that can be found is written"
            self.storage.pages[page][position % PAGE] = number

    @precondition(lambda self: 0 < len(self.tables) < 8)
    @rule(which=choices)
    def fork(self, which):
        table, written = self.tables[which % len(self.tables)]
        self.tables.append((self.cache.fork(table), list(written)))

    @precondition(lambda self: self.tables)
    @rule(which=choices, back=st.integers(0, 3 * PAGE))
    def truncate(self, which, back):
        table, written = self.tables[which % len(self.tables)]
        length = max(0, len(written) - back)
        self.cache.truncate(table, length)
        del written[length:]

    @precondition(lambda self: self.tables)
    @rule(which=choices)
    def release(self, which):
        table, _ = self.tables.pop(which % len(self.tables))
        self.cache.release(table)

    @precondition(lambda self: self.tables)
    @rule(which=choices, more=tokens)
    def break_and_clear(self, which, more):
        table, _ = self.tables[which % len(self.tables)]
        if self.extend(table, table.length + len(more)) is Room.GRANTED:
            self.store(table, [BROKEN] * len(more))
            self.cache.advance(table, more)
        del self.tables[which % len(self.tables)]
        self.cache.clear(table)
        for _, keys in self.pins:
            keys.intersection_update(self.cache._prefixes._by_key)

    @rule(count=st.integers(0, 3))
    def evict(self, count):
        before = self.cache.status()
        assert self.cache.evict(count) == min(count, before.evictable)
        assert self.cache.status().free == before.free + min(count, before.evictable)

    def see_eviction(self, page: int, key: bytes, owner: str) -> None:
        assert self.storage.pages[page] == self.content[key]
        assert not any(page in table.pages for table, _ in self.tables)
        assert not any(key in keys for _, keys in self.pins)

    @precondition(lambda self: self.tables and len(self.pins) < 4)
    @rule(which=choices)
    def pin(self, which):
        table, _ = self.tables[which % len(self.tables)]
        pin = self.cache.pin(table)
        assert pin.nodes is not None
        self.pins.append((pin, {node.key for node in pin.nodes}))

    @precondition(lambda self: self.pins)
    @rule(which=choices)
    def unpin(self, which):
        pin, _ = self.pins.pop(which % len(self.pins))
        self.cache.unpin(pin)

    @rule(owner=owners, pages=st.none() | st.integers(0, COUNT // 3))
    def set_quota(self, owner, pages):
        self.cache.set_quota(owner, pages)
        self.quotas[owner] = pages

    def holders(self) -> Counter[int]:
        return Counter(page for table, _ in self.tables for page in table.pages)

    @invariant()
    def each_table_reads_what_was_written_for_its_tokens(self):
        AnyOrder.steps += 1
        for table, written in self.tables:
            assert table.tokens.tolist() == written
            read = [number for page in table.pages for number in self.storage.pages[page]]
            assert read[: len(written)] == self.storage.right(table.owner, written)
            assert table.keys == page_keys(SPACE, table.owner, written)

    @invariant()
    def what_can_be_found_is_what_its_key_says(self):
        for key, node in self.cache._prefixes._by_key.items():
            assert self.storage.pages[node.page] == self.content[key]

    @invariant()
    def each_page_is_free_or_cached_or_held(self):
        status, holders, pages = self.cache.status(), self.holders(), self.cache._pages
        assert [pages.references(page) for page in range(COUNT)] == [holders[page] for page in range(COUNT)]
        free, held, found = set(pages._free), set(holders), set(self.cache._prefixes._by_page)
        assert free.isdisjoint(held | found)
        assert len(free) == len(pages._free)
        assert free | held | found == set(range(COUNT))
        assert (status.free, status.held, status.cached) == (len(free), len(held), len(found - held))

    @invariant()
    def the_accounts_add_up_and_quotas_are_kept_by_what_is_cached(self):
        status = self.cache.status()
        assert sum(owner.used for owner in status.owners.values()) == COUNT - status.free
        for name, owner in status.owners.items():
            mine = {page for table, _ in self.tables if table.owner == name for page in table.pages}
            mine |= {node.page for node in self.cache._prefixes._by_key.values() if node.owner == name}
            assert owner.used == len(mine)
            assert owner.quota == self.quotas.get(name)
            assert owner.quota is None or owner.used <= owner.quota or not self.cache._prefixes.idle(name)

    @invariant()
    def what_nobody_needs_can_be_evicted_and_nothing_else_children_first(self):
        tree, holders = self.cache._prefixes, self.holders()
        pinned = Counter(node for pin, _ in self.pins for node in pin.nodes)
        order = list(tree._idle)
        for node in tree._by_key.values():
            claimed = sum(child.claims > 0 for child in node.children)
            assert node.claims == (holders[node.page] > 0) + pinned[node] + claimed
            assert (node.page in tree._idle) == (node.claims == 0)
            if not node.claims:
                assert all(order.index(child.page) < order.index(node.page) for child in node.children)
        for owner, mine in tree._idle_of.items():
            assert list(mine) == [page for page in order if tree._idle[page].owner == owner]
        assert sum(map(len, tree._idle_of.values())) == len(order)

    @invariant()
    def what_is_pinned_can_be_found(self):
        for _, keys in self.pins:
            assert keys <= self.cache._prefixes._by_key.keys()

    def teardown(self):
        if not hasattr(self, "cache"):
            return
        while self.tables:
            self.release(0)
        while self.pins:
            self.unpin(0)
        status = self.cache.status()
        assert status.held == 0
        assert status.cached == status.evictable
        assert self.cache.evict(COUNT) == status.cached
        assert self.cache.status().free == COUNT


def run_any_order(examples: int, steps: int) -> int:
    """How many steps were taken."""
    before = AnyOrder.steps
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    return AnyOrder.steps - before


def test_every_table_reads_its_own_tokens_whatever_the_order_of_calls():
    run_any_order(examples=150, steps=40)


@pytest.mark.slow
def test_every_table_reads_its_own_tokens_after_ten_thousand_calls():
    assert run_any_order(examples=1000, steps=100) >= 10_000
