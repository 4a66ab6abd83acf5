"""A request acts with the rights and the name of its token, and with no more."""

from __future__ import annotations

import openai
import pytest

from microkernel.capability import Identity, Rights

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def rights(site, monkeypatch) -> dict[str, Identity]:
    """More tokens than the node's own."""
    known: dict[str, Identity] = {}
    own = site.system.kernel.token.authenticate
    monkeypatch.setattr(site.system.kernel.token, "authenticate", lambda token: known.get(token) or own(token))
    return known


async def test_an_answer_belongs_to_who_asked(site, rights):
    rights["mk-ana"] = Identity("ana", Rights(allow=("inference.chat",)))
    async with site.openai("mk-ana") as client:
        await client.chat.completions.create(model="beta", messages=HELLO, user="somebody else")
    assert site.script.asked[0].owner == "ana"
    assert site.script.calls[0].user == "ana"
    assert site.script.calls[0].caller == "http ana"


async def test_rights_that_do_not_cover_a_route_deny_it(site, rights):
    rights["mk-bob"] = Identity("bob", Rights(allow=("inference.list",)))
    async with site.openai("mk-bob") as client:
        assert [model.id async for model in client.models.list()]
        with pytest.raises(openai.PermissionDeniedError, match="no right to call inference.chat"):
            await client.chat.completions.create(model="beta", messages=HELLO)
    assert site.script.asked == []
