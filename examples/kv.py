"""A key-value store as a plugin: python -m microkernel boot --service examples/kv.py"""

from collections.abc import AsyncIterator

from microkernel import Event, Message, Service, every, handles, on, streams


class Put(Message):
    key: str
    value: str


class Get(Message):
    key: str


class KeyValue(Service):
    """Keeps values by key."""

    name = "kv"

    async def start(self) -> None:
        self.values: dict[str, str] = {}

    @handles  # reachable as kv.put; the schema comes from the annotations
    async def put(self, message: Put) -> None:
        self.values[message.key] = message.value
        self.publish("kv.changed", key=message.key)

    @handles(idempotent=True)
    async def get(self, message: Get) -> str | None:
        return self.values.get(message.key)

    @streams(credit=64)  # runs only as far as its reader has asked for
    async def scan(self) -> AsyncIterator[tuple[str, str]]:
        for item in list(self.values.items()):
            yield item

    @on("memory.pressure")  # subjects: "a.*" is one name, "a.>" all that follow
    async def shrink(self, event: Event) -> None:
        self.log.info("%s: letting go of %d values", event.subject, len(self.values))
        self.values.clear()

    @every(60.0)  # if it raises, the service has crashed and is restarted
    async def tell(self) -> None:
        self.log.info("%d values", len(self.values))
