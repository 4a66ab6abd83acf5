"""Saved contexts as files of the tree, `/contexts/OWNER/NAME.context`, under a limit of bytes for each owner.

They are the owner's to keep and to delete: unlike pages in `SavedPages`, none is dropped to make room for another. What
is forgotten leaves no version behind: it is what somebody has said.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing

import msgspec

from microkernel.errors import Invalid, NotFound, Overloaded
from microkernel.message import convert
from microkernel.service import Service
from microkernel.stream import Stream
from services.filesystem.messages import Stat
from services.inference.messages import Grammar

__all__ = ["ContextFiles", "SavedAnswer"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ENDING = ".context"
PIECE = 1 << 20  # bytes that are handed over at once


class SavedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer at rest: its context's bytes, and what the service has to know of it beside."""

    model: str
    kind: str
    title: str
    stop: list[str]
    continues: bool
    grammar: Grammar | None = None
    prompt_tokens: int
    context: bytes


class ContextFiles:
    """The saved contexts of all owners."""

    def __init__(self, service: Service, limit_bytes: int) -> None:
        """`service` is whose calls reach the tree; `limit_bytes` for each owner; 0 saves nothing."""
        self._service = service
        self._limit = limit_bytes

    async def save(self, owner: str, name: str, answer: SavedAnswer) -> int:
        """Write it, in place of one of that name; returns its bytes.

        Raises `Invalid`, `Overloaded` with the numbers where it does not fit, and what the tree raises.
        """
        path = _path(owner, name)
        content = await asyncio.to_thread(msgspec.msgpack.encode, answer)
        others = sum(size for other, size in await self.list(owner) if other != name)
        if others + len(content) > self._limit:
            raise Overloaded(
                f"the context takes {len(content)} bytes, and {max(0, self._limit - others)} of the {self._limit} "
                "bytes for contexts are free",
                remedy="forget one that is not needed, or raise contexts_bytes",
            )
        async with self._service.stream("filesystem.write_stream", path=path) as stream:
            sending = asyncio.create_task(_send(stream, content))
            try:
                await anext(stream)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        await self._service.call("filesystem.forget_versions", path=path)
        return len(content)

    async def load(self, owner: str, name: str) -> SavedAnswer:
        """The answer of that name; raises `NotFound`, and `Invalid` for a file that is none."""
        try:
            async with aclosing(self._service.stream("filesystem.read", path=_path(owner, name))) as pieces:
                content = b"".join([piece async for piece in pieces])
        except NotFound as error:
            raise _unknown(name) from error
        try:
            return await asyncio.to_thread(msgspec.msgpack.decode, content, type=SavedAnswer)
        except msgspec.DecodeError as error:
            raise Invalid(f"the context '{name}' is damaged, or of another version: {error}", field="name") from error

    async def list(self, owner: str) -> list[tuple[str, int]]:
        """Names and bytes of an owner's contexts, by name."""
        try:
            found = convert(await self._service.call("filesystem.list", path=f"/contexts/{owner}"), list[Stat])
        except NotFound:
            return []
        files = [(each.path.rpartition("/")[2], each.size or 0) for each in found]
        return [(file.removesuffix(ENDING), size) for file, size in files if file.endswith(ENDING)]

    async def forget(self, owner: str, name: str) -> None:
        """Delete one, with all its versions; raises `NotFound`."""
        path = _path(owner, name)
        try:
            await self._service.call("filesystem.remove", path=path)
        except NotFound as error:
            raise _unknown(name) from error
        await self._service.call("filesystem.forget_versions", path=path)


async def _send(stream: Stream, content: bytes) -> None:
    for place in range(0, len(content), PIECE):
        await stream.send(content[place : place + PIECE])
    await stream.finish()


def _path(owner: str, name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise Invalid(
            f"'{name[:100]}' is no name for a context: letters, digits, '.', '_' and '-', at most 100", field="name"
        )
    return f"/contexts/{owner}/{name}{ENDING}"


def _unknown(name: str) -> NotFound:
    return NotFound(f"no context is named '{name}'", field="name", remedy="see inference.contexts")
