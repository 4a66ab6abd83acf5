"""Ours without the system: the engine of the inference service, stepped in a plain loop with the service's settings."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.first_token.contender import Answer
from benchmarks.first_token.worker import Clock, Worker
from services.inference.eager.decoder import Decoder
from services.inference.engine import engine as engine_module
from services.inference.engine.sampler import ResolvedSampling
from services.inference.loaded import fit, open_model
from services.inference.service import Inference

__all__ = ["Engine", "own_engine"]


def own_engine(model: Path, cores: int, log: Path) -> Worker:
    """The contender."""
    return Worker(
        "engine alone",
        "our engine in a plain loop: no kernel, no scheduler, no gateway, no text; token ids in and out",
        engine="own_engine",
        model=model,
        cores=cores,
        packages={"torch": "torch"},
        log=log,
    )


class Engine:
    """One engine, one thread."""

    def __init__(self, model: Path, cores: int) -> None:
        torch.set_num_threads(cores)
        settings = Inference.Settings()
        opened = open_model(model, "cpu")
        size = fit(opened, slots=settings.slots, length=settings.context_length, cache_limit=1 << 40)
        self._engine = engine_module.Engine(
            Decoder(opened.checkpoint, device=opened.device, dtype=opened.dtype),
            max_batch=size.slots,
            max_length=size.length,
            token_budget=settings.token_budget,
            cache_bytes=size.cache_bytes,
        )

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """No token stops an answer."""
        clock = Clock(prompts)
        greedy = ResolvedSampling(temperature=0.0)
        for stream, prompt in enumerate(prompts):
            self._engine.add(engine_module.Request(id=stream, prompt=prompt, max_tokens=tokens, params=greedy))
        while not self._engine.idle:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                clock.note(output.id)
        return clock.answers()
