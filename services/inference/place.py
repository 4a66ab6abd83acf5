"""One device as the inference service has it: what computes there, what its models take, and who gives way to whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from microkernel.service import Service
from services.inference.cache.ledger import Ledger
from services.inference.decoders import Computing
from services.inference.housekeeping import Housekeeping
from services.inference.loaded import Loaded
from services.inference.room import Room

__all__ = ["Place"]


class Place:
    """A device with its models; `ledger` counts what owners have of it, over all of them."""

    def __init__(
        self,
        service: Service,
        device: str,
        computing: Computing,
        models: Callable[[], Iterable[Loaded]],
        rest: Callable[[Loaded, str], Awaitable[None]],
        wanted: Callable[[Loaded], bool],
    ) -> None:
        """`models` are all that are loaded, `rest` takes one off, `wanted` says that one stays."""
        self.device = device
        self.computing = computing
        self.ledger = Ledger()

        def here() -> list[Loaded]:
            return [loaded for loaded in models() if loaded.device == device]

        self.memory = Housekeeping(service, device, self.ledger, here, rest)
        self.room = Room(service, device, here, rest, wanted)
