"""The default model, with a third of the memory that sixteen streams want: all end with the text they get alone."""

from __future__ import annotations

import pytest
import torch
from engine_runs import step

from services.inference.decoders import Computing
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling
from services.inference.opened import open_model

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]  # ten seconds on an idle machine

GREEDY = ResolvedSampling(temperature=0.0)
TOKENS = 48


def run(engine: Engine, wanted: list[Request]) -> tuple[dict[int, list[int]], int]:
    """All texts, and how many ran at once at most."""
    for one in wanted:
        engine.add(one)
    given: dict[int, list[int]] = {}
    most = 0
    while not engine.idle:
        step(engine, given)
        most = max(most, engine.running)
    return given, most


def test_a_third_of_the_memory_lets_fewer_run_at_once_and_changes_no_text(default_model, tmp_path):
    tmp_path.chmod(0o700)
    computing = Computing(torch.device("cpu"), 2, tmp_path)
    opened = open_model(default_model, computing)
    decoder = opened.plan.make()
    if not decoder.invariant:
        pytest.skip(f"computed by torch: {opened.plan.why}")
    try:
        story = opened.tokenizer.encode(
            "Once upon a time there was a lighthouse keeper who counted ships. " * 40,
            add_bos=False,
            parse_special=False,
        )
        wanted = [
            Request(id=number, prompt=story[number : number + 100 + 5 * number], max_tokens=TOKENS, params=GREEDY)
            for number in range(16)
        ]
        pages = sum(-(-(len(one.prompt) + TOKENS) // 16) for one in wanted)
        page = decoder.storage(1).page_bytes
        # All prompts are read before the first answer ends, however slow the others' steps become by that.
        whole, all_of_them = run(Engine(decoder, cache_bytes=2 * pages * page, slowdown=1000.0), wanted)
        assert all_of_them == 16
        third, most = run(Engine(decoder, cache_bytes=pages // 3 * page, slowdown=1000.0), wanted)
        assert 1 < most < 16
        assert third == whole
        alone = [run(Engine(decoder, cache_bytes=pages * page), [one])[0] for one in wanted[:3]]
        assert all(whole[number] == text[number] for number, text in enumerate(alone))
    finally:
        computing.close()
