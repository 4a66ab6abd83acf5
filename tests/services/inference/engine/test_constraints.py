"""What a request demands of its tokens: masks, bans and biases, each for its own row only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from constrained_writing import Letters
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.inference.engine.constraints import Constraint, _added_by, constrain
from services.inference.engine.sampler import NO_TOKEN, ResolvedSampling, SamplerState, sample
from services.inference.grammar.compiler import GrammarCompiler
from services.inference.messages import Grammar

VOCABULARY = 300  # more logits than tokens
GREEDY = ResolvedSampling(temperature=0.0)


@pytest.fixture(scope="module")
def compiler():
    made = GrammarCompiler(Letters(), VOCABULARY)
    yield made
    made.close()


def state(constraint: Constraint | None, params: ResolvedSampling = GREEDY) -> SamplerState:
    return SamplerState(params, [1, 2], VOCABULARY, constraint=constraint)


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


PARAMS = st.builds(
    ResolvedSampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32),
)


KINDS = st.sampled_from(["grammar", "bias", "min_tokens", "dead"])


@given(
    free=st.lists(PARAMS, min_size=1, max_size=9),
    bound=st.lists(st.tuples(PARAMS, KINDS), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_what_mates_demand_changes_no_token(compiler, free, bound, order, seed):
    grammar = compiler.compile_now(Grammar(regex="[a-z]{3,}"))
    kinds = {
        "grammar": {"grammar": grammar, "stop_tokens": (0,)},
        "bias": {"logit_bias": ((5, 4.0), (6, -100.0))},
        "min_tokens": {"min_tokens": 3, "stop_tokens": (7, 8)},
        "dead": {"grammar": grammar, "answer": (0x30,)},
    }
    rows = [(params, None) for params in free] + bound
    order.shuffle(rows)

    def made(row: int) -> SamplerState:
        params, kind = rows[row]
        return state(None if kind is None else Constraint(**kinds[kind]), params)

    together = [made(row) for row in range(len(rows))]
    steps = [noise(len(rows), seed + step) for step in range(4)]
    batched = [sample(logits, together).tolist() for logits in steps]
    for row in range(len(rows)):
        alone = made(row)
        assert [int(sample(logits[row : row + 1], [alone])) for logits in steps] == [tokens[row] for tokens in batched]


def test_rows_that_demand_nothing_keep_their_bits(compiler):
    grammar = compiler.compile_now(Grammar(regex="a"))
    logits = noise(4)
    before = logits.clone()
    changed = constrain(logits, [None, Constraint(grammar=grammar), None, Constraint(logit_bias=((1, 2.0),))])
    assert torch.equal(logits, before)
    assert torch.equal(changed[[0, 2]], before[[0, 2]])
    assert torch.isfinite(changed[1]).nonzero().flatten().tolist() == [ord("a")]
    assert changed[3, 1] == before[3, 1] + 2.0


def test_an_answer_may_stop_exactly_where_its_grammar_is_satisfied(compiler):
    grammar = compiler.compile_now(Grammar(regex="(ab)+"))
    stops = (0, 299, ord("b"))  # one of them a token that the grammar could use
    for answer, expected in (("", {ord("a")}), ("a", set()), ("ab", {ord("a"), *stops})):
        constraint = Constraint(grammar=grammar, stop_tokens=stops, answer=list(answer.encode()))
        row = constrain(torch.zeros(1, VOCABULARY), [constraint])[0]
        assert set(torch.isfinite(row).nonzero().flatten().tolist()) == expected
        assert (constraint.failure is not None) == (not expected)


def test_an_answer_that_is_to_be_empty_needs_a_token_to_end_it(compiler):
    grammar = compiler.compile_now(Grammar(regex=""))
    ended, stuck = (state(Constraint(grammar=grammar, stop_tokens=stops)) for stops in ((7,), ()))
    assert sample(noise(2), [ended, stuck]).tolist() == [7, NO_TOKEN]
    assert "no token" in stuck.constraint.failure.message


def test_an_answer_whose_grammar_allows_nothing_fails_and_its_mates_are_served(compiler):
    grammar = compiler.compile_now(Grammar(regex="ab"))
    dead = state(Constraint(grammar=grammar, answer=[ord("x")]))
    logits = noise(3)
    tokens = sample(logits, [state(None), dead, state(None)]).tolist()
    assert tokens[1] == NO_TOKEN
    assert isinstance(dead.constraint.failure, Invalid)
    assert [tokens[0], tokens[2]] == logits[[0, 2]].argmax(-1).tolist()


def test_no_answer_stops_before_its_min_tokens(compiler):
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 0] = 9.0
    one = state(Constraint(stop_tokens=(0,), min_tokens=3))
    assert [int(sample(logits, [one])) == 0 for _ in range(4)] == [False, False, False, True]


def test_min_tokens_give_way_where_the_grammar_lets_only_the_end_follow(compiler):
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 0] = 9.0
    one = state(Constraint(grammar=compiler.compile_now(Grammar(regex="a{1,2}")), stop_tokens=(0,), min_tokens=9))
    assert [int(sample(logits, [one])) for _ in range(3)] == [ord("a"), ord("a"), 0]


def test_a_grammar_says_when_the_answer_is_complete_so_that_no_stop_token_is_needed(compiler):
    one = state(Constraint(grammar=compiler.compile_now(Grammar(choice=["ab"]))))
    seen = []
    while not one.complete:
        seen.append(int(sample(noise(1), [one])))
    assert bytes(seen) == b"ab"


def test_a_bias_is_added_to_the_logits_before_the_temperature():
    logits = torch.zeros(1, VOCABULARY)
    counts = np.zeros(VOCABULARY, dtype=int)
    one = state(Constraint(logit_bias=((3, math.log(VOCABULARY) * 2),)), ResolvedSampling(temperature=2.0, seed=5))
    for _ in range(2000):
        counts[int(sample(logits, [one]))] += 1
    assert 0.44 < counts[3] / 2000 < 0.56  # as likely as the 299 others together


def test_a_broken_row_stays_broken_where_a_grammar_forbids_the_token(compiler):
    logits = noise(1)
    logits[0, ord("x")] = math.nan
    one = state(Constraint(grammar=compiler.compile_now(Grammar(regex="a"))))
    assert int(sample(logits, [one])) == NO_TOKEN
    assert one.constraint.failure is None


@pytest.mark.parametrize("count", [1, 5, 40])
def test_bits_become_what_is_added(count):
    bits = np.random.default_rng(count).integers(0, 256, (3, count), dtype=np.uint8)
    added = _added_by(torch.from_numpy(bits))
    assert torch.equal(added == 0, torch.from_numpy(np.unpackbits(bits, axis=1, bitorder="little")).bool())
    assert added.isneginf().sum() == (added != 0).sum()
