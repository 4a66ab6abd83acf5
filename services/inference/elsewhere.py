"""The models that other nodes of the cluster answer with, beside those of this one."""

from __future__ import annotations

import asyncio

import msgspec

from microkernel.errors import MicrokernelError
from microkernel.message import convert
from microkernel.service import Service
from services.inference.messages import ListModels, LoadedModel

__all__ = ["with_others"]

PATIENCE = 2.0  # seconds for a node to tell


async def with_others(service: Service, here: list[LoadedModel]) -> list[LoadedModel]:
    """`here`, and what other nodes have that is not here, each once; a node that does not answer is left out."""
    nodes = sorted(each.node for each in service.nodes.answering(service.name))
    told = await asyncio.gather(*(_models_of(service, node) for node in nodes))
    known = {model.name: model for model in here}
    for models in told:
        for model in models:
            known.setdefault(model.name, model)
    return list(known.values())


async def _models_of(service: Service, node: str) -> list[LoadedModel]:
    try:
        found = await service.call(f"{service.name}.list@{node}", ListModels(), deadline=PATIENCE)
    except MicrokernelError as error:
        service.log.debug("node '%s' does not tell its models: %s", node, error)
        return []
    models = convert(found, list[LoadedModel], what=f"{service.name}.list")
    return [
        msgspec.structs.replace(model, device=f"{model.device}@{node}" if model.device else "", default=False)
        for model in models
    ]
