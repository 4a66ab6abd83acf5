"""A process that is killed has lost nothing of a conversation: what it had computed is on disk, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import write_gguf

from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import PreconditionFailed
from services.inference.cache.saved import SavedPages
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling
from services.inference.native.build import open_kernels
from services.inference.native.decoder import NativeDecoder
from services.inference.native.weights import open_weights

CONVERSATION = [(11 * place + place // 7) % 250 for place in range(2000)]
TALK = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_contexts_after_a_kill import engine_in
engine, saved = engine_in(Path({folder!r}))
from test_contexts_after_a_kill import ask
engine.add(ask(1))
for _ in range(40):
    engine.step()
saved.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def ask(number: int) -> Request:
    return Request(id=number, prompt=CONVERSATION, max_tokens=400, params=ResolvedSampling(temperature=0.0))


def engine_in(folder: Path, pages: str = "pages") -> tuple[Engine, SavedPages]:
    """An engine of the tiny model in `folder`, whose pages are saved beside it."""
    checkpoint = open_checkpoint(folder / "tiny.gguf")
    kernels = open_kernels(folder / "kernels")
    decoder = NativeDecoder(checkpoint, open_weights(checkpoint, kernels, file=None), kernels.team(1))
    saved = SavedPages(folder / pages, 1 << 30)
    return Engine(decoder, saved=saved, max_batch=2), saved


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o700)
    write_gguf(tmp_path / "tiny.gguf", context=4096)
    try:
        engine_in(tmp_path)[1].close()
    except PreconditionFailed as error:
        pytest.skip(error.message)
    return tmp_path


def listened(engine: Engine, monkeypatch) -> tuple[list[int], list[torch.Tensor]]:
    """How many tokens each step computes, and its logits."""
    counts: list[int] = []
    logits: list[torch.Tensor] = []
    forward = engine._decoder.forward

    def listening(storage, parts):
        counts.append(sum(len(part.tokens) for part in parts))
        found = forward(storage, parts)
        if len(found):
            logits.append(found.clone())
        return found

    monkeypatch.setattr(engine._decoder, "forward", listening)
    return counts, logits


def test_after_a_kill_a_conversation_of_2000_tokens_goes_on_with_equal_logits(folder, monkeypatch):
    path = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    killed = subprocess.run([sys.executable, "-c", TALK.format(path=path, folder=str(folder))], check=False)
    assert killed.returncode == -signal.SIGKILL

    again, saved = engine_in(folder)
    cold, nothing = engine_in(folder, "no pages")
    found = []
    for engine in (again, cold):
        counts, logits = listened(engine, monkeypatch)
        engine.add(ask(1))
        outputs = []
        while len(outputs) < 20:
            outputs += engine.step()
        found.append((counts, logits, outputs))
    (counts, logits, outputs), (cold_counts, cold_logits, cold_outputs) = found
    assert sum(cold_counts) >= 2000
    assert sum(counts) < 60, "what is on disk is not computed"
    assert outputs[0].cached >= 1984
    assert cold_outputs[0].cached == 0
    assert [output.token for output in outputs] == [output.token for output in cold_outputs]
    assert all(torch.equal(one, other) for one, other in zip(logits, cold_logits, strict=True))
    for one in (saved, nothing):
        one.close()
