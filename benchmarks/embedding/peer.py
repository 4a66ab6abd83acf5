"""sentence-transformers, the library that most vectors of texts are made with, on the same files."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.default_model import stored_encoder
from benchmarks.embedding.texts import texts_of

__all__ = ["SentenceTransformers"]


class SentenceTransformers:
    """`SentenceTransformer.encode` with its usual settings, in float32 on the CPU."""

    async def start(self) -> None:
        """Read the model."""
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(stored_encoder()), device="cpu", local_files_only=True)
        self._encode(["warm"])

    async def stop(self) -> None:
        """Nothing runs between two questions."""

    async def index(self, kind: str, count: int) -> dict[str, float]:
        """Texts a second, all given at once."""
        texts = texts_of(kind, count)
        began = time.perf_counter()
        self._encode(texts)
        return {"texts": len(texts) / (time.perf_counter() - began)}

    async def search(self, count: int) -> dict[str, float]:
        """Seconds for one text, one after the other; the median."""
        seconds = []
        for text in texts_of("lines", count):
            began = time.perf_counter()
            self._encode([text])
            seconds.append(time.perf_counter() - began)
        return {"one": statistics.median(seconds)}

    def _encode(self, texts: list[str]) -> None:
        self._model.encode(texts, show_progress_bar=False)
