"""What all lines share: the model and files made from it, how many threads and rounds, and where logs go."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from benchmarks.engine.random_model import BIG, kept, write_quantised
from benchmarks.first_token.llama_cpp_peer import requantise
from benchmarks.first_token.prompts import Prompts
from benchmarks.measure import Round

__all__ = ["Stage"]


class Stage:
    """One run. `scratch` goes with it, `cache` stays."""

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        rounds: int,
        quick: bool,
        scratch: Path,
        cache: Path,
        tell: Callable[[str], None],
    ) -> None:
        self.model = model
        self.threads = threads
        self.quick = quick
        self.tell = tell
        self.interrupted = False
        self._rounds = rounds
        self._scratch = scratch
        self._cache = cache

    def repeat(self, one: Callable[[int], Round]) -> list[Round]:
        """The rounds, numbered from 0; told to stop in one of them, those before it."""
        found: list[Round] = []
        try:
            for number in range(self._rounds):
                found.append(one(number))  # noqa: PERF401 - complete rounds stay when a later one is interrupted
        except KeyboardInterrupt:
            self.interrupted = True
            self.tell(f"interrupted in round {len(found) + 1}")
        return found

    def folder(self, name: str) -> Path:
        """A place of that name for this run."""
        folder = self._scratch / name
        folder.mkdir(exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        """Where a worker writes what it has to say."""
        return self.folder("logs") / f"{name}.log"

    @cached_property
    def prompts(self) -> Prompts:
        """Of the model's tokenizer; the large model has the same."""
        return Prompts(self.model)

    @cached_property
    def q4_0(self) -> Path:
        """The model as Q4_0, the format that llama.cpp is fastest with."""
        target = self.folder("requantised") / f"{self.model.stem}.Q4_0.gguf"
        requantise(self.model, target)
        return target

    @cached_property
    def big(self) -> Path:
        """The large model of random weights as Q4_K_M; made once, which takes a minute or two."""
        return kept(
            self._cache / f"{BIG.name}.Q4_K_M.gguf",
            lambda target: write_quantised(target, BIG, tokenizer=self.model, kind="Q4_K_M"),
            self.tell,
        )
