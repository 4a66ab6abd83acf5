"""The sampler: every filter against a plain reference, chi-square of draws, independence of batch mates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.inference.engine.sampler import NO_TOKEN, ResolvedSampling, SamplerState, resolve, sample
from services.inference.messages import Chat, ChatMessage, SamplingParams

DRAWS = 5_000
in_few_draws_and_many = pytest.mark.parametrize("draws", [DRAWS, pytest.param(20_000, marks=pytest.mark.slow)])


def state(vocab_size: int = 50, prompt: list[int] | None = None, **fields) -> SamplerState:
    return SamplerState(ResolvedSampling(**fields), prompt or [], vocab_size)


def drawn(logits: torch.Tensor, draws: int = DRAWS, **fields) -> np.ndarray:
    """How often each token is chosen."""
    one = state(logits.numel(), **fields)
    counts = np.zeros(logits.numel(), dtype=np.int64)
    batch = logits[None].expand(100, -1)
    for _ in range(draws // 100):  # the same state in each row: its generator goes on from row to row
        counts += np.bincount(sample(batch, [one] * 100).numpy(), minlength=logits.numel())
    return counts


def kept_by_reference(logits: np.ndarray, params: ResolvedSampling) -> np.ndarray:
    """Probabilities after every filter, in float64, one step after the other."""
    scaled = logits.astype(np.float64) / params.temperature
    share = np.exp(scaled - scaled.max())
    share /= share.sum()
    order = np.argsort(-share, kind="stable")
    if params.top_k:
        share[order[params.top_k :]] = 0
        share /= share.sum()
    before = np.concatenate([[0.0], np.cumsum(share[order])[:-1]])
    out = before >= params.top_p
    out[0] = False
    if params.top_p < 1:
        share[order[out]] = 0
        share /= share.sum()
    share[share < share.max() * params.min_p] = 0
    return share / share.sum()


def penalised_by_reference(logits, prompt, answer, params: ResolvedSampling) -> np.ndarray:
    result = logits.astype(np.float64).copy()
    for token in set(prompt) | set(answer):
        by = params.repetition_penalty
        result[token] = result[token] / by if result[token] > 0 else result[token] * by
    for token in set(answer):
        result[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    return result


def assert_fits(counts: np.ndarray, share: np.ndarray) -> None:
    """Chi-square: a right sampler fails with one seed in ten thousand, and the seeds here are fixed."""
    assert counts[share == 0].sum() == 0
    expected = share * counts.sum()
    often = expected >= 5
    statistic = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    freedom = int(often.sum()) - 1
    # Wilson and Hilferty's approximation of the 0.9999 quantile
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@pytest.mark.parametrize("vocab_size", [7, 64, 300])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@in_few_draws_and_many
def test_draws_are_distributed_as_the_softmax(vocab_size, temperature, draws):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 2
    counts = drawn(logits, draws, temperature=temperature, seed=11)
    assert_fits(counts, kept_by_reference(logits.numpy(), ResolvedSampling(temperature=temperature)))


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.05},
        {"top_p": 0.9, "min_p": 0.2, "temperature": 1.5},
        {"top_k": 1},
        {"top_p": 0.0},
    ],
    ids=str,
)
@in_few_draws_and_many
def test_draws_behind_filters_are_distributed_as_the_reference_says(filters, draws):
    logits = torch.randn(200, generator=torch.Generator().manual_seed(5)) * 2
    share = kept_by_reference(logits.numpy(), ResolvedSampling(**filters))
    counts = drawn(logits, draws, seed=3, **filters)
    if np.count_nonzero(share) == 1:
        assert counts[share.argmax()] == draws
    else:
        assert_fits(counts, share)


@pytest.mark.parametrize("vocab_size", [40, 64, 65, 700, 9000])
@pytest.mark.parametrize("top_k", [1, 3, 63, 64, 65, 600, 8000])
def test_top_k_keeps_exactly_the_k_likeliest_tokens(vocab_size, top_k):
    logits = torch.zeros(vocab_size)
    likely = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(1))[:top_k]
    logits[likely] = 0.5  # so flat that any of them comes up
    kept = min(top_k, vocab_size)
    draws = min(10 * max(kept, 50), 5000)  # of one token too many, some are drawn
    counts = drawn(logits, draws, top_k=top_k, seed=2)
    assert set(np.flatnonzero(counts)) <= set(likely.tolist())
    assert np.count_nonzero(counts) > 0.4 * min(kept, draws)


def test_top_k_keeps_no_more_than_k_of_tokens_that_are_equally_likely():
    counts = drawn(torch.zeros(1000), draws=5000, top_k=7, seed=2)
    assert np.count_nonzero(counts) == 7


@pytest.mark.parametrize(("top_p", "count"), [(0.5, 500), (0.05, 50), (0.9, 900), (0.0001, 1)])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass_even_when_all_must_be_sorted(top_p, count):
    slope = torch.linspace(0, 1e-4, 1000)  # almost flat: more candidates than the first sort takes
    counts = drawn(slope.flip(0), top_p=top_p, seed=2)
    assert abs(np.flatnonzero(counts).max() + 1 - count) <= 1 + count // 100


def test_min_p_keeps_the_tokens_with_at_least_its_part_of_the_likeliest():
    share = torch.tensor([0.5, 0.2, 0.1, 0.09, 0.06, 0.05])
    counts = drawn(share.log(), min_p=0.1799, seed=1)
    assert list(np.flatnonzero(counts)) == [0, 1, 2, 3]


PARAMS = st.builds(
    ResolvedSampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 70]),
    top_p=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.floats(0.5, 3),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    seed=st.integers(0, 2**64 - 1),
)


@given(
    params=PARAMS,
    prompt=st.lists(st.integers(0, 39), max_size=12),
    answer=st.lists(st.integers(0, 39), max_size=90),
    noise=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_penalties_are_those_of_the_definition(params, prompt, answer, noise):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(noise)) * 3
    mate = state(40, temperature=0.0)
    one = SamplerState(params, prompt, 40)
    for token in answer:
        one.record(token)
    expected = penalised_by_reference(logits.numpy(), prompt, answer, params)
    chosen = int(sample(torch.stack([logits, logits]), [mate, one])[1])
    if params.greedy:
        assert expected[chosen] == pytest.approx(expected.max(), abs=1e-4)
    else:
        # a hair of room for float32: the chosen token is in the set of the reference or at its very edge
        share = kept_by_reference(expected, params)
        probable = np.exp((expected - expected.max()) / params.temperature)
        assert probable[chosen] >= probable[share > 0].min() * (1 - 1e-4)


@given(
    batch=st.lists(PARAMS, min_size=1, max_size=19),
    noise=st.integers(0, 1000),
    vocab_size=st.sampled_from([40, 256, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_the_same_seed_gives_the_same_tokens_alone_and_in_any_batch(batch, noise, vocab_size):
    steps = torch.randn(6, len(batch), vocab_size, generator=torch.Generator().manual_seed(noise)) * 3
    steps = (steps * 4).round() / 4  # ties, as bfloat16 logits have them
    together = [SamplerState(params, [1, 2, 3], vocab_size) for params in batch]
    batched = torch.stack([sample(logits, together) for logits in steps])
    for row, params in enumerate(batch):
        alone = SamplerState(params, [1, 2, 3], vocab_size)
        assert [int(sample(logits[row : row + 1], [alone])) for logits in steps] == batched[:, row].tolist()


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 1000, 4096])
def test_greedy_is_the_argmax_and_the_first_of_equals(vocab_size):
    logits = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(3))
    logits = (logits * 4).round()
    first = [row.tolist().index(max(row.tolist())) for row in logits]
    states = [state(vocab_size, temperature=0.0) for _ in range(8)]
    assert sample(logits, states).tolist() == first
    mixed = [state(vocab_size, temperature=float(row % 2), seed=row) for row in range(8)]
    assert sample(logits, mixed).tolist()[::2] == first[::2]


@pytest.mark.parametrize("broken", [math.nan, math.inf, "nothing"])
@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.2}],
    ids=str,
)
def test_a_row_without_a_choice_gets_no_token_and_its_mates_are_served(broken, fields):
    generator = torch.Generator().manual_seed(1)
    good = torch.randn(3, 200, generator=generator)
    bad = good.clone()
    if broken == "nothing":
        bad[1] = -math.inf
    else:
        bad[1, 77] = broken
    expected = sample(good, [state(200, prompt=[5], seed=row, **fields) for row in range(3)])
    chosen = sample(bad, [state(200, prompt=[5], seed=row, **fields) for row in range(3)])
    assert chosen[1] == NO_TOKEN
    assert chosen[[0, 2]].tolist() == expected[[0, 2]].tolist()


def test_tokens_masked_by_minus_infinity_are_never_chosen():
    logits = torch.full((100,), -math.inf)
    logits[[3, 70, 99]] = torch.tensor([0.0, 1.0, 0.5])
    for fields in ({}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.01}):
        assert list(np.flatnonzero(drawn(logits, draws=2000, seed=9, **fields))) == [3, 70, 99]


def test_a_batch_of_none_is_fine():
    assert sample(torch.zeros(0, 50), []).tolist() == []


def test_logits_are_left_as_they_are_and_chosen_tokens_are_recorded():
    logits = torch.zeros(1, 50)
    logits[0, 7] = 1.0
    one = state(50, temperature=0.0, presence_penalty=1.5)
    assert sample(logits, [one]).tolist() == [7]
    assert logits[0, 7] == 1.0
    assert sample(logits, [one]).tolist() != [7]


def test_tokens_of_the_prompt_outside_the_vocabulary_are_ignored():
    one = state(50, prompt=[-4, 50, 10**9, 3], temperature=0.0, repetition_penalty=2.0)
    assert one.seen()[0].tolist() == [3]


def test_the_first_value_that_is_set_wins():
    resolved = resolve(
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.5, top_k=40),
        None,
        SamplingParams(top_k=7, top_p=0.9),
    )
    assert (resolved.temperature, resolved.top_k, resolved.top_p, resolved.min_p) == (0.5, 40, 0.9, 0.0)
    assert resolve(Chat(messages=[ChatMessage(role="user", content="x")], seed=-3)).seed == -3


def test_a_request_without_a_seed_gets_one_of_its_own():
    assert resolve(SamplingParams()).seed != resolve(SamplingParams()).seed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", math.nan), ("top_k", -1), ("top_k", 2**31),
        ("top_p", 1.01), ("top_p", -0.01), ("min_p", 1.5), ("min_p", math.inf), ("repetition_penalty", 0.0),
        ("repetition_penalty", 11.0), ("presence_penalty", 2.5), ("frequency_penalty", -2.5), ("seed", 2**64),
        ("seed", -(2**63) - 1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_its_name_value_and_range(field, value):
    with pytest.raises(Invalid) as refused:
        resolve(SamplingParams(**{field: value}))
    assert refused.value.field == field
    assert field in refused.value.message
    assert repr(value) in refused.value.message
    assert "allowed" in refused.value.message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_chooses_what_the_cpu_does():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(24, 5000, generator=generator) * 4
    kinds = ({"temperature": 0.0}, {"top_k": 40}, {"top_p": 0.8}, {}, {"min_p": 0.1}, {"repetition_penalty": 1.3})

    def states(device: str) -> list[SamplerState]:
        return [
            SamplerState(ResolvedSampling(seed=row, **kinds[row % len(kinds)]), [1, 2, 3], 5000, device)
            for row in range(24)
        ]

    there = sample(logits.cuda(), states("cuda"))
    assert there.device.type == "cpu"
    same = (there == sample(logits, states("cpu"))).sum()
    assert same >= 23, "sums in another order may move one draw that falls on a border"
