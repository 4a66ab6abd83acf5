"""Items that the reader of a stream sends into it: a bounded queue between the two (hot: once an item).

A `@streams` handler that takes a parameter `inputs: Inputs[T]` can be talked to while it runs. The sender holds credit
for as many items as the handler takes ahead; when that is used up it waits until the handler has read some: a slow
handler slows its sender down. After the sender has finished, the iteration ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_args, get_origin

import msgspec

from microkernel.buffers import decode_custom
from microkernel.errors import Invalid, MicrokernelError, Overloaded, PreconditionFailed
from microkernel.message import convert, invalid_from

__all__ = ["Inputs", "input_type"]

T = TypeVar("T")


class Inputs(Generic[T]):
    """An async iterator of what the reader sends; for one handler."""

    __slots__ = ("_closed", "_finished", "_items", "_kind", "_limit", "_owed", "_reader", "_refusal", "_senders",
                 "on_room", "target")  # fmt: skip

    def __init__(self, target: str) -> None:
        """`target` is the handler, for the errors."""
        self.target = target
        self.on_room: Callable[[int], None] | None = None  # called with the number of items that there is room for now
        self._items: deque[Any] = deque()
        self._kind: Any = None
        self._limit = 1  # before the handler is known, one item may wait for it
        self._owed = 0  # items read that `on_room` has not been told of
        self._reader: asyncio.Future[None] | None = None
        self._senders: deque[asyncio.Future[None]] = deque()
        self._refusal: MicrokernelError | None = None
        self._finished = False
        self._closed = False

    # The handler's end

    def __aiter__(self) -> Inputs[T]:
        return self

    async def __anext__(self) -> T:
        if self._reader is not None:
            raise PreconditionFailed(f"somebody reads the inputs of {self.target} already")
        while not self._items:
            if self._finished:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        item: T = self._items.popleft()
        self._make_room()
        return item

    # The sender's end

    async def put(self, item: Any) -> None:
        """Send one item; waits while the handler has as many as it takes.

        Raises `Invalid` where the handler takes none, or not this, and `PreconditionFailed` after `finish` and after
        the stream's end.
        """
        while len(self._items) >= self._limit and not self._over():
            sender: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._senders.append(sender)
            try:
                await sender
            except BaseException:
                if sender.done() and not sender.cancelled():
                    self._wake_sender()  # the room that it was woken for is another's
                raise
        self.put_now(item)

    def put_now(self, item: Any) -> None:
        """`put` for who keeps to the credit; raises `Overloaded` for who does not."""
        if self._refusal is not None:
            raise self._refusal
        if self._over():
            raise PreconditionFailed(f"the stream of {self.target} takes no more items", may_have_run=False)
        if len(self._items) >= self._limit:
            raise Overloaded(f"{len(self._items)} items wait for {self.target}, which is its limit", retry_after=0.1)
        self._items.append(self._checked(item))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def finish(self) -> None:
        """No more items will come."""
        self._finished = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._wake_all()

    # The kernel's end

    def expect(self, kind: Any) -> None:
        """The handler takes items of type `kind`, None for none. Raises `Invalid` for one that was sent already."""
        if kind is None:
            self._refusal = Invalid(f"{self.target} takes no items from its reader", may_have_run=False)
            self._wake_all()
            if self._items:
                raise self._refusal
        elif self._kind is None:
            self._kind = kind
            self._items = deque(self._checked(item) for item in self._items)

    def open(self, limit: int) -> None:
        """The handler begins; it takes `limit` items ahead."""
        self._limit = limit
        self._wake_all()
        if self.on_room is not None:
            self.on_room(limit)

    def close(self) -> None:
        """The stream has ended: who waits to send is told."""
        self._closed = True
        self._items.clear()
        self._wake_all()

    def _over(self) -> bool:
        return self._finished or self._closed or self._refusal is not None

    def _checked(self, item: Any) -> Any:
        if self._kind is None:
            return item
        what = f"an item for {self.target}"
        if isinstance(item, msgspec.Raw):
            try:
                # By its type: what is bytes is text in JSON, and would stay that.
                return msgspec.json.decode(item, type=self._kind, dec_hook=decode_custom)
            except msgspec.ValidationError as error:
                raise invalid_from(error, what) from error
            except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
                raise Invalid(f"{what}: {error}") from error
        return convert(item, self._kind, what=what)

    def _make_room(self) -> None:
        self._owed += 1
        if self.on_room is not None and self._owed >= max(1, self._limit // 2):  # a message for each would double them
            owed, self._owed = self._owed, 0
            self.on_room(owed)
        self._wake_sender()

    def _wake_sender(self) -> None:
        while self._senders:
            sender = self._senders.popleft()
            if not sender.done():
                sender.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._senders:
            self._wake_sender()


def input_type(annotation: Any) -> Any:
    """The `T` of `Inputs[T]`; None where `annotation` is something else."""
    if annotation is Inputs:
        return Any
    return get_args(annotation)[0] if get_origin(annotation) is Inputs else None
