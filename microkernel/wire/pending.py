"""What a client has asked for and waits for, and what becomes of it when its link changes. Hot: once a message.

A session that goes on brings everything that it owes. Where the node has not kept the session, a call that never left,
or that has a key, is made again; the others end with `Unavailable`, which says that they may have run. Subscriptions go
on from the last event where the node still has the ones since, and end with `Gone` where it has not.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from microkernel.errors import Gone, MicrokernelError, PreconditionFailed, Unavailable, Unimplemented, from_report
from microkernel.wire import codec
from microkernel.wire.body import Body
from microkernel.wire.client_session import Forgotten
from microkernel.wire.connection import Connection
from microkernel.wire.inbox import Inbox

__all__ = ["AskAgain", "Pending"]

log = logging.getLogger("microkernel.client")


class AskAgain(Exception):
    """The node knows nothing of the call, or has its outcome under a key: it can be made again.

    `may_have_run` says whether it may have reached the node.
    """

    def __init__(self, *, may_have_run: bool = False) -> None:
        super().__init__("the call can be made again")
        self.may_have_run = may_have_run


class _Listening(msgspec.Struct):
    """A subscription, or a monitor, that stands; `offset` is that of the last event, None before the first."""

    inbox: Inbox
    subject: str
    group: str | None = None
    offset: int | None = None
    is_monitor: bool = False
    is_again: bool = False  # it was made once more, in another session


class Pending:
    """All that is open at a client's end of a session."""

    def __init__(self, connection: Connection, greeted: Callable[[codec.Hello], None]) -> None:
        """`greeted` hears of each link's limits."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, asyncio.Future[Body]] = {}
        self._keys: dict[int, str] = {}  # of calls
        self._inboxes: dict[int, Inbox] = {}
        self._listening: dict[int, _Listening] = {}
        self._pongs: dict[float, asyncio.Future[None]] = {}
        self._ping_numbers = itertools.count(1)
        self._epoch = ""
        self._expiry: asyncio.TimerHandle | None = None
        connection.handlers = {
            codec.Credit: self._on_credit,
            codec.Down: self._on_change,
            codec.End: self._on_end,
            codec.Error: self._on_error,
            codec.Event: self._on_event,
            codec.Hello: greeted,
            codec.Item: self._on_item,
            codec.Pong: self._on_pong,
            codec.Ready: self._on_ready,
            codec.Result: self._on_result,
            codec.Up: self._on_change,
        }

    async def answer(self, number: int, key: str | None, deadline: float | None) -> Body:
        """The result of call `number`. Raises its error, `TimeoutError` after `deadline` seconds, and `AskAgain`."""
        answer = self.expect(number)
        if key is not None:
            self._keys[number] = key
        try:
            async with asyncio.timeout(deadline):
                return await answer
        finally:
            self.leave(number)
            self._keys.pop(number, None)

    def expect(self, number: int) -> asyncio.Future[Body]:
        """The result of call `number`, which has no key; `leave` when it is not waited for any more."""
        answer: asyncio.Future[Body] = self._loop.create_future()
        self._calls[number] = answer
        return answer

    def leave(self, number: int) -> None:
        """Nobody waits for call `number` any more; nothing happens if it has ended."""
        if self._calls.pop(number, None) is not None:
            self._connection.session.cancel(number)
            self._connection.touch()

    async def pong(self) -> None:
        """Return when the server has received all that was sent before. Raises `AskAgain`."""
        number = float(next(self._ping_numbers))
        self._pongs[number] = pong = self._loop.create_future()
        self._connection.session.send_ping(number)
        self._connection.touch()
        try:
            await pong
        finally:
            self._pongs.pop(number, None)

    def stream(self, number: int) -> Inbox:
        """Where the items of stream `number` come in."""
        return self._inbox(number, self._cancel)

    def subscription(self, number: int, subject: str, group: str | None, since: int | None) -> Inbox:
        """Where the events of a subscription come in."""
        inbox = self._inbox(number, self._unsubscribe)
        self._listening[number] = _Listening(inbox, subject, group, since)
        return inbox

    def monitor(self, number: int, service: str) -> Inbox:
        """Where a service's coming and going comes in."""
        inbox = self._inbox(number, self._unsubscribe)
        self._listening[number] = _Listening(inbox, service, is_monitor=True)
        return inbox

    def lost(self, resume: float) -> None:
        """A link was lost; another is tried, and the session is kept by the node for `resume` seconds."""
        for pong in self._pongs.values():
            if not pong.done():
                pong.set_exception(AskAgain())
        if not resume:
            self._expired()
        elif self._expiry is None:
            self._expiry = self._loop.call_later(resume, self._expired)

    def end_all(self, why: Callable[[], MicrokernelError]) -> None:
        """Nothing will come any more."""
        self._stop_expiry()
        waiting: list[asyncio.Future[Any]] = [*self._calls.values(), *self._pongs.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(why())
        for inbox in list(self._inboxes.values()):
            inbox.end(why())
        self._calls.clear()
        self._pongs.clear()
        self._inboxes.clear()
        self._listening.clear()

    def _inbox(self, number: int, leave: Callable[[int, str | None], None]) -> Inbox:
        def left(why: str | None) -> None:
            if self._inboxes.pop(inbox.number, None) is not None:
                leave(inbox.number, why)  # its number by now
                self._connection.touch()

        inbox = self._inboxes[number] = Inbox(number, self._loop, left)
        return inbox

    def _cancel(self, number: int, why: str | None) -> None:
        self._connection.session.cancel(number, why)

    def _unsubscribe(self, number: int, _: str | None) -> None:
        self._listening.pop(number, None)
        self._connection.session.unsubscribe(number)

    # The link was lost

    def _expired(self) -> None:
        """The node has not kept the session by now."""
        forgotten = self._connection.session.given_up()
        for number, answer in list(self._calls.items()):
            if answer.done():
                continue
            if not forgotten.may_have_arrived(number):
                answer.set_exception(AskAgain())
            elif number not in self._keys:
                answer.set_exception(self._connection.why_lost(may_have_run=True))
        for number, inbox in list(self._inboxes.items()):
            if number not in self._listening:
                del self._inboxes[number]
                inbox.end(self._connection.why_lost(may_have_run=True))
                self._connection.session.cancel(number)

    def _begin_anew(self, forgotten: Forgotten, *, same_epoch: bool) -> None:
        """The session is a new one: what can be asked again is, the rest ends."""
        calls, inboxes, self._calls, self._inboxes = self._calls, self._inboxes, {}, {}
        listening, self._listening = self._listening, {}
        for number, answer in calls.items():
            if answer.done():
                continue
            arrived = forgotten.may_have_arrived(number)
            if not arrived or (number in self._keys and same_epoch):
                answer.set_exception(AskAgain(may_have_run=arrived))
            else:
                answer.set_exception(self._why_forgotten(same_epoch=same_epoch))
        for number, inbox in inboxes.items():
            if number not in listening:
                inbox.end(self._why_forgotten(same_epoch=same_epoch))
        for number, each in listening.items():
            self._listen_again(each, sent=forgotten.may_have_arrived(number), same_epoch=same_epoch)

    def _listen_again(self, each: _Listening, *, sent: bool, same_epoch: bool) -> None:
        session = self._connection.session
        if each.is_monitor:
            number = session.monitor(each.subject)
        elif each.group is not None or not sent:  # of a group, the others have taken what came meanwhile
            number = session.subscribe(each.subject, each.group)
        elif each.offset is None or not same_epoch:
            why = "none had come yet" if same_epoch else "the node was started anew"
            each.inbox.end(_lost_events(each, why))
            return
        else:
            number = session.subscribe(each.subject, None, since=each.offset)
            each.is_again = True
        each.inbox.number = number
        self._inboxes[number] = each.inbox
        self._listening[number] = each

    def _why_forgotten(self, *, same_epoch: bool) -> MicrokernelError:
        why = "it has not kept the session" if same_epoch else "it was started anew"
        url = self._connection.url
        return Unavailable(f"the link to {url} was lost, and the node is back: {why}", may_have_run=True)

    def _stop_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    # What comes

    def _on_ready(self, ready: codec.Ready) -> None:
        self._stop_expiry()
        same_epoch, self._epoch = ready.epoch == self._epoch, ready.epoch
        forgotten = self._connection.session.forgotten
        if forgotten is not None:
            self._begin_anew(forgotten, same_epoch=same_epoch)

    def _on_result(self, result: codec.Result) -> None:
        answer = self._calls.pop(result.id, None)
        if answer is not None and not answer.done():
            answer.set_result(result.body)

    def _on_error(self, frame: codec.Error) -> None:
        error = from_report(codec.report_of(frame))
        if frame.id is None:
            log.warning("a one-way message was not carried out, or an event not sent: %s", error)
        elif (answer := self._calls.pop(frame.id, None)) is not None:
            if not answer.done():
                # A node that leaves begins nothing new: the next link is for that.
                refused = self._connection.said_bye and error.may_have_run is False
                answer.set_exception(AskAgain() if refused and isinstance(error, Unavailable) else error)
        elif (inbox := self._inboxes.pop(frame.id, None)) is not None:
            listening = self._listening.pop(frame.id, None)
            if listening is not None and listening.is_again and isinstance(error, PreconditionFailed | Unimplemented):
                error = _lost_events(listening, error.message)
            inbox.end(error)

    def _on_item(self, item: codec.Item) -> None:
        if (inbox := self._inboxes.get(item.id)) is not None:
            inbox.put(item)

    def _on_event(self, event: codec.Event) -> None:
        if (listening := self._listening.get(event.id)) is not None:
            listening.offset = event.offset
            listening.inbox.put(event)

    def _on_change(self, change: codec.Up | codec.Down) -> None:
        if (inbox := self._inboxes.get(change.id)) is not None:
            inbox.put(change)

    def _on_credit(self, credit: codec.Credit) -> None:
        if (inbox := self._inboxes.get(credit.id)) is not None:
            inbox.rouse_senders()

    def _on_end(self, end: codec.End) -> None:
        if (inbox := self._inboxes.pop(end.id, None)) is not None:
            self._listening.pop(end.id, None)
            inbox.end(None)

    def _on_pong(self, pong: codec.Pong) -> None:
        if (waiter := self._pongs.pop(pong.ts, None)) is not None and not waiter.done():
            waiter.set_result(None)


def _lost_events(listening: _Listening, why: str) -> Gone:
    return Gone(f"events of {listening.subject} were lost with the link: {why}", remedy="subscribe again")
