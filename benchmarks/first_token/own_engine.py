"""Ours without the system: the engine of the inference service, stepped in a plain loop with the service's settings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.first_token.contender import Answer, Late
from benchmarks.first_token.worker import Clock, Worker, note
from microkernel.root import default_root

__all__ = ["Engine", "own_engine"]


def own_engine(model: Path, cores: int, log: Path, *, slots: int | None = None) -> Worker:
    """The contender; with `slots`, it has another number of them than a node."""
    return Worker(
        "engine alone",
        "our engine in a plain loop: no kernel, no scheduler, no gateway, no text; token ids in and out",
        engine=__name__,
        model=model,
        cores=cores,
        packages={"torch": "torch"},
        log=log,
        options={} if slots is None else {"slots": slots},
    )


class Engine:
    """One engine, one thread. Kernels and packed weights are kept from start to start, as a node keeps them."""

    def __init__(self, model: Path, cores: int, slots: int | None = None, *, kernels: bool = True) -> None:
        import torch

        from services.inference.decoders import Computing
        from services.inference.engine.engine import Request
        from services.inference.engine.sampler import ResolvedSampling
        from services.inference.opened import fit, make_engine, open_model
        from services.inference.service import Inference
        from services.inference.sizes import sizes_of

        settings = Inference.Settings()
        folder = default_root() / "benchmarks"
        computing = Computing(torch.device("cpu"), cores, folder, kernels=kernels)
        opened = open_model(model, computing, _digest(model))
        if opened.plan.why:
            note(f"computed by torch, because {opened.plan.why}")
        sizes = sizes_of(settings, None)
        budget = sizes.token_budget
        size = fit(opened, slots or sizes.slots, settings.context_length, cache_limit=1 << 40, token_budget=budget)
        self._engine = make_engine(opened, size, token_budget=budget)
        self._request = Request
        self._greedy = ResolvedSampling(temperature=0.0)

    def generate(self, prompts: list[list[int]], tokens: int, late: dict[str, Any] | None = None) -> list[Answer]:
        """No token stops an answer. With `late`, one more prompt comes while the others are answered."""
        coming = None if late is None else msgspec.convert(late, Late)
        clock = Clock(prompts)
        for stream, prompt in enumerate(prompts):
            self._add(stream, prompt, tokens)
        while not self._engine.idle:
            if coming is not None and clock.is_due(coming):
                self._add(clock.join(coming), coming.prompt, tokens)
                coming = None
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                clock.note(output.id)
        return clock.answers()

    def _add(self, stream: int, prompt: list[int], tokens: int) -> None:
        self._engine.add(self._request(id=stream, prompt=prompt, max_tokens=tokens, params=self._greedy))


def _digest(model: Path) -> str:
    """Names the file's content, as far as can be told without reading it."""
    known = model.stat()
    return hashlib.sha256(f"{model.resolve()} {known.st_size} {known.st_mtime_ns}".encode()).hexdigest()
