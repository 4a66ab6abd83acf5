"""The adapters that an engine's requests may ask for, and in which name space their pages are; hot: once a request.

What is computed with an adapter is found again by what has the same adapter only: its pages are in a space of their
own, named by the adapter's content, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Iterable

from formats.checkpoint.adapter import Adapter
from microkernel.errors import NotFound, PreconditionFailed
from services.inference.engine.forward import Decoder
from services.inference.engine.sequence import Request

__all__ = ["Adapters"]


class Adapters:
    """What the decoder has of them, by number."""

    def __init__(self, decoder: Decoder, space: bytes) -> None:
        """`space` names the model's content, without an adapter."""
        self._decoder = decoder
        self._spaces: dict[int | None, bytes] = {None: space}

    def add(self, adapter: Adapter) -> int:
        """Take an adapter; returns its number."""
        number = self._decoder.add_adapter(adapter)
        self._spaces[number] = self._spaces[None] + b"\0adapter-1-" + adapter.digest.encode()
        return number

    def remove(self, number: int, requests: Iterable[Request]) -> None:
        """Forget an adapter. Raises `PreconditionFailed` where one of `requests` asks for it."""
        used = sum(request.adapter == number for request in requests)
        if used:
            raise PreconditionFailed(f"{used} requests use the adapter", remedy="let them end, or cancel them")
        if self._spaces.pop(number, None) is not None:
            self._decoder.remove_adapter(number)

    def check(self, request: Request) -> None:
        """Raise `NotFound` where the request's adapter is not here any more."""
        if request.adapter not in self._spaces:
            raise NotFound("the adapter was unloaded", field="model")

    def space(self, request: Request) -> bytes:
        """The name space of a request's pages."""
        return self._spaces[request.adapter]
