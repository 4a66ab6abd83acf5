"""Those who are told what changes, each with a queue of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator

from microkernel.errors import Overloaded
from services.filesystem.messages import Change
from services.filesystem.paths import TreePath

__all__ = ["Watchers", "folders_of"]

LIMIT = 4096  # changes that wait for one reader
FOLDERS = 8  # names of folders in a subject, which has 16 at the most
LONGEST = 180  # characters: a whole subject has 256 at the most
_ODD = re.compile(r"[^A-Za-z0-9_\-]")


class Watchers:
    """Whoever reads what changes at a path."""

    def __init__(self) -> None:
        self._queues: dict[asyncio.Queue[Change | None], TreePath] = {}

    def tell(self, change: Change) -> None:
        """Something has changed; who is too far behind is cut off."""
        if not self._queues:
            return
        places = [path_in(change.path)] + ([path_in(change.before)] if change.before is not None else [])
        for queue, path in list(self._queues.items()):
            if any(place.is_within(path) or path.is_within(place) for place in places):
                if queue.qsize() < LIMIT:
                    queue.put_nowait(change)
                else:
                    del self._queues[queue]
                    queue.put_nowait(None)

    async def changes(self, path: TreePath) -> AsyncGenerator[Change, None]:
        """What changes at a path, below it, or to a folder that it is in. Raises `Overloaded` for who falls behind."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._queues[queue] = path
        last = 0
        try:
            while (change := await queue.get()) is not None:
                last = change.version
                yield change
        finally:
            self._queues.pop(queue, None)
        raise Overloaded(
            f"more than {LIMIT} changes waited to be read", remedy=f"watch again, since version {last}", retry_after=0.0
        )


def folders_of(change: Change) -> str:
    """What the subject of a change ends with: the names of the folder that it is in, as `.data.reports`.

    What a subject's name may not have, is written as `:` and its number in hex: `my data` is `my:20data`.
    """
    subject = ""
    for name in path_in(change.path).parent.names[:FOLDERS]:
        longer = f"{subject}.{_ODD.sub(lambda odd: f':{ord(odd[0]):x}', name)}"
        if len(longer) > LONGEST:
            break
        subject = longer
    return subject


def path_in(text: str) -> TreePath:
    """A path that was parsed once."""
    return TreePath(tuple(name for name in text.split("/") if name))
