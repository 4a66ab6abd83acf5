"""Whatever comes in whatever order, every answer is what its request gets alone, and no page is lost or shared wrongly.

Requests of three owners with colliding prompts join, fork, rest, are paused, swapped out, saved, restored, leave and
finish while quotas change, caches are dropped, pages run out, guesses are made, and the engine is replaced by another
that finds what was saved on disk. On the kernels' decoder, whose bits do not depend on any of that.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

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

from microkernel.errors import Overloaded
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.engine.context import Context
from services.inference.engine.engine import Engine, Request
from services.inference.engine.proposers import PromptLookup
from services.inference.engine.sampler import ResolvedSampling

OWNERS = ("ann", "bob", "eve")
PAGES = 16
LENGTH = 192  # tokens of a context: 12 pages, so that there is something to take away
BEGINNINGS = [[(start + 3 * place) % 250 for place in range(90)] for start in (0, 0, 40)]
PARAMS = (
    ResolvedSampling(temperature=0.0),
    ResolvedSampling(temperature=1.3, seed=7),
    ResolvedSampling(temperature=0.9, top_p=0.8, frequency_penalty=0.5, seed=8),
)

requests = st.builds(
    lambda beginning, length, last, tokens, params, owner: (
        (*BEGINNINGS[beginning][:length], last),
        tokens,
        PARAMS[params],
        OWNERS[owner],
    ),
    beginning=st.integers(0, 2),
    length=st.integers(0, 90),
    last=st.integers(0, 5),
    tokens=st.integers(1, 80),
    params=st.integers(0, 2),
    owner=st.integers(0, 2),
)


class EngineInAnyOrder(RuleBasedStateMachine):
    """`decoder` is set by the test."""

    decoder = None
    expected: dict = {}

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.numbers = iter(range(1_000_000))
        self.asked: dict[int, tuple] = {}
        self.given: dict[int, list[int]] = {}
        self.held: set[int] = set()
        self.limited: set[int] = set()
        self.quotas: dict[str, int | None] = {}
        self.contexts: list[tuple[tuple, list[int], Context]] = []

    @initialize(budget=st.sampled_from((1, 5, 16, 23, 64, 512)), batch=st.integers(2, 8), guesses=st.booleans())
    def start(self, budget: int, batch: int, guesses: bool) -> None:
        self.budget, self.batch, self.guesses = budget, batch, guesses
        self.saved = SavedPages(Path(self.folder.name), 1 << 24)
        self.ledger = Ledger()
        self._new_engine()

    def _new_engine(self) -> None:
        page = self.page_bytes = self.decoder.storage(1).page_bytes
        self.engine = Engine(
            self.decoder,
            max_batch=self.batch,
            token_budget=self.budget,
            max_length=LENGTH,
            cache_bytes=PAGES * page,
            saved=self.saved,
            proposer=PromptLookup() if self.guesses else None,
            ledger=self.ledger,
        )

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for owner in OWNERS:
            self.engine.set_quota(owner, None)
        self.ledger.set_limits({}, None)
        self.engine.relief.admit(True)
        for number in tuple(self.asked):
            self.engine.hold(number, held=False)
            self.engine.pause(number, paused=False)
        for _ in range(5000):
            if self.engine.idle:
                break
            self.step(1)
        assert not self.asked, "all that was asked has come to an end"
        status = self.engine.pages
        assert status.held == 0
        assert self.engine.relief.resize(PAGES) == PAGES
        assert self.engine.pages.free + self.engine.pages.cached == PAGES
        self.engine.relief.close()
        assert not any(self.ledger.used(owner) for owner in OWNERS)
        self.saved.close()
        self.folder.cleanup()

    @rule(several=st.lists(requests, min_size=1, max_size=4))
    def ask(self, several: list[tuple]) -> None:
        for request in several:
            number = next(self.numbers)
            prompt, tokens, params, owner = request
            self.asked[number], self.given[number] = request, []
            self.engine.add(Request(id=number, prompt=prompt, max_tokens=tokens, params=params, owner=owner))

    @rule(request=requests, count=st.integers(2, 4))
    def ask_for_several_answers(self, request: tuple, count: int) -> None:
        prompt, tokens, _, owner = request
        first = None
        for place in range(count):
            number = next(self.numbers)
            params = PARAMS[place % len(PARAMS)]
            self.asked[number], self.given[number] = (prompt, tokens, params, owner), []
            self.engine.add(
                Request(id=number, prompt=prompt, max_tokens=tokens, params=params, owner=owner, fork_of=first)
            )
            first = number if first is None else first

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            for output in self.engine.step():
                if output.error is not None:
                    assert isinstance(output.error, Overloaded)
                    assert output.id in self.limited, "only a quota refuses here"
                    self._end(output.id, whole=False)
                    continue
                self.given[output.id].append(output.token)
                if output.finish_reason is not None:
                    self._end(output.id, whole=True)

    @precondition(lambda self: self.asked)
    @rule(choice=st.integers(0, 100))
    def cancel(self, choice: int) -> None:
        number = sorted(self.asked)[choice % len(self.asked)]
        assert self.engine.cancel(number)
        self._end(number, whole=False)

    @precondition(lambda self: self.asked)
    @rule(choice=st.integers(0, 100), held=st.booleans())
    def hold(self, choice: int, held: bool) -> None:
        self.engine.hold(sorted(self.asked)[choice % len(self.asked)], held=held)

    @precondition(lambda self: self.asked)
    @rule(choice=st.integers(0, 100), paused=st.booleans(), swapped=st.booleans())
    def pause(self, choice: int, paused: bool, swapped: bool) -> None:
        number = sorted(self.asked)[choice % len(self.asked)]
        assert self.engine.pause(number, paused=paused) or self.is_refused(number)
        if swapped:
            self.engine.swap_out(number)

    @precondition(lambda self: self.asked)
    @rule(choice=st.integers(0, 100), moved=st.booleans())
    def save_and_restore(self, choice: int, moved: bool) -> None:
        """Under another number, which goes on beside the first or in its place."""
        number, other = sorted(self.asked)[choice % len(self.asked)], next(self.numbers)
        if self.is_refused(number):
            return
        context = Context.load(self.engine.save(number).dump())
        self.asked[other], self.given[other] = self.asked[number], list(self.given[number])
        if moved:
            assert self.engine.cancel(number)
            self._end(number, whole=False)
        self.engine.restore(context, other)

    @rule(request=requests, steps=st.integers(0, 4))
    def ask_and_save(self, request: tuple, steps: int) -> None:
        """While it waits or its prompt is read, or soon after."""
        self.ask([request])
        self.quotas_are_known()
        number = max(self.asked)
        self.step(steps)
        if number in self.asked and not self.is_refused(number):
            context = Context.load(self.engine.save(number).dump())
            self.contexts.append((request, list(self.given[number]), context))

    @precondition(lambda self: self.contexts)
    @rule(choice=st.integers(0, 100), elsewhere=st.booleans())
    def restore(self, choice: int, elsewhere: bool) -> None:
        """Long afterwards, it may be, when what comes behind it is on disk."""
        if elsewhere:
            self.replace()
        request, given, context = self.contexts[choice % len(self.contexts)]
        number = next(self.numbers)
        self.asked[number], self.given[number] = request, list(given)
        self.engine.restore(context, number)

    @rule(owner=st.sampled_from(OWNERS), pages=st.sampled_from((None, 3, 5, 7, 9)))
    def quota(self, owner: str, pages: int | None) -> None:
        self.quotas[owner] = pages
        self.engine.set_quota(owner, pages)

    @rule(quotas=st.fixed_dictionaries({owner: st.sampled_from((None, 3, 5, 7, 9)) for owner in OWNERS}))
    def device_quotas(self, quotas: dict[str, int | None]) -> None:
        page = self.page_bytes
        limits = {owner: None if pages is None else pages * page + 1 for owner, pages in quotas.items()}
        self.ledger.set_limits(limits, None)

    @rule(pages=st.integers(0, PAGES))
    def shrink(self, pages: int) -> None:
        self.engine.relief.shrink(pages)
        assert self.engine.relief.resident_bytes == (PAGES - self.spare()) * self.page_bytes

    @rule(pages=st.integers(0, PAGES + 2))
    def resize(self, pages: int) -> None:
        limit = self.engine.relief.resize(pages)
        assert limit == max(min(pages, PAGES), LENGTH // 16, self.engine.pages.held)

    @rule(admitting=st.booleans())
    def admit(self, admitting: bool) -> None:
        self.engine.relief.admit(admitting)

    @rule()
    def move_cold(self) -> None:
        self.engine.relief.move_cold()

    @rule()
    def pause_cheapest(self) -> None:
        running = self.engine.running
        assert self.engine.relief.pause_cheapest() == (running > 1)
        assert self.engine.running == running - (running > 1)

    def is_refused(self, number: int) -> bool:
        """Whether the next step says so."""
        return any(output.id == number for output in self.engine._refused)

    def spare(self) -> int:
        """Pages that are on nobody's account."""
        return PAGES - self.engine.pages.held - self.engine.pages.cached

    @precondition(lambda self: not self.asked)
    @rule()
    def forget(self) -> None:
        self.engine.release_cache()

    @rule()
    def replace(self) -> None:
        """As after a crash: what runs is asked again, and may find on disk what it had."""
        self.saved.flush()
        self.engine.relief.close()
        self._new_engine()
        self.quotas.clear()
        for number, (prompt, tokens, params, owner) in self.asked.items():
            self.given[number] = []
            self.engine.add(Request(id=number, prompt=prompt, max_tokens=tokens, params=params, owner=owner))

    @invariant()
    def quotas_are_known(self) -> None:
        """Who had one since it asked: what refuses is found out at once, and told by the next step."""
        for number, (_, _, _, owner) in self.asked.items():
            if (self.quotas.get(owner), self.ledger.limit(owner)) != (None, None):
                self.limited.add(number)

    @invariant()
    def pages_add_up(self) -> None:
        if hasattr(self, "engine"):
            status = self.engine.pages
            assert status.free + status.cached + status.held == status.pages <= PAGES
            assert sum(account.used for account in status.owners.values()) == status.cached + status.held
            for owner in OWNERS:
                account = status.owners.get(owner)
                assert self.ledger.used(owner) == (0 if account is None else account.used * self.page_bytes)

    def _end(self, number: int, *, whole: bool) -> None:
        request = self.asked.pop(number)
        given, expected = self.given.pop(number), self._alone(request)
        assert given == (expected if whole else expected[: len(given)])

    def _alone(self, request: tuple) -> list[int]:
        if request not in self.expected:
            prompt, tokens, params, _ = request
            engine = Engine(self.decoder, max_length=LENGTH)
            engine.add(Request(id=0, prompt=prompt, max_tokens=tokens, params=params))
            answer = []
            while not engine.idle:
                answer += [output.token for output in engine.step()]
            self.expected[request] = answer
        return self.expected[request]


@pytest.fixture
def machine(native_decoder, monkeypatch):
    monkeypatch.setattr("services.inference.engine.contexts.LONG", 32)
    monkeypatch.setattr("services.inference.engine.contexts.WORTH", 1)
    monkeypatch.setattr(EngineInAnyOrder, "decoder", native_decoder)
    return EngineInAnyOrder


def run(machine, *, examples: int, steps: int) -> None:
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_every_answer_is_what_its_request_gets_alone(machine):
    run(machine, examples=15, steps=40)


@pytest.mark.slow
def test_every_answer_is_what_its_request_gets_alone_in_ten_thousand_steps(machine):
    run(machine, examples=200, steps=50)
