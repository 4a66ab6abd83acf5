"""What it costs to count: the engine with and without quotas, and with and without the prefix cache where nothing hits.

Two engines of the same weights do the same work in one process, in turns of one step. What is compared is what they do
around the pass over the model, which is the same for both: the difference, as a part of the whole step. Passes differ
by more than that from one to the next.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine.line import Goal, Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.first_token.contender import Prompt
from benchmarks.measure import Measure, Round
from microkernel.root import default_root

if TYPE_CHECKING:
    from services.inference.cache.cache import Cache
    from services.inference.cache.ledger import Ledger
    from services.inference.engine.engine import Engine
    from services.inference.engine.forward import Decoder

__all__ = ["GROUP"]

OURS = "engine alone"
STREAMS = 16
LOOK = 0.5  # seconds between two reports of what pages are used for, as the service sends them

QUOTAS = Measure("steps with quotas, 16 owners", "% of those without", scale=100.0)
PREFIXES = Measure("steps with the prefix cache, no hits", "% of those without", scale=100.0)


def _take(stage: Stage, lines: Sequence[Line]) -> Taken:
    bench = _Bench(stage)
    taken = Taken(contenders={OURS: "two of our engines with the same weights, in turns of one step"})
    asked = {line.name for line in lines}

    def one(number: int) -> Round:
        found = {}
        if "quotas" in asked:
            stage.tell(f"round {number + 1}: quotas")
            found[QUOTAS.name] = bench.quotas(stage.prompts.short(STREAMS), 24 if stage.quick else 200)
        if "prefix-cost" in asked:
            stage.tell(f"round {number + 1}: the prefix cache without hits")
            prompts = [stage.prompts.long(600) for _ in range(4)]
            found[PREFIXES.name] = bench.prefixes(prompts, 24 if stage.quick else 200)
        stage.tell("  " + ", ".join(f"{name}: {share:.1%}" for name, share in found.items()))
        return {OURS: found}

    taken.rounds = stage.repeat(one)
    return taken


class _Bench:
    """Engines on one set of kernels; no torch is imported before it is made."""

    def __init__(self, stage: Stage) -> None:
        import torch

        from services.inference.decoders import Computing
        from services.inference.opened import fit, open_model
        from services.inference.service import Inference
        from services.inference.sizes import sizes_of

        computing = Computing(torch.device("cpu"), stage.threads, default_root() / "benchmarks")
        self._opened = open_model(stage.model, computing, _digest(stage.model))
        budget = sizes_of(Inference.Settings(), None).token_budget
        self._size = fit(self._opened, STREAMS, 2048, cache_limit=1 << 40, token_budget=budget)
        self._decoder = self._opened.plan.make()

    def quotas(self, prompts: list[Prompt], tokens: int) -> float:
        """Each stream has an owner with a quota that is never reached, and reports are made."""
        from services.inference.cache.ledger import Ledger

        ledger = Ledger()
        ledger.set_limits({f"owner {number}": 1 << 40 for number in range(STREAMS)}, 1 << 40)
        counted, plain = self._engine(ledger), self._engine(None)
        reported = [time.perf_counter()]

        def step() -> None:
            counted.step()
            if time.perf_counter() - reported[0] > LOOK:
                counted.relief.use()
                reported[0] = time.perf_counter()

        return self._compare(counted, step, plain, prompts, tokens)

    def prefixes(self, prompts: list[Prompt], tokens: int) -> float:
        """Prompts that nobody has asked before, so that all that is entered is never found."""
        cached, plain = self._engine(None), self._engine(None)
        _without_prefixes(plain)
        return self._compare(cached, cached.step, plain, prompts, tokens)

    def _engine(self, ledger: Ledger | None) -> Engine:
        from services.inference.engine.engine import Engine

        size = self._size
        return Engine(
            _Timed(self._decoder),
            max_batch=size.slots,
            max_length=size.length,
            cache_bytes=size.cache_bytes,
            ledger=ledger,
        )

    def _compare(
        self, engine: Engine, step: Callable[[], Any], plain: Engine, prompts: list[Prompt], tokens: int
    ) -> float:
        """The time of the steps of `engine`, done by `step`, as a share of those of `plain`."""
        from services.inference.engine.engine import Request
        from services.inference.engine.sampler import ResolvedSampling

        greedy = ResolvedSampling(temperature=0.0)
        for number, prompt in enumerate(prompts):
            request = Request(
                id=number, prompt=prompt.ids, max_tokens=tokens, params=greedy, owner=f"owner {number % STREAMS}"
            )
            engine.add(request)
            plain.add(request)
        around, plainly, steps = [], [], []
        for turn in itertools.count():
            if engine.idle and plain.idle:
                break
            # Who is second finds the weights in the processor's caches.
            if turn % 2:
                around.append(_around(engine, step)[0])
            seconds, whole = _around(plain, plain.step)
            plainly.append(seconds)
            steps.append(whole)
            if not turn % 2:
                around.append(_around(engine, step)[0])
        engine.relief.close()
        plain.relief.close()
        return 1.0 + (sum(around) - sum(plainly)) / sum(steps)


class _Timed:
    """A decoder that says how long its last pass took."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def forward(self, storage: Any, parts: Sequence[Any]) -> Any:
        began = time.perf_counter()
        logits = self._decoder.forward(storage, parts)
        self.seconds = time.perf_counter() - began
        return logits


def _around(engine: Engine, step: Callable[[], Any]) -> tuple[float, float]:
    """What a step took around its pass, and as a whole."""
    decoder: Any = engine._decoder
    decoder.seconds = 0.0
    began = time.perf_counter()
    step()
    whole = time.perf_counter() - began
    return whole - decoder.seconds, whole


def _without_prefixes(engine: Engine) -> None:
    """An engine that enters no page and looks none up: what a cache without prefixes would do."""
    from services.inference.cache.table import Table

    cache: Cache = engine._cache  # there is no such setting, as nobody would use it

    def begin(owner: str, space: bytes, tokens: Sequence[int]) -> Table:  # noqa: ARG001 - nothing is looked up
        return Table(owner, space, b"")

    cache.begin = begin  # type: ignore[method-assign] # as above
    cache._complete = lambda table: None  # type: ignore[method-assign] # noqa: ARG005 - as above


def _digest(model: Path) -> str:
    """The content's name, under which packed weights are kept."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


GROUP = Group(
    "what counting costs, in one process",
    (
        Line(name="quotas", measures=(QUOTAS,), goals=(Goal(QUOTAS.name, 101.0),)),
        Line(name="prefix-cost", measures=(PREFIXES,), goals=(Goal(PREFIXES.name, 101.0),)),
    ),
    _take,
)
