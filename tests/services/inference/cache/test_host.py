"""The host tier: what a device forgets comes back with the same bits, within a limit, and from its first page on."""

from __future__ import annotations

import pytest
import torch
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

from formats.checkpoint.architecture import DecoderConfig
from microkernel.errors import Invalid
from services.inference.cache.cache import Cache, Room
from services.inference.cache.host import HostTier
from services.inference.cache.keys import PAGE, page_keys
from services.inference.eager.pages import TensorPages

SPACE = b"model"
DEVICE_PAGES = 6
CONFIG = DecoderConfig(
    architecture="llama",
    vocab_size=16,
    hidden_size=8,
    ffn_size=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    context_length=256,
    norm_eps=1e-5,
    rope_theta=1e4,
)


def storage(pages: int = DEVICE_PAGES, *, by_layer: bool = True, dtype: torch.dtype = torch.bfloat16) -> TensorPages:
    """Pages of a CPU in the place of a device's: the copies are real."""
    return TensorPages(CONFIG, pages, torch.device("cpu"), dtype, by_layer=by_layer)


def content(key: bytes, size: int) -> bytes:
    """What a page of this key holds."""
    return (key * (size // len(key) + 1))[:size]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def tier(pages: TensorPages, count: int) -> HostTier:
    return HostTier(pages, count * pages.page_bytes + pages.page_bytes // 2, pinned=False)


def keep(host: HostTier, pages: TensorPages, *numbers: int) -> None:
    for number in numbers:
        pages.write(0, content(key(number), pages.page_bytes))
        host.keep(key(number), 0)


def kept(host: HostTier, *numbers: int) -> list[bool]:
    return [host.find([key(number)]) == 1 for number in numbers]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("by_layer", [True, False])
def test_a_page_that_was_lowered_and_lifted_has_the_same_bits(by_layer, dtype):
    pages = storage(by_layer=by_layer, dtype=dtype)
    host = tier(pages, 4)
    keep(host, pages, 1, 2, 3)
    host.lift([key(1), key(2), key(3)], [4, 0, 5])
    for number, page in ((1, 4), (2, 0), (3, 5)):
        assert pages.read(page) == content(key(number), pages.page_bytes)


def test_over_the_limit_what_was_used_longest_ago_goes():
    pages = storage()
    host = tier(pages, 3)
    keep(host, pages, 1, 2, 3)
    host.lift([key(1)], [1])
    keep(host, pages, 4)
    assert kept(host, 1, 2, 3, 4) == [True, False, True, True]
    assert host.count == 3
    assert host.nbytes == 3 * pages.page_bytes


def test_a_page_that_is_here_is_not_copied_again():
    pages = storage()
    host = tier(pages, 2)
    keep(host, pages, 1, 2)
    pages.clear(0)
    host.keep(key(1), 0)
    keep(host, pages, 3)
    assert kept(host, 1, 2, 3) == [True, False, True]
    host.lift([key(1)], [1])
    assert pages.read(1) == content(key(1), pages.page_bytes)


def test_the_beginning_of_a_prefix_outlives_its_end():
    pages = storage()
    host = tier(pages, 3)
    keep(host, pages, 3, 2, 1)  # as a cache forgets them: the end first
    host.lift([key(1), key(2), key(3)], [1, 2, 3])
    keep(host, pages, 9)
    assert host.find([key(1), key(2), key(3)]) == 2


def test_a_gap_ends_what_is_found():
    pages = storage()
    host = tier(pages, 4)
    keep(host, pages, 1, 2, 4)
    assert host.find([key(number) for number in (1, 2, 3, 4)]) == 2


def test_what_was_forgotten_is_not_found_and_its_memory_is_used_again():
    pages = storage()
    host = tier(pages, 2)
    keep(host, pages, 1, 2)
    host.forget()
    assert (host.count, host.nbytes) == (0, 2 * pages.page_bytes)
    keep(host, pages, 3, 4)
    assert kept(host, 1, 3, 4) == [False, True, True]
    assert host.nbytes == 2 * pages.page_bytes


def test_a_limit_below_a_page_keeps_nothing_and_a_negative_one_is_refused():
    pages = storage()
    host = HostTier(pages, pages.page_bytes - 1, pinned=False)
    keep(host, pages, 1)
    assert (host.count, host.nbytes) == (0, 0)
    with pytest.raises(Invalid, match="-1"):
        HostTier(pages, -1, pinned=False)


def test_memory_is_taken_in_slabs_as_it_is_needed(monkeypatch):
    pages = storage()
    monkeypatch.setattr("services.inference.cache.host.SLAB", 2 * pages.page_bytes)
    host = tier(pages, 5)
    taken = []
    for number in range(7):
        keep(host, pages, number)
        taken.append(host.nbytes // pages.page_bytes)
    assert taken == [2, 2, 4, 4, 5, 5, 5]


def test_where_memory_is_refused_what_there_is_has_to_do(monkeypatch, caplog):
    pages = storage()
    monkeypatch.setattr("services.inference.cache.host.SLAB", 2 * pages.page_bytes)
    host = tier(pages, 6)
    keep(host, pages, 1, 2)

    def refuse(*shape, **options):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    for number in (3, 4):
        host.keep(key(number), 0)
    monkeypatch.undo()
    assert kept(host, 1, 2, 3, 4) == [False, False, True, True]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


class CacheOverHost(RuleBasedStateMachine):
    """Sequences over few pages, with a host tier below: each page has the content of its key, always."""

    @initialize(room=st.integers(0, 12))
    def start(self, room: int) -> None:
        self.pages = storage()
        self.host = tier(self.pages, room)
        self.room = room
        self.cache = Cache(DEVICE_PAGES, self.pages, on_evict=lambda page, key, _: self.host.keep(key, page))
        self.tables: list = []
        self.parents: dict[bytes, bytes | None] = {}

    @rule(turns=st.lists(st.integers(0, 1), min_size=1, max_size=5), owner=st.sampled_from("ab"))
    def run(self, turns: list[int], owner: str) -> None:
        tokens = [token for turn in turns for token in [turn] * PAGE] + [9]
        table = self.cache.begin(owner, SPACE, tokens)
        if self.cache.extend(table, len(tokens)) is not Room.GRANTED:
            self.cache.release(table)
            return
        keys = page_keys(SPACE, owner, tokens[:-1])
        for place, one in enumerate(keys):
            self.parents[one] = keys[place - 1] if place else None
        start = len(table.nodes)
        lifted = self.host.find(keys[start:])
        self.host.lift(keys[start : start + lifted], table.pages[start : start + lifted])
        for place in range(start + lifted, len(keys)):  # what was not found is computed
            self.pages.write(table.pages[place], content(keys[place], self.pages.page_bytes))
        self.cache.advance(table, tokens[table.length : -1])
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(choice=st.integers(0, 100))
    def leave(self, choice: int) -> None:
        self.cache.release(self.tables.pop(choice % len(self.tables)))

    @rule(count=st.integers(1, 6))
    def evict(self, count: int) -> None:
        self.cache.evict(count)

    @rule(owner=st.sampled_from("ab"), pages=st.sampled_from((None, 1, 3)))
    def quota(self, owner: str, pages: int | None) -> None:
        self.cache.set_quota(owner, pages)

    @rule()
    def forget(self) -> None:
        self.host.forget()
        for table in self.tables:  # as the engine does: what was found by broken numbers goes as a whole
            self.cache.clear(table)
        self.tables.clear()
        self.cache.evict(DEVICE_PAGES)
        self.host.forget()

    @invariant()
    def each_page_has_the_content_of_its_key(self) -> None:
        for table in getattr(self, "tables", ()):
            for one, page in zip(table.keys, table.pages, strict=False):
                assert self.pages.read(page) == content(one, self.pages.page_bytes)

    @invariant()
    def the_limit_is_kept(self) -> None:
        if hasattr(self, "host"):
            assert self.host.count <= self.room
            assert self.host.nbytes <= self.room * self.pages.page_bytes

    @invariant()
    def nothing_is_kept_that_cannot_be_found(self) -> None:
        """What a kept page stands on is kept as well, or still on the device."""
        if not hasattr(self, "host"):
            return
        for one in self.host._places:
            parent = self.parents[one]
            while parent is not None:
                assert self.host.find([parent]) or self.cache._prefixes.find(parent) is not None
                parent = self.parents[parent]


def test_pages_that_come_and_go_keep_their_content_and_can_be_found():
    run_state_machine_as_test(
        CacheOverHost,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_pages_of_a_gpu_are_lowered_and_lifted_without_waiting_and_have_the_same_bits():
    pages = TensorPages(CONFIG, 64, torch.device("cuda"), torch.bfloat16, by_layer=True)
    host = HostTier(pages, 64 * pages.page_bytes, pinned=True)
    before = []
    for page in range(32):
        pages.write(page, content(key(page), pages.page_bytes))
        before.append(pages.read(page))
    host.keep(key(99), 0)  # the slab is pinned now
    torch.cuda.set_sync_debug_mode("error")
    try:
        for page in range(32):
            host.keep(key(page), page)
            pages.clear(page)
        host.lift([key(page) for page in range(32)], list(range(32, 64)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [pages.read(page) for page in range(32, 64)] == before
