"""Services for the tests of isolation: at the top of a module, where another process finds them."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from microkernel import Message, Service, current_call, every, handles, on, streams
from microkernel.audit import Act
from microkernel.buffers import Array
from microkernel.capability import Rights
from microkernel.errors import NotFound
from microkernel.executor import Executor
from microkernel.inputs import Inputs
from microkernel.message import calling_service
from microkernel.portable import EntryPiece, Export

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Put(Message):
    key: str
    value: bytes = b""


class Entry(Message):
    key: str
    value: bytes
    score: float = 0.0


class Weights(Message):
    name: str
    values: Array


class Count(Message):
    to: int
    wait: float = 0.0


class Seconds(Message):
    seconds: float


class StoreSettings(Message):
    greeting: str = "hello"
    limit: int = 3


class Partner(Service):
    """What the store calls: always on the kernel's own loop."""

    name = "partner"
    isolation = "inline"

    async def start(self) -> None:
        self.notes: list[str] = []
        self.closed = asyncio.Event()

    @handles
    async def double(self, message: Count) -> Entry:
        return Entry(key=str(2 * message.to), value=b"\x00\xff", score=float("inf"))

    @handles
    async def who(self) -> dict[str, Any]:
        call = current_call()
        return {
            "caller": call.caller,
            "user": call.user,
            "priority": call.priority,
            "timed": call.deadline is not None,
            "chain": list(call.chain),
            "trace": None if call.trace is None else call.trace.trace_id,
        }

    @handles
    async def note(self, message: Put) -> None:
        self.notes.append(message.key)
        self.publish("partner.noted", key=message.key)

    @handles
    async def missing(self) -> None:
        raise NotFound("there is no such thing", remedy="look elsewhere")

    @handles(deadline=None)
    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.publish("partner.let_go")

    @streams(credit=4)
    async def add_up(self, inputs: Inputs[Count]) -> AsyncIterator[int]:
        total = 0
        async for number in inputs:
            total += number.to
            yield total

    @streams
    async def count(self, message: Count) -> AsyncIterator[Entry]:
        try:
            for number in range(message.to):
                yield Entry(key=str(number), value=b"")
        finally:
            self.closed.set()


class Secret(Service):
    """What the store has no right to call."""

    name = "secret"

    @handles
    async def read(self) -> str:
        return "secret"


