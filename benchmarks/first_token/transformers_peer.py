"""transformers, in float32 from the same GGUF file: `generate` for one prompt or a batch padded on the left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.first_token.contender import Answer
from benchmarks.first_token.worker import Clock, Worker

__all__ = ["Engine", "transformers"]


def transformers(model: Path, cores: int, log: Path, *, dtype: str = "float32") -> Worker:
    """The contender."""
    return Worker(
        f"transformers, {dtype}",
        f"weights unpacked to {dtype}; generate() with a static batch; token ids in and out",
        engine=__name__,
        model=model,
        cores=cores,
        # accelerate and gguf are what transformers itself asks for to read a GGUF file.
        packages={"transformers": "transformers", "accelerate": "accelerate", "gguf": "gguf", "torch": "torch"},
        log=log,
        options={"dtype": dtype},
    )


class Engine:
    """A model of transformers."""

    def __init__(self, model: Path, cores: int, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(cores)
        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model.parent, gguf_file=model.name, dtype=getattr(torch, dtype)
        )
        # No token ends an answer: the model's own settings would fill what a request leaves open.
        self._model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """Greedy; as many tokens as asked."""
        torch = self._torch
        clock = Clock(prompts)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            streamer=_Streamer(clock, len(prompts)),
        )
        return clock.answers()


class _Streamer:
    """Notes when tokens come; the first thing that it is given are the prompts."""

    def __init__(self, clock: Clock, streams: int) -> None:
        self._clock = clock
        self._streams = streams
        self._prompts_seen = False

    def put(self, _: Any) -> None:
        if self._prompts_seen:
            for stream in range(self._streams):
                self._clock.note(stream)
        self._prompts_seen = True

    def end(self) -> None:
        pass
