"""`GET /v1/models` and `GET /v1/models/{id}`: the models that answer."""

from __future__ import annotations

from aiohttp import web

from microkernel.errors import NotFound, Unavailable
from microkernel.message import convert
from services.gateway.door import Visitor, visitor_of
from services.gateway.errors_http import answer_for, error_response
from services.gateway.openai_answer import ANSWERS, model_json, models_json
from services.inference.messages import LoadedModel

__all__ = ["list_models", "loaded_models", "model_not_found", "show_model"]


async def list_models(request: web.Request) -> web.Response:
    """All models that can be asked, the default one first."""
    models = await loaded_models(visitor_of(request))
    return web.Response(body=models_json(models), content_type="application/json")


async def show_model(request: web.Request) -> web.Response:
    """One model. Of one that is loading or has failed `UNAVAILABLE` says why."""
    name = request.match_info["name"]
    models = {model.name: model for model in await loaded_models(visitor_of(request))}
    model = models.get(name)
    if model is None:
        known = ", ".join(sorted(models)) or "none"
        error = NotFound(f"no model is named '{name[:256]}'", field="model", remedy=f"models here: {known}")
        return error_response(answer_for(error, code="model_not_found"))
    if model.state not in ANSWERS:
        why = f": {model.why}" if model.why else ""
        raise Unavailable(f"the model '{name}' is {model.state}{why}", service="inference", retry_after=1.0)
    return web.Response(body=model_json(model), content_type="application/json")


async def model_not_found(visitor: Visitor, error: NotFound) -> web.Response:
    """Of the things that may not be there, tell whether it is the model or what would run it."""
    await loaded_models(visitor)
    error.field = error.field or "model"
    return error_response(answer_for(error, code="model_not_found"))


async def loaded_models(visitor: Visitor) -> list[LoadedModel]:
    """All models that inference knows. Raises `Unavailable` where there is no inference at all."""
    try:
        found = await visitor.port.call("inference.list", everywhere=True, trace=visitor.trace)
    except NotFound as error:
        raise Unavailable("this node runs no inference", service="inference") from error
    return convert(found, list[LoadedModel], what="inference.list")
