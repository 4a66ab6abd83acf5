"""A small model that guesses for a large one; hot: once a step.

It has pages of its own, and its own view of what every sequence has: what it computed for guesses that were wrong is
written over. It reads long prompts in chunks, a chunk a step, and guesses once it is through. Of the same vocabulary as
the large one, on the same device.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch

from formats.checkpoint.architecture import DecoderConfig
from microkernel.errors import PreconditionFailed
from services.inference.cache.keys import PAGE
from services.inference.engine.forward import Decoder, Part, Storage
from services.inference.engine.sequence import Sequence

__all__ = ["DraftModel"]

CHUNK = 256  # tokens of a prompt that a step reads


class DraftModel:
    """A `Proposer` on a second decoder."""

    def __init__(self, decoder: Decoder, target: DecoderConfig, *, pages: int) -> None:
        """Guess for a model of shape `target`, with up to `pages` pages. Raises `PreconditionFailed`."""
        if decoder.config.vocab_size != target.vocab_size:
            raise PreconditionFailed(
                f"the draft model has {decoder.config.vocab_size} tokens, and the model {target.vocab_size}",
                remedy="take a draft model with the same tokenizer",
            )
        self._decoder = decoder
        self._longest = decoder.config.context_length
        self._storage = decoder.storage(pages)
        self._free = list(range(pages))  # last freed, first taken
        self._cold = pages  # of those, the first ones: without memory of the system
        self._pages = pages
        self._views: WeakKeyDictionary[Sequence, _View] = WeakKeyDictionary()

    @torch.inference_mode()
    def propose(self, asked: Several[tuple[Sequence, int]]) -> list[list[int]]:
        """The likeliest tokens after what each sequence has, none while its prompt is read or where pages are short."""
        guesses: list[list[int]] = [[] for _ in asked]
        going = []
        for place, (sequence, most) in enumerate(asked):
            view = self._view(sequence)
            view.forget_wrong(sequence.tokens)
            if self._extend(view, len(sequence.tokens) + most):
                going.append((place, view, sequence.tokens, most))
        self._read(going)
        ready = [one for one in going if len(one[2]) - one[1].length <= CHUNK]
        new = {place: tokens[view.length :] for place, view, tokens, _ in ready}
        while ready:
            parts = [Part(new[place], view.length, view.table(self._storage)) for place, view, _, _ in ready]
            likeliest = self._decoder.forward(self._storage, parts).argmax(-1).tolist()
            for (place, view, _, _), token in zip(ready, likeliest, strict=True):
                view.tokens += new[place]
                guesses[place].append(token)
                new[place] = [token]
            ready = [one for one in ready if len(guesses[one[0]]) < one[3]]
        return guesses

    @property
    def resident_bytes(self) -> int:
        """Its weights, and its pages as `PagesUse.resident_bytes` counts them."""
        idle = self._cold if self._storage.elastic else len(self._free)
        return self._decoder.weight_bytes + (self._pages - idle) * self._storage.page_bytes

    def give_back(self) -> None:
        """Give the memory of free pages back to the system."""
        warm = self._free[self._cold :]
        self._storage.give_back(warm)
        self._cold += len(warm)

    def _read(self, going: Several[tuple[int, _View, list[int], int]]) -> None:
        """A chunk of each prompt that is too long to be read with the first guess."""
        parts = []
        for _, view, tokens, _ in going:
            if len(tokens) - view.length > CHUNK:
                chunk = tokens[view.length : view.length + CHUNK]
                parts.append(Part(chunk, view.length, view.table(self._storage), wanted=0))
                view.tokens += chunk
        if parts:
            self._decoder.forward(self._storage, parts)

    def _view(self, sequence: Sequence) -> _View:
        view = self._views.get(sequence)
        if view is None:
            view = self._views[sequence] = _View()
            finalize(sequence, self._free.extend, view.pages)  # the very list: it has all pages by then
        return view

    def _extend(self, view: _View, length: int) -> bool:
        missing = -(-length // PAGE) - len(view.pages)
        if length > self._longest or missing > len(self._free):
            return False
        view.pages += [self._free.pop() for _ in range(missing)]
        self._cold = min(self._cold, len(self._free))
        return True


class _View:
    """What the draft model has of one sequence: tokens whose keys and values are in its pages."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.pages: list[int] = []
        self._table: tuple[int, Any] = (-1, None)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def forget_wrong(self, tokens: list[int]) -> None:
        """Keep what is as the sequence went on, and leave its last token to be computed."""
        same = min(len(self.tokens), len(tokens) - 1)
        # Only guesses can be wrong, and they are few: looked for from the end.
        start = max(0, same - 2 * CHUNK)
        for place in range(start, same):
            if self.tokens[place] != tokens[place]:
                same = place
                break
        del self.tokens[same:]

    def table(self, storage: Storage) -> Any:
        """Its pages as the decoder takes them."""
        if self._table[0] != len(self.pages):
            self._table = (len(self.pages), storage.table(self.pages))
        return self._table[1]