class Store(Service):
    """A service that does everything a service can do."""

    name = "store"
    needs = ("partner",)
    Settings = StoreSettings
    drain_timeout = 0.2

    async def start(self) -> None:
        self.data: dict[str, bytes] = {}
        self.ticks = 0
        self.heard: list[Any] = []
        self.made = 0
        self.closed = 0
        self.running = self.most = 0
        self.log.info("started with %s", self.settings.greeting)
        (self.state_dir).mkdir(parents=True, exist_ok=True)
        (self.state_dir / "incarnation").write_text(str(self.incarnation))

    async def ready(self) -> None:
        await asyncio.sleep(0)
        self.publish("store.said", what="ready")

    async def stop(self) -> None:
        (self.state_dir / "stopped").write_text(str(self.incarnation))

    @handles
    async def put(self, message: Put) -> None:
        self.data[message.key] = message.value
        self.publish("store.changed", key=message.key)

    @handles(idempotent=True)
    async def get(self, message: Put) -> Entry:
        try:
            return Entry(key=message.key, value=self.data[message.key], score=float("-inf"))
        except KeyError:
            raise NotFound(f"no entry '{message.key}'", remedy="put it first", field="key") from None

    @handles
    async def entries(self) -> list[Entry]:
        return [Entry(key=key, value=value) for key, value in self.data.items()]

    @handles
    async def weights(self, message: Weights) -> Weights:
        return Weights(message.name, Array(bytes(message.values)[::-1], message.values.dtype, message.values.shape))

    @handles
    async def array(self) -> Any:
        return [Array(b"abcd", "int16", (2,))]

    @handles
    async def plain(self, message: dict[str, Any]) -> Any:
        return {"given": message, "bytes": b"\x00\xff", "number": 1.5}

    @handles
    async def self_description(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "thread": threading.get_ident(),
            "incarnation": self.incarnation,
            "node": self.node,
            "greeting": self.settings.greeting,
            "limit": self.settings.limit,
            "folder": str(self.state_dir),
            "name": self.name,
        }

    @handles
    async def who(self) -> dict[str, Any]:
        call = current_call()
        left = None if call.deadline is None else call.deadline - self.clock.now()
        return {
            "caller": call.caller,
            "priority": call.priority,
            "left": left,
            "chain": list(call.chain),
            "trace": None if call.trace is None else call.trace.trace_id,
        }

    @handles
    async def caller(self) -> str:
        return calling_service()

    @handles
    async def fail(self) -> None:
        raise ZeroDivisionError("by zero")

    @handles
    async def exit(self) -> None:
        sys.exit(3)

    @handles
    async def unsayable(self) -> Any:
        return threading.Lock()

    @handles(deadline=None, concurrency=1000)
    async def hang(self) -> None:
        self.publish("store.said", what="hangs")
        try:
            await asyncio.Event().wait()
        finally:
            self.closed += 1
            self.publish("store.said", what="let go")

    @handles(concurrency=1, queue=8)
    async def alone(self, message: Seconds) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(message.seconds)
        finally:
            self.running -= 1
        return self.most

    @handles
    async def block(self, message: Seconds) -> str:
        time.sleep(message.seconds)  # noqa: ASYNC251 - that is the point
        return "done"

    @handles
    async def set_variable(self) -> str:
        VARIABLE.set("of the handler")
        asyncio.current_task().set_name("renamed")
        return VARIABLE.get()

    @streams(credit=4)
    async def count(self, message: Count) -> AsyncIterator[Entry]:
        try:
            for number in range(message.to):
                self.made += 1
                await asyncio.sleep(message.wait)
                yield Entry(key=str(number), value=b"\xff")
        finally:
            self.closed += 1
            self.publish("store.said", what="stream closed")

    @streams(credit=4)
    async def add_up(self, message: Count, inputs: Inputs[Count]) -> AsyncIterator[int]:
        total = message.to
        async for number in inputs:
            total += number.to
            yield total

    @handles
    async def add_up_at_partner(self, message: Count) -> list[int]:
        async with self.stream("partner.add_up") as totals:

            async def send() -> None:
                for number in range(message.to):
                    await totals.send({"to": number})
                await totals.finish()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                return [total async for total in totals]

    @streams
    async def break_off(self) -> AsyncIterator[int]:
        yield 1
        raise NotFound("the second one is gone")

    @handles
    async def counters(self) -> dict[str, int]:
        return {"made": self.made, "closed": self.closed, "ticks": self.ticks, "heard": len(self.heard)}

    @handles
    async def ask_partner(self, message: Count) -> str:
        entry = await self.call("partner.double", to=message.to)
        assert entry.value == b"\x00\xff"
        return f"{entry.key} {entry.score}"

    @handles
    async def who_asks(self) -> Any:
        return await self.call("partner.who")

    @handles
    async def ask_missing(self) -> None:
        await self.call("partner.missing")

    @handles
    async def ask_secret(self) -> str:
        return await self.call("secret.read")

    @handles
    async def on_behalf(self, message: dict[str, str]) -> str:
        """What somebody with few rights may not do, done with a port that was narrowed to them."""
        few = Rights(allow=("partner.who",), publish=("few.*",), subscribe=("few.*",))
        port = self.port.narrow(caller="guest of store", rights=few, user="ana")
        match message:
            case {"call": to}:
                return str(await port.call(to))
            case {"monitor": name}:
                return str(await anext(port.monitor(name)))
            case {"hear": subject}:
                return str(await anext(port.subscribe(subject)))
            case _:
                port.denied(Act.CONNECT, "the door", "its certificate is old", peer="10.0.0.7")
                return "shown out"

    @handles(deadline=None)
    async def ask_hang(self) -> None:
        self.publish("store.said", what="asks")
        await self.call("partner.hang")

    @handles
    async def sum_of(self, message: Count) -> int:
        return sum([int(entry.key) async for entry in self.stream("partner.count", to=message.to)])

    @handles
    async def first_of(self, message: Count) -> str:
        async with self.stream("partner.count", to=message.to) as entries:
            async for entry in entries:
                return entry.key
        return "none"

    @handles
    async def send_note(self, message: Put) -> None:
        await self.send("partner.note", key=message.key)

    @handles
    async def tell(self, message: dict[str, Any]) -> None:
        self.publish(message["subject"], what=message.get("what"))

    @handles
    async def hear_once(self, message: dict[str, Any]) -> Any:
        async with self.port.subscribe(message["subject"]) as events:
            self.publish("store.said", what="listens")
            async for event in events:
                return {"subject": event.subject, "body": event.body, "offset": event.offset}
        return None

    @handles
    async def tell_when_there_is_room(self, message: dict[str, Any]) -> None:
        await self.port.deliver(message["subject"], number=message["number"])

    @handles
    async def watch_partner(self) -> str:
        async with self.port.monitor("partner") as changes:
            async for change in changes:
                return f"{type(change).__name__} {change.service} {change.incarnation}"
        return "nothing"

    @handles
    async def run_in(self, message: dict[str, Any]) -> int:
        executor = self.executor(message["device"])
        return await executor.run(pow, 2, 9) + await executor.finish(pow, 2, 9)

    @handles
    async def run_own(self) -> int:
        executor = Executor("own")
        await self.executors.add(executor)
        try:
            return await self.executor("own").run(pow, 2, 10)
        finally:
            await self.executors.remove("own")

    @handles
    async def spawn_failure(self) -> None:
        async def work() -> None:
            raise ValueError("the worker is dead")

        self.spawn(work(), name="work")

    @handles
    async def spawn_work(self) -> None:
        async def work() -> None:
            try:
                self.publish("store.said", what="works")
                await asyncio.Event().wait()
            finally:
                (self.state_dir / "work ended").touch()

        self.spawn(work(), name="work")

    @handles
    async def warn(self) -> None:
        self.log.warning("beware of %s", "the dog")
        print("a word on standard output")  # noqa: T201

    @handles
    async def die(self, message: dict[str, Any]) -> None:
        how = message["how"]
        if how == "exit":
            os._exit(7)
        if how == "segfault":
            ctypes.string_at(0)
        os.kill(os.getpid(), getattr(signal, how))
        await asyncio.Event().wait()

    @on("store.heard")
    async def hear(self, event: Any) -> None:
        self.heard.append(event.body)
        self.publish("store.said", what=event.body["what"])

    @on("store.unbearable")
    async def cannot_hear(self, event: Any) -> None:
        raise NotFound("what was said is not known")

    @every(0.01)
    async def tick(self) -> None:
        self.ticks += 1
        if self.ticks == 3:
            self.publish("store.said", what="ticked")


class NeverStarts(Service):
    name = "never"
    start_timeout = 0.1
    restart_policy = "temporary"

    async def start(self) -> None:
        await asyncio.Event().wait()


class FailsToStart(Service):
    name = "fails"
    restart_policy = "temporary"

    async def start(self) -> None:
        raise NotFound("there is no database", remedy="install one")


class DiesAtStart(Service):
    name = "dies"
    restart_policy = "temporary"

    async def start(self) -> None:
        os._exit(9)


class Keeper(Service):
    """Has something to be backed up."""

    name = "keeper"

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        yield EntryPiece(name="a", size=1 << 20, content=b"1" * (1 << 19))
        yield EntryPiece(content=b"1" * (1 << 19))
        yield EntryPiece(name="b", content=b"2")
