"""An engine whose pages run out: with a host tier what it forgot is not computed again, and the text is the same.

On the CPU in the place of a device: its pages, steps and copies are those of an accelerator.
"""

from __future__ import annotations

import pytest
import torch
from engine_runs import Counting, run
from tiny_models import CPU, write_gguf

from formats.checkpoint.checkpoint import open_checkpoint
from services.inference.eager.decoder import Decoder
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling

PAGES = 8
GREEDY = ResolvedSampling(temperature=0.0)
PROMPTS = [[(start + 3 * place) % 250 for place in range(70)] for start in (0, 17, 40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("host") / "tiny.gguf", context=256)


@pytest.fixture
def decoder(model) -> Counting:
    return Counting(Decoder(open_checkpoint(model), device=CPU, dtype=torch.float32, fixed=True))


def engine(decoder, *, host_pages: int = 0, pages: int = PAGES) -> Engine:
    page = decoder.storage(1).page_bytes
    return Engine(decoder, max_batch=4, max_length=128, cache_bytes=pages * page, host_bytes=host_pages * page)


def answers(running: Engine, *prompts: list[int], tokens: int = 12) -> list[list[int]]:
    given: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    for number, prompt in enumerate(prompts):
        running.add(Request(id=number, prompt=prompt, max_tokens=tokens, params=GREEDY))
    while not running.idle:
        for output in running.step():
            assert output.error is None
            given[output.id].append(output.token)
    return list(given.values())


def test_a_prompt_that_was_forgotten_is_not_computed_again(decoder):
    running = engine(decoder, host_pages=32)
    [first] = answers(running, PROMPTS[0])
    for other in PROMPTS[1:]:
        answers(running, other)
    before = decoder.tokens
    assert answers(running, PROMPTS[0]) == [first]
    assert decoder.tokens - before <= 16 + 12, "no more than a page of the prompt, and the answer"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_answers_as_the_cpu_does_with_what_was_forgotten_and_came_back(decoder, model):
    card = Counting(Decoder(open_checkpoint(model), device=torch.device("cuda"), dtype=torch.float32))
    prompts = [prompt[:30] for prompt in PROMPTS]
    expected = [answers(engine(decoder, pages=64), prompt, tokens=60)[0] for prompt in prompts]
    running = engine(card, host_pages=64, pages=10)
    assert answers(running, *prompts, tokens=60) == expected
    before = card.tokens
    assert answers(running, prompts[0], tokens=60) == expected[:1]
    assert card.tokens - before <= 16 + 60


def test_without_a_tier_it_is(decoder):
    running = engine(decoder)
    [first] = answers(running, PROMPTS[0])
    for other in PROMPTS[1:]:
        answers(running, other)
    before = decoder.tokens
    assert answers(running, PROMPTS[0]) == [first]
    assert decoder.tokens - before >= 70


def test_a_sequence_that_gave_way_goes_on_with_what_it_had(decoder):
    prompts = [prompt[:30] for prompt in PROMPTS]
    alone = [answers(engine(decoder, pages=64), prompt, tokens=60)[0] for prompt in prompts]
    computed = {}
    for host_pages in (0, 64):
        before = decoder.tokens
        assert answers(engine(decoder, host_pages=host_pages, pages=10), *prompts, tokens=60) == alone
        computed[host_pages] = decoder.tokens - before
    assert computed[64] < computed[0], "three sequences come to six pages each, and there are ten"


def test_nothing_is_put_behind_a_restored_context_that_ends_inside_of_a_page(decoder):
    page = decoder.storage(1).page_bytes
    running = Engine(
        decoder, max_batch=4, max_length=128, token_budget=37, cache_bytes=PAGES * page, host_bytes=32 * page
    )
    running.add(Request(id=7, prompt=PROMPTS[0], max_tokens=12, params=GREEDY))
    running.step()
    context = running.save(7)
    assert context.length == 37
    expected = run(running)[7]
    for other in PROMPTS[1:]:
        answers(running, other)
    running.restore(context, 8)
    assert run(running)[8] == expected


def test_another_owner_finds_nothing(decoder):
    running = engine(decoder, host_pages=32)
    for prompt in PROMPTS:
        answers(running, prompt)
    before = decoder.tokens
    running.add(Request(id=0, prompt=PROMPTS[0], max_tokens=1, params=GREEDY, owner="eve"))
    while not running.idle:
        running.step()
    assert decoder.tokens - before == 70


def test_after_broken_numbers_nothing_of_the_tier_is_trusted(decoder):
    running = engine(decoder, host_pages=32)
    for prompt in PROMPTS:
        answers(running, prompt)
    forward = decoder._decoder.forward
    decoder._decoder.forward = lambda storage, parts: forward(storage, parts).fill_(torch.nan)
    running.add(Request(id=0, prompt=[1, 2, 3], max_tokens=1, params=GREEDY))
    [output] = running.step()
    assert output.error is not None
    del decoder._decoder.forward
    before = decoder.tokens
    answers(running, PROMPTS[0], tokens=1)
    assert decoder.tokens - before == 70
