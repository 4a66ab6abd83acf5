"""What can be set of the inference service."""

from __future__ import annotations

from microkernel.message import Message
from services.inference.engine.forward import PageDtype
from services.inference.messages import SamplingParams
from services.models.messages import DEFAULT_MODEL

__all__ = ["InferenceSettings"]


class InferenceSettings(Message, kw_only=True):
    """`model` is loaded at the start and answers who names none. Sampling defaults are for what neither request nor
    model says. `slots` is how many requests run at once, `context_length` the longest of them in tokens, `cache_share`
    the part of the device's free memory that their pages may take, `owner_share` the part of the pages that one owner
    may have, `token_budget` how many tokens one step computes at most. Pages in `page_dtype` "int8" hold nearly twice
    the tokens of "bfloat16". Without `kernels`, everything is computed by torch. Long contexts are kept on disk, in
    `contexts_bytes` at most; with 0, none are.
    """

    model: str = DEFAULT_MODEL
    device: str = "cpu0"
    slots: int = 32
    context_length: int | None = 8192
    cache_share: float = 0.5
    token_budget: int = 512
    page_dtype: PageDtype = "bfloat16"
    kernels: bool = True
    owner_share: float = 1.0
    contexts_bytes: int = 4 << 30
    temperature: float = 0.2  # with top_p 0.9 what SmolLM2's authors recommend: small models wander when it is high
    top_p: float = 0.9

    @property
    def sampling(self) -> SamplingParams:
        """What neither request nor model says."""
        return SamplingParams(temperature=self.temperature, top_p=self.top_p)
