"""What answers messages: `Service`, and the marks that make a method reachable.

A service is a class with a `name` and marked methods. The kernel makes one object for each incarnation, gives it its
port, settings, log and folder, and calls `start`. Everything a service starts (tasks, timers, subscriptions) is owned
by its incarnation and ends with it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload
from weakref import WeakKeyDictionary

import msgspec

from microkernel.backlog import Overflow, overflow_of
from microkernel.balance import Balance
from microkernel.errors import Invalid
from microkernel.handlers import Continuation, Handler, HandlerKind, Marks, handler_of
from microkernel.message import Message, Nothing
from microkernel.subjects import check_pattern

if TYPE_CHECKING:
    import asyncio

    from microkernel.clock import Clock
    from microkernel.executor import Executor
    from microkernel.executors import Executors
    from microkernel.nodes import Nodes
    from microkernel.port import Port, Stream

__all__ = [
    "MOST_REPLICAS",
    "Continuation",
    "Handler",
    "HandlerKind",
    "Isolation",
    "Placement",
    "Restart",
    "Service",
    "Subscriber",
    "Timer",
    "every",
    "handlers_of",
    "handles",
    "on",
    "streams",
    "subscribers_of",
    "timers_of",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Found = TypeVar("Found")

DEADLINE = 60.0  # seconds; a handler that needs longer says so
CONCURRENCY = 256
QUEUE = 1024
CREDIT = 64
MOST_REPLICAS = 1024  # nodes on which one service is kept


class Restart(StrEnum):
    """Whether a service is started again after a crash, by the words of OTP.

    `transient` means the same as `permanent` here: OTP tells them apart by what happens when a process ends by itself
    without an error, and a service never does.
    """

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Isolation(StrEnum):
    """Where a service runs; its code is the same.

    `inline`: its handlers run in their callers' tasks. `task`: each call runs in a task of its own. `thread`: the
    service has a thread with a loop of its own. `process`: it has a process of its own, and may be killed.
    """

    INLINE = "inline"
    TASK = "task"
    THREAD = "thread"
    PROCESS = "process"


class Placement(StrEnum):
    """Which nodes of a cluster have a service, and who answers its calls.

    `home`: the node that was booted with it; other nodes call it there. `node`: each node has its own, and calls that,
    but for the handlers that are marked as `anywhere`: such a call goes to the node that suits best.
    """

    HOME = "home"
    NODE = "node"


class Subscriber(msgspec.Struct, frozen=True):
    """A method that gets events of a subject."""

    attribute: str
    subject: str
    group: str | None
    queue: int
    overflow: Overflow


class Timer(msgspec.Struct, frozen=True):
    """A method that is called every `seconds`, counted from start to start."""

    attribute: str
    seconds: float


def _mark(kind: HandlerKind, function: Any, **marks: Any) -> Any:
    def decorate(function: Any) -> Any:
        function.__microkernel_handler__ = Marks(kind=kind, **marks)
        return function

    return decorate if function is None else decorate(function)


@overload
def handles(function: Function, /) -> Function: ...
@overload
def handles(
    *,
    name: str | None = None,
    concurrency: int = CONCURRENCY,
    queue: int = QUEUE,
    deadline: float | None = DEADLINE,
    idempotent: bool = False,
    anywhere: bool = False,
    where: str = "",
) -> Callable[[Function], Function]: ...
def handles(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    concurrency: int = CONCURRENCY,
    queue: int = QUEUE,
    deadline: float | None = DEADLINE,
    idempotent: bool = False,
    anywhere: bool = False,
    where: str = "",
) -> Any:
    """Make an async method reachable as `<service>.<method>`.

    At most `concurrency` calls run at a time and `queue` more wait; past that callers are told `OVERLOADED`. A call
    that names no deadline gets `deadline` seconds; None lets it run as long as it likes. A call that is answered
    `anywhere` may be answered by another node that has the service, and where a field `where` of the message names
    something (a model), by one that has that.
    """
    return _mark(
        HandlerKind.CALL,
        function,
        name=name,
        concurrency=concurrency,
        queue=queue,
        deadline=deadline,
        credit=0,
        idempotent=idempotent,
        anywhere=anywhere,
        where=where,
    )


@overload
def streams(function: Function, /) -> Function: ...
@overload
def streams(
    *,
    name: str | None = None,
    concurrency: int = CONCURRENCY,
    queue: int = QUEUE,
    deadline: float | None = None,
    credit: int = CREDIT,
    anywhere: bool = False,
    where: str = "",
    continues: Callable[[Any], Continuation | None] | None = None,
) -> Callable[[Function], Function]: ...
def streams(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    concurrency: int = CONCURRENCY,
    queue: int = QUEUE,
    deadline: float | None = None,
    credit: int = CREDIT,
    anywhere: bool = False,
    where: str = "",
    continues: Callable[[Any], Continuation | None] | None = None,
) -> Any:
    """Make an async generator reachable as a stream; it runs only as far as its reader has asked for.

    `credit` is how many items a reader on a link asks for ahead, and, where the generator takes a last parameter
    `inputs: Inputs[T]`, how many items that the reader sends may wait for it. `continues` makes of its message how it
    goes on at another node when its own dies (None: not at all): then the reader notices a pause and nothing else.
    """
    return _mark(
        HandlerKind.STREAM,
        function,
        name=name,
        concurrency=concurrency,
        queue=queue,
        deadline=deadline,
        credit=credit,
        idempotent=False,
        anywhere=anywhere,
        where=where,
        continues=continues,
    )


def on(
    subject: str,
    *,
    group: str | None = None,
    queue: int = QUEUE,
    overflow: Overflow | str = Overflow.DROP_OLDEST,
) -> Callable[[Function], Function]:
    """Have the method called with each event of `subject` (`a.*`, `a.>`); of one `group` a single member gets it.

    Events wait in a queue of `queue`; past that `overflow` says what happens. What is dropped is logged and told on
    `dead.letter`, and so is an event for which the method raises; a subscription that is cut is a crash of the service.
    """
    policy = overflow_of(overflow)

    def decorate(function: Function) -> Function:
        function.__microkernel_subject__ = (subject, group, queue, policy)  # type: ignore[attr-defined] # ours to mark
        return function

    return decorate


def every(seconds: float) -> Callable[[Function], Function]:
    """Have the method called every `seconds`, never twice at once; if it raises, the service has crashed.

    A call that takes longer than that puts the next ones off; none is made up for.
    """
    if seconds <= 0:
        raise Invalid(f"@every({seconds}): the interval must be above 0")

    def decorate(function: Function) -> Function:
        function.__microkernel_timer__ = seconds  # type: ignore[attr-defined] # ours to mark
        return function

    return decorate


class Service:
    """Base of all services: subclass it, name it, mark methods.

    `needs` are services without which this one cannot work: it starts after them and, unless the strategy is
    `one_for_one`, is restarted with them. `uses` are services that it calls when they are there: it starts after them
    where no circle forbids it, and goes on without them. `("*",)` gives the right to call everything; it waits for
    nobody, and stops before all but those who use it. A service can call itself, what it needs and what it uses,
    and nothing else.

    `isolation` says where it runs; the node's configuration may say something else (`[isolation]`).

    A service may have several `instances`, each with its own object, folder and tasks; one that crashes is replaced
    while the others go on. `balance` says which of them gets a call; with `hash` it is `balance_field` of the message
    that decides, or who calls where there is no such field. `@on` methods of all instances get an event, or of a
    `group` one; the configuration may say another number (`[instances]`).

    In a cluster, `placement` says which nodes have it; the configuration may say something else (`[placement]`). With
    `replicas`, the cluster keeps it on so many nodes that have it installed, whichever they are, and on another one
    when one of them is gone (`[replicas]`); such a service keeps nothing that its others would need.

    A service that is `essential` makes the boot fail when it cannot start. `start_timeout` is how many seconds `start`
    may take; `drain_timeout` how many seconds running calls have to end before they are ended. On a node that is
    being restored (`restoring`) nothing of a service runs but its handlers: see `portable`.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...] | list[str]] = ()
    uses: ClassVar[tuple[str, ...] | list[str]] = ()
    Settings: ClassVar[type[Message]] = Nothing
    restart_policy: ClassVar[Restart | str] = Restart.PERMANENT
    isolation: ClassVar[Isolation | str] = Isolation.INLINE
    instances: ClassVar[int] = 1
    balance: ClassVar[Balance | str] = Balance.ROUND_ROBIN
    balance_field: ClassVar[str] = ""
    placement: ClassVar[Placement | str] = Placement.HOME
    replicas: ClassVar[int] = 0
    essential: ClassVar[bool] = False
    start_timeout: ClassVar[float] = 10.0
    drain_timeout: ClassVar[float] = 5.0
    restoring: ClassVar[bool] = False

    settings: Any
    port: Port
    clock: Clock
    node: str
    incarnation: int
    instance: int
    log: logging.Logger
    state_dir: Path
    executors: Executors
    nodes: Nodes
    _spawn: Callable[..., asyncio.Task[Any]]

    async def start(self) -> None:
        """Make ready what the handlers need; nobody calls them before this has returned."""

    async def ready(self) -> None:
        """Return when the service can do its whole job; it may take long. Raises if it never will."""

    async def stop(self) -> None:
        """Let go of what `start` took; the handlers have ended by now."""

    async def call(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Any:
        """`Port.call` of this service's own port."""
        return await self.port.call(
            to, message, deadline=deadline, priority=priority, idempotency_key=idempotency_key, **fields
        )

    def stream(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        **fields: Any,
    ) -> Stream:
        """`Port.stream` of this service's own port."""
        return self.port.stream(to, message, deadline=deadline, priority=priority, **fields)

    async def send(self, to: str, message: Any = None, /, **fields: Any) -> None:
        """`Port.send` of this service's own port."""
        await self.port.send(to, message, **fields)

    def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """Tell all subscribers of `subject`; never waits."""
        self.port.publish(subject, message, **fields)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` as a task of this service: cancelled when it stops; if it raises, the service has crashed."""
        return self._spawn(work, name)

    def executor(self, device: str) -> Executor:
        """The compute threads of a device, such as `cpu0`. Raises `NotFound`."""
        return self.executors.get(device)


def _looked_at_once(look: Callable[[type[Service]], Found]) -> Callable[[type[Service]], Found]:
    """Keep what was found on a class as long as the class: signatures are slow to read, and each boot asks anew."""
    known: WeakKeyDictionary[type[Service], Found] = WeakKeyDictionary()

    @functools.wraps(look)
    def found(kind: type[Service]) -> Found:
        if kind not in known:
            known[kind] = look(kind)
        return known[kind]

    return found


@_looked_at_once
def handlers_of(kind: type[Service]) -> tuple[Handler, ...]:
    """All handlers of a service class; raises `Invalid` that names the method whose signature does not fit."""
    handlers = [
        handler_of(kind, attribute, member, member.__microkernel_handler__)
        for attribute, member in inspect.getmembers(kind, inspect.isfunction)
        if hasattr(member, "__microkernel_handler__")
    ]
    for handler in handlers:
        if hasattr(Service, handler.attribute):
            raise Invalid(
                f"{kind.__name__}.{handler.attribute} hides Service.{handler.attribute}",
                remedy=f"rename the method and keep the address: @handles(name='{handler.attribute}')",
            )
    names = [handler.name for handler in handlers]
    for name in names:
        if names.count(name) > 1:
            raise Invalid(f"{kind.__name__} has two handlers named '{name}'")
    return tuple(handlers)


@_looked_at_once
def subscribers_of(kind: type[Service]) -> tuple[Subscriber, ...]:
    """All `@on` methods of a service class; raises `Invalid` for one that is not async or has no subject."""
    subscribers = tuple(
        Subscriber(attribute, *member.__microkernel_subject__)
        for attribute, member in inspect.getmembers(kind, inspect.isfunction)
        if hasattr(member, "__microkernel_subject__")
    )
    for subscriber in subscribers:
        where = f"{kind.__name__}.{subscriber.attribute}"
        _require_async(kind, subscriber.attribute, f"{where}: @on")
        try:
            check_pattern(subscriber.subject)
        except Invalid as error:
            raise Invalid(f"{where}: @on: {error.message}") from error
    return subscribers


@_looked_at_once
def timers_of(kind: type[Service]) -> tuple[Timer, ...]:
    """All `@every` methods of a service class; raises `Invalid` for one that is not async."""
    timers = tuple(
        Timer(attribute, member.__microkernel_timer__)
        for attribute, member in inspect.getmembers(kind, inspect.isfunction)
        if hasattr(member, "__microkernel_timer__")
    )
    for timer in timers:
        _require_async(kind, timer.attribute, f"{kind.__name__}.{timer.attribute}: @every")
    return timers


def _require_async(kind: type[Service], attribute: str, mark: str) -> None:
    if not inspect.iscoroutinefunction(getattr(kind, attribute)):
        raise Invalid(f"{mark} needs an async function")
