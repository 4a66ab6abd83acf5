"""A model's files, opened as far as its size is known, and fitted into a device's memory; then its engine is made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from formats.checkpoint.architecture import Unsupported
from formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from formats.text.template import ChatTemplate, open_template
from formats.text.tokenizer import Tokenizer, open_tokenizer
from microkernel.errors import Invalid
from services.inference.cache.keys import PAGE
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.decoders import Computing, Plan
from services.inference.engine.draft import DraftModel
from services.inference.engine.engine import Engine
from services.inference.engine.proposers import PromptLookup, Proposer
from services.inference.fitting import buffer_bytes
from services.inference.foreign.folder import ForeignFolder, open_folder
from services.inference.messages import SamplingParams
from services.inference.model_defaults import model_defaults

__all__ = ["Fit", "Opened", "fit", "make_engine", "open_model"]


class Fit(msgspec.Struct, frozen=True):
    """What a model will take on its device. `slots` requests run at once, none longer than `length` tokens."""

    slots: int
    length: int
    weight_bytes: int
    cache_bytes: int
    page_bytes: int
    buffer_bytes: int

    def with_pages(self, cache_bytes: int) -> Fit:
        """The same with so many bytes of pages, and a length that fits into them."""
        length = min(self.length, cache_bytes // self.page_bytes * PAGE)
        return msgspec.structs.replace(self, length=length, cache_bytes=cache_bytes)


class Opened(msgspec.Struct, frozen=True):
    """A model's files, read as far as its size is known."""

    checkpoint: Checkpoint | ForeignFolder
    tokenizer: Tokenizer
    template: ChatTemplate | str  # or why there is none: the model can complete texts all the same
    sampling: SamplingParams
    plan: Plan
    digest: str

    @property
    def subject(self) -> str:
        """What is measured of it: the same for the same content, computed the same way."""
        return f"{self.digest} by {'torch' if self.plan.why else 'kernels'}, pages of {self.plan.page_bytes} bytes"


def open_model(path: Path, computing: Computing, digest: str = "") -> Opened:
    """Read header, tokenizer and template; on a compute thread. Raises what is wrong with the files.

    `digest` names the model's content; with it, what is made of the model is kept for the next start.
    """
    checkpoint: Checkpoint | ForeignFolder
    try:
        checkpoint = open_checkpoint(path)
    except Unsupported as refused:
        checkpoint = open_folder(path, refused)
    tokenizer = open_tokenizer(checkpoint.tokenizer_source)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise Invalid(
            f"{path.name}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"and the weights are for {checkpoint.config.vocab_size}"
        )
    template: ChatTemplate | str
    try:
        template = open_template(tokenizer)
    except Invalid as error:
        template = error.message
    sampling = model_defaults(checkpoint.tokenizer_source)
    return Opened(checkpoint, tokenizer, template, sampling, computing.plan(checkpoint, digest or None), digest)


def fit(opened: Opened, slots: int, length: int | None, cache_limit: int, *, token_budget: int) -> Fit:
    """How long a context may be, and how many pages there are for all: as asked, less where `cache_limit` bytes end.

    On a compute thread, because it asks torch: one torch operation on another thread starts a second OpenMP pool, and
    with more threads than cores OpenMP stops spinning, which halves the speed of decoding.
    """
    config = opened.checkpoint.config
    longest = config.context_length if length is None else min(length, config.context_length)
    whole = -(-longest // PAGE)
    pages = max(1, min(slots * whole, cache_limit // opened.plan.page_bytes))
    longest = min(longest, pages * PAGE)
    page_bytes = opened.plan.page_bytes
    buffers = buffer_bytes(config, token_budget, slots)
    return Fit(slots, longest, opened.plan.weight_bytes, pages * page_bytes, page_bytes, buffers)


def make_engine(
    opened: Opened,
    size: Fit,
    *,
    token_budget: int,
    saved: SavedPages | None = None,
    owner_share: float = 1.0,
    slowdown: float = 1.7,
    guesses: Opened | bool = False,
    host_bytes: int = 0,
    ledger: Ledger | None = None,
    steps: Iterable[tuple[int, int, float]] = (),
) -> Engine:
    """Read the weights; takes seconds, on the compute thread. Raises `DataLoss`, or `Overloaded`.

    Contexts are kept in `saved` where the model's content is known. One owner may have `owner_share` of the pages, and
    of the device what `ledger` says. A draft model `guesses`; True looks for what a text has said before. What a device
    with memory of its own has to forget is kept in `host_bytes` of the machine's. `steps` tell what some took before.
    """
    proposer: Proposer | None = PromptLookup() if guesses is True else None
    if isinstance(guesses, Opened):
        pages = size.cache_bytes // opened.plan.page_bytes
        proposer = DraftModel(guesses.plan.make(), opened.checkpoint.config, pages=pages)
    return Engine(
        opened.plan.make(),
        max_batch=size.slots,
        max_length=size.length,
        token_budget=token_budget,
        cache_bytes=size.cache_bytes,
        space=opened.digest.encode(),
        saved=saved if opened.digest else None,
        owner_share=owner_share,
        slowdown=slowdown,
        proposer=proposer,
        host_bytes=host_bytes,
        ledger=ledger,
        steps=steps,
    )
