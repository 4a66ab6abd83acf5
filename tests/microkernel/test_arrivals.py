"""What has come and waits to be read: when it is taken, and by whom."""

from __future__ import annotations

import asyncio
import collections

import pytest
from twins import both, breath


@both
async def test_an_item_is_taken_by_the_await_and_one_that_is_never_awaited_is_not_lost(built):
    class Letters(built.Arrivals):
        async def first(self):
            await breath()
            return "later"

    letters = Letters()
    letters.items, letters.plain = collections.deque("abc"), -1
    task = asyncio.ensure_future(anext(letters))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one, other = anext(letters), anext(letters)
    assert [await other, await one, await anext(letters), await anext(letters)] == ["a", "b", "c", "later"]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await one
    letters.items.append("d")
    late = anext(letters)
    letters.items = None
    assert await late == "later"
