"""llama.cpp, through the low-level calls of llama-cpp-python: `llama_decode` with one sequence or with many.

llama-cpp-python's own class decodes one request at a time, and its server queues them. So that several streams are a
fair question, its batch is driven here as a server in C++ would drive it: all prompts in one call, then one token of
each sequence a call. It is given token ids and takes the largest logit, nothing else: less than any of its users does.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.first_token.contender import Answer
from benchmarks.first_token.worker import Clock, Worker

__all__ = ["Engine", "llama_cpp", "requantise"]

PROMPT_BATCH = 2048  # tokens a call, llama.cpp's own default
ROOM_ALONE = 4096  # context of the single sequence
ROOM_EACH = 512  # context of each of many


def llama_cpp(model: Path, cores: int, log: Path, *, weights: str) -> Worker:
    """The contender for one file; `weights` says in the table which."""
    return Worker(
        f"llama.cpp, {weights}",
        "llama_decode in a plain loop, all streams in one batch; token ids in and out",
        engine=__name__,
        model=model,
        cores=cores,
        packages={"llama_cpp": "llama-cpp-python"},
        log=log,
    )


def requantise(model: Path, target: Path, kind: str = "Q4_0") -> None:
    """Write `model` as `kind`; Q4_0 is the format that llama.cpp repacks and is fastest with."""
    import llama_cpp

    with _quiet(llama_cpp):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        params.allow_requantize = True
        failed = llama_cpp.llama_model_quantize(str(model).encode(), str(target).encode(), ctypes.byref(params))
    if failed:
        raise OSError(f"llama.cpp could not write {target} (code {failed})")


class Engine:
    """A model with two contexts: for one sequence, and for as many as were asked at once."""

    def __init__(self, model: Path, cores: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._cores = cores
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
        if not self._model:
            raise OSError(f"llama.cpp could not load {model}")
        self._words = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self._alone = _Context(self, sequences=1, room=ROOM_ALONE, settings={})
        self._many: _Context | None = None

    def generate(self, prompts: list[list[int]], tokens: int, settings: dict[str, int] | None = None) -> list[Answer]:
        """Greedy; no token stops an answer. `settings` are fields of llama.cpp's context that are not its defaults."""
        context = self._context(len(prompts), settings or {})
        clock = Clock(prompts)
        chosen = context.read(prompts)
        for stream in range(len(prompts)):
            clock.note(stream)
        for place in range(tokens - 1):
            chosen = context.step(chosen, [len(prompt) + place for prompt in prompts])
            for stream in range(len(prompts)):
                clock.note(stream)
        return clock.answers()

    def make_context(self, sequences: int, room: int, settings: dict[str, int]) -> Any:
        """A context for `sequences` of `room` tokens each, with `settings`, and llama.cpp's defaults for all else."""
        params = self._api.llama_context_default_params()
        params.n_ctx = sequences * room
        params.n_batch = PROMPT_BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._cores
        for name, value in settings.items():
            setattr(params, name, value)
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise MemoryError("llama.cpp could not make a context")
        return context

    @property
    def api(self) -> Any:
        """The module with llama.cpp's calls."""
        return self._api

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return self._words

    def _context(self, sequences: int, settings: dict[str, int]) -> _Context:
        if sequences == 1:
            if self._alone.settings != settings:
                self._alone.close()
                self._alone = _Context(self, sequences=1, room=ROOM_ALONE, settings=settings)
            return self._alone
        if self._many is None or (self._many.sequences, self._many.settings) != (sequences, settings):
            if self._many is not None:
                self._many.close()
            self._many = _Context(self, sequences=sequences, room=ROOM_EACH, settings=settings)
        return self._many


class _Context:
    """One of llama.cpp's contexts and the batch that fills it."""

    def __init__(self, engine: Engine, *, sequences: int, room: int, settings: dict[str, int]) -> None:
        self.sequences = sequences
        self.settings = settings
        self._api = engine.api
        self._words = engine.words
        self._context = engine.make_context(sequences, room, settings)
        self._memory = self._api.llama_get_memory(self._context)
        self._batch = self._api.llama_batch_init(PROMPT_BATCH, 0, 1)

    def read(self, prompts: list[list[int]]) -> list[int]:
        """Forget everything, read all prompts in as few calls as hold them; returns the first token of each."""
        self._api.llama_memory_clear(self._memory, True)
        chosen = [0] * len(prompts)
        todo = [
            (token, place, stream, place == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        for start in range(0, len(todo), PROMPT_BATCH):
            for stream, token in self._decode(todo[start : start + PROMPT_BATCH]):
                chosen[stream] = token
        return chosen

    def step(self, tokens: list[int], places: list[int]) -> list[int]:
        """One more token of each sequence."""
        rows = [(token, place, stream, True) for stream, (token, place) in enumerate(zip(tokens, places, strict=True))]
        return [token for _, token in self._decode(rows)]

    def close(self) -> None:
        """Give its memory back."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """Run rows of (token, position, sequence, wanted); returns (sequence, likeliest next token) of those wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for row, (token, place, stream, wanted) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = place
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = stream
            batch.logits[row] = wanted
        if self._api.llama_decode(self._context, batch):
            raise MemoryError("llama.cpp could not decode the batch")
        return [(stream, self._likeliest(row)) for row, (_, _, stream, wanted) in enumerate(rows) if wanted]

    def _likeliest(self, row: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._words,)).argmax())


class _quiet:  # noqa: N801
    """No log lines of llama.cpp inside of this block."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._callback = api.llama_log_callback(lambda _level, _text, _data: None)

    def __enter__(self) -> None:
        self._api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def __exit__(self, *_: object) -> None:
        self._api.llama_log_set(self._api.llama_log_callback(0), ctypes.c_void_p(0))
