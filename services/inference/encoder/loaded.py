"""An encoder on its device: how it is asked for vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch

from microkernel.buffers import Array
from microkernel.errors import Unavailable
from microkernel.executor import Executor
from services.inference.encoder.batches import plan_batches
from services.inference.encoder.bert import BertEncoder
from services.inference.encoder.config import ARCHITECTURE
from services.inference.encoder.folder import EncoderFolder
from services.inference.encoder.tokens import Tokenized
from services.inference.messages import LoadedModel
from services.memory.messages import Reservation

__all__ = ["TOKEN_BUDGET", "LoadedEncoder"]

TOKEN_BUDGET = 1024  # of a batch: products of more rows are no faster, and a layer of it holds up a chat for 30 ms


class LoadedEncoder:
    """A model that makes vectors of texts."""

    def __init__(
        self, name: str, ref: str, folder: EncoderFolder, encoder: BertEncoder, executor: Executor, weight_bytes: int
    ) -> None:
        self.name = name
        self.ref = ref
        self.device = executor.name
        self.config = folder.config
        self.reservations: list[Reservation] = []
        self.created = int(time.time())
        self._folder = folder
        self._weight_bytes = weight_bytes
        self._encoder: BertEncoder | None = encoder
        self._executor = executor
        self._tokenizing = ThreadPoolExecutor(1)
        self._asking = 0

    @property
    def idle(self) -> bool:
        """Whether nobody asks it anything."""
        return self._asking == 0

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Somebody asks it something, from here to the end of the block."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    async def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """The tokens of texts. Raises `Unavailable` where the model has left."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self._tokenizing, self._folder.tokens.encode, texts)
        except RuntimeError as error:  # the pool is shut
            raise self._leaves() from error
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._encoder is None and (task is None or not task.cancelling()):
                raise self._leaves() from None
            raise

    async def warm(self) -> Array:
        """The vector of an empty text: a model is ready when it has answered, not when it was read."""
        tokenized = await self.tokenize([""])
        vectors: Array = await self._executor.run(self.vectors, tokenized.ids)
        return vectors

    def vectors(self, texts: Sequence[Sequence[int]]) -> Generator[None, None, Array]:
        """The vectors of tokenized texts, float32 [texts, dimensions]; on the device's thread, by small quanta.

        Raises `Unavailable` where the model leaves meanwhile.
        """
        found = torch.empty(len(texts), self.config.hidden_size)
        for batch in plan_batches([len(text) for text in texts], TOKEN_BUDGET):
            layers = self._present().encode([texts[place] for place in batch])
            while True:
                try:
                    next(layers)
                except StopIteration as last:
                    found[torch.tensor(batch)] = last.value
                    break
                yield
                self._present()
            yield
        return Array.from_(found)

    async def close(self) -> None:
        """Let the weights go; what is being computed ends with `Unavailable` at its next turn."""
        held, self._encoder = [self._encoder], None
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        with suppress(Unavailable):  # its device has gone, and its thread with it
            await self._executor.finish(held.clear)

    def describe(self) -> LoadedModel:
        """The model as it is shown."""
        return LoadedModel(
            name=self.name,
            state="ready",
            architecture=ARCHITECTURE,
            quantization=self._folder.kind,
            parameters=self._folder.parameters,
            context_length=self.config.longest,
            weight_bytes=self._weight_bytes,
            device=self.device,
            created=self.created,
            running=self._asking,
            embeds=True,
        )

    def _present(self) -> BertEncoder:
        if self._encoder is None:
            raise self._leaves()
        return self._encoder

    def _leaves(self) -> Unavailable:
        return Unavailable(f"model '{self.name}' is being unloaded", may_have_run=True)
