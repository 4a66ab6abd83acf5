"""The accelerator's benchmark, on the CPU with a tiny model: that it measures all that it says."""

from __future__ import annotations

import re

import torch

from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.random_checkpoint import SHAPES, RandomCheckpoint
from services.inference.eager.decoder import Decoder


def test_each_way_to_decode_prompts_and_swapped_pages_have_a_line(capsys):
    arguments = [
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--context",
        "40",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--sizes",
        "2",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    for streams in (1, 8):
        for way in ("plain", "fixed"):
            assert re.search(rf"decode, +{streams} streams, {way} +[\d,]+ tokens/s +\d+\.\d\dx", told)
    assert re.search(r"prompt of 40 tokens, alone +[\d,]+ tokens/s", told)
    assert len(re.findall(r"pages of 32 tokens (out|in ) +[\d.]+ GB/s", told)) == 2


def test_without_the_device_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_a_random_model_computes_finite_logits():
    from services.inference.engine.forward import Part

    cpu = torch.device("cpu")
    decoder = Decoder(RandomCheckpoint(SHAPES["tiny"], cpu), device=cpu, dtype=torch.float32)
    storage = decoder.storage(1)
    assert decoder.forward(storage, [Part([1, 2, 3], 0, storage.table([0]))]).isfinite().all()
