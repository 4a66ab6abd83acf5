"""What can be set of the inference service."""

from __future__ import annotations

from microkernel.message import Message
from services.inference.admission import OwnerRate
from services.inference.engine.forward import PageDtype
from services.inference.messages import SamplingParams
from services.models.messages import DEFAULT_EMBEDDING_MODEL, DEFAULT_MODEL

__all__ = ["InferenceSettings"]


class InferenceSettings(Message, kw_only=True):
    """`model` is loaded at the start and answers who names none; `embedding_model` makes their vectors, and is loaded
    when it is first asked. `device` is one of `mk devices`; with "auto" it is an
    accelerator on which the model can be loaded, or else the CPU. Sampling defaults are for what neither request
    nor model says. `slots` is how many requests run at once, `context_length` the longest of them in tokens,
    `cache_share` the part of the device's free memory that their pages may take, `owner_share` the part of the
    pages that one owner may have, `token_budget` how many tokens one step computes at most. Where nothing is said
    of slots and tokens, they are what measuring has shown to be best for the model on its device, once it was idle
    for `tune_after` seconds; with 0, only when asked. Pages in `page_dtype` "int8" hold nearly twice the tokens of
    "bfloat16". Steps that read prompts beside running answers are to take at most `slowdown` times what they would
    take without. Without `kernels`, everything is computed by torch; with `flex`, accelerators use its
    flex_attention, which is compiled in the first answers. With `speculation` "lookup" a text's own words are
    guessed to come again, with the ref of a small model that one guesses, with "off" nobody does: texts are the
    same. Long contexts are kept on disk, in `contexts_bytes` at most, and so many bytes of those that each user has
    named; with 0, none are. Where a device has memory of its own, `host_bytes` of the machine's keep what its pages
    have no room for, for each model. `adapters` are loaded beside the default model at the start: names, each with
    its ref. `adapters_limit` is how many may be loaded, `adapter_rank` the largest rank that one may have. `rates`
    are what owners may have in a minute, by owner, `*` for each who is not named; a request that would wait longer
    than `longest_wait` seconds for its place is told to come back.
    """

    model: str = DEFAULT_MODEL
    embedding_model: str = DEFAULT_EMBEDDING_MODEL
    device: str = "auto"
    slots: int | None = None
    context_length: int | None = 8192
    cache_share: float = 0.5
    token_budget: int | None = None
    tune_after: float = 60.0
    page_dtype: PageDtype = "bfloat16"
    kernels: bool = True
    flex: bool = False
    owner_share: float = 1.0
    speculation: str = "lookup"
    slowdown: float = 1.7
    contexts_bytes: int = 4 << 30
    host_bytes: int = 4 << 30
    adapters: dict[str, str] = {}
    adapters_limit: int = 32
    adapter_rank: int = 128
    rates: dict[str, OwnerRate] = {}
    longest_wait: float = 300.0
    temperature: float = 0.2  # with top_p 0.9 what SmolLM2's authors recommend: small models wander when it is high
    top_p: float = 0.9

    @property
    def sampling(self) -> SamplingParams:
        """What neither request nor model says."""
        return SamplingParams(temperature=self.temperature, top_p=self.top_p)
