"""All lines of the benchmark, with the goals that we have set ourselves."""

from __future__ import annotations

from benchmarks.measure import Measure
from benchmarks.messages import idle, open_loop
from benchmarks.messages.line import Contender, Goal, Line, Question, Running, ask

__all__ = ["LINES"]

HERE = "benchmarks.messages"
OURS = "microkernel"
DEPTHS = (64, 1024)


def _millions(name: str, what: str = "M/s") -> Measure:
    return Measure(name, what, less_is_better=False, scale=1e-6)


def _thousands(name: str, what: str = "k/s") -> Measure:
    return Measure(name, what, less_is_better=False, scale=1e-3)


def _micros(name: str) -> Measure:
    return Measure(name, "us", scale=1e6)


def _millis(name: str) -> Measure:
    return Measure(name, "ms", scale=1e3)


BARE = Contender(
    "bare await", "the handler's coroutine, awaited: no gate, no name, no rights", f"{HERE}.in_process:Bare"
)
ANYIO = Contender(
    "anyio streams",
    "a request and a reply through memory object streams, a task that serves",
    f"{HERE}.call_peers:AnyioStreams",
    packages={"anyio": "anyio"},
)
XOSCAR = Contender(
    "xoscar actor",
    "an actor, asked by another one of the same pool and process",
    f"{HERE}.call_peers:Xoscar",
    packages={"xoscar": "xoscar"},
)
PYKKA = Contender(
    "pykka ask",
    "an actor on a thread of its own, asked from another thread",
    f"{HERE}.call_peers:Pykka",
    packages={"pykka": "pykka"},
)
NODE = Contender(
    OURS,
    "a node and a client, a process each; calls over one link of the protocol mk.v1",
    f"{HERE}.node_client:NodeClient",
    f"{HERE}.node:Node",
)
AIOHTTP = Contender(
    "aiohttp echo",
    "a websocket that sends back what comes: no calls, no names, no JSON",
    f"{HERE}.aiohttp_peer:EchoClient",
    f"{HERE}.aiohttp_peer:EchoServer",
)
NATS = Contender(
    "nats-py",
    "two clients in Python, with the server in Go between them",
    f"{HERE}.nats_peer:NatsClient",
    f"{HERE}.nats_peer:NatsResponder",
    packages={"nats": "nats-py"},
)

TENSORS = Contender(
    OURS,
    "a node and a client, a process each; numpy arrays in binary frames of mk.v1",
    f"{HERE}.tensors:TensorClient",
    f"{HERE}.tensors:TensorNode",
    requires="microkernel.buffers:Array",
)
BESIDE_TENSORS = Contender(
    OURS,
    "calls on one link, and on another one a tensor of 1 MiB a hundred times a second",
    f"{HERE}.node_client:NodeClient",
    f"{HERE}.tensors:TensorNode",
    f"{HERE}.tensors:TensorTraffic",
    requires="microkernel.buffers:Array",
)

CALL_GOALS = (
    Goal("calls", 2.5),
    Goal("calls", 1 / 3, "bare await"),
    Goal("calls", 2.0, "xoscar actor"),
    Goal("calls", 50.0, "pykka ask"),
    Goal("calls", 6.0, "anyio streams"),
)


def _round_trips(running: Running, is_quick: bool) -> dict[str, float]:
    """The times of single calls; and how long both ends had a processor for one, which waking up does not change."""
    assert running.server is not None
    ends = (running.client, running.server)
    before = sum(each.processor_time() for each in ends)
    found = dict(running.client.ask("round_trips", seconds=0.05 if is_quick else 1.0))
    after = sum(each.processor_time() for each in ends)
    count = found.pop("count")
    return {**found, "processor": (after - before) / count}


def _calls_and_replies(depth: int) -> Question:
    """Calls in flight all the time; a call is two messages."""
    calls = ask("calls", depth=depth)

    def question(running: Running, is_quick: bool) -> dict[str, float]:
        found = calls(running, is_quick)["calls"]
        return {"calls": found, "messages": 2 * found}

    return question


def _pipelined(depth: int) -> Line:
    return Line(
        name=f"pipelined {depth}",
        measures={
            "calls": _thousands(f"websocket calls, {depth} in flight"),
            "messages": _millions(f"the same in messages, {depth} in flight"),
        },
        contenders=(NODE, NATS, AIOHTTP),
        question=_calls_and_replies(depth),
        goals=(Goal("messages", 1.0), Goal("calls", 5.0, "nats-py")),
    )


def _tensors(name: str, what: str, count: int) -> Line:
    return Line(
        name=f"tensor {name}",
        measures={"tensors": Measure(f"tensors of 1 MiB, {what}", "MiB/s", less_is_better=False, scale=2**-20)},
        contenders=(TENSORS, AIOHTTP),
        question=ask("tensors", count=count),
        goals=(Goal("tensors", 0.9, "aiohttp echo"),),
    )


def _open_loop(name: str, where: str, question: Question, contender: Contender = NODE) -> Line:
    return Line(
        name=f"open loop, {name}",
        measures={
            "load": _thousands(f"load offered, {where}"),
            "p50": _micros(f"latency p50, {where}"),
            "p99": _micros(f"latency p99, {where}"),
            "p999": _micros(f"latency p99.9, {where}"),
            "lag_p99": _millis(f"loop lag p99, {where}"),
            "lag_max": _millis(f"loop lag max, {where}"),
        },
        contenders=(contender,),
        question=question,
        rounds=3,
    )


LINES: tuple[Line, ...] = (
    Line(
        name="bound call",
        measures={"calls": _millions("bound call of a no-op")},
        contenders=(
            Contender(
                OURS,
                "method = port.method(name), then await method(message)",
                f"{HERE}.in_process:Bound",
                requires="microkernel.port:Port.method",
            ),
            BARE,
            XOSCAR,
            PYKKA,
            ANYIO,
        ),
        question=ask("calls"),
        goals=CALL_GOALS,
    ),
    Line(
        name="call by name",
        measures={"calls": _millions("call of a no-op by name")},
        contenders=(
            Contender(OURS, "await port.call(name, message)", f"{HERE}.in_process:ByName"),
            Contender(
                f"{OURS}, from a handler", "the same, asked by another handler", f"{HERE}.in_process:FromHandler"
            ),
            BARE,
            XOSCAR,
            PYKKA,
            ANYIO,
        ),
        question=ask("calls"),
        goals=CALL_GOALS,
    ),
    Line(
        name="publish",
        measures={"deliveries": _millions("events read by 10 subscribers")},
        contenders=(
            Contender(OURS, "port.publish; each subscriber reads with async for", f"{HERE}.in_process:Publisher"),
            Contender(
                f"{OURS}, in batches",
                "the same, read with Subscription.take",
                f"{HERE}.in_process:BatchPublisher",
                requires="microkernel.events:Subscription.take",
            ),
            Contender(
                "asyncio queues", "a queue for each of 10 readers: no subjects", f"{HERE}.in_process:QueuePublisher"
            ),
        ),
        question=ask("deliveries"),
        goals=(Goal("deliveries", 4.0),),
    ),
    Line(
        name="stream",
        measures={"items": _millions("items of a stream in the process")},
        contenders=(
            Contender(OURS, "async for item in port.stream(name)", f"{HERE}.in_process:Streams"),
            Contender("bare generator", "the handler's generator, iterated", f"{HERE}.in_process:BareStreams"),
        ),
        question=ask("items"),
        goals=(Goal("items", 4.0),),
    ),
    Line(
        name="offload",
        measures={
            "p50": _micros("offload, round trip p50"),
            "p99": _micros("offload, round trip p99"),
            "deep": _thousands("offload, 64 jobs in flight"),
        },
        contenders=(
            Contender(OURS, "await executor.run(function), 1 thread", f"{HERE}.offload:Ours"),
            Contender("run_in_executor", "await loop.run_in_executor(…), 1 thread", f"{HERE}.offload:ThreadPool"),
        ),
        question=ask("offloads", seconds=0.8, quick=0.1),
        goals=(
            Goal("p50", 1 / 1.2, "run_in_executor"),
            Goal("deep", 100.0),
            Goal("deep", 1.0, "run_in_executor"),
        ),
    ),
    Line(
        name="round trip",
        measures={
            "p50": _micros("websocket round trip p50"),
            "p99": _micros("websocket round trip p99"),
            "p999": _micros("websocket round trip p99.9"),
            "processor": _micros("websocket round trip, processor time of both ends"),
        },
        contenders=(NODE, AIOHTTP),
        question=_round_trips,
        goals=(Goal("p50", 1 / 1.25, "aiohttp echo"), Goal("p99", 1 / 1.5, "aiohttp echo")),
    ),
    *(_pipelined(depth) for depth in DEPTHS),
    Line(
        name="sends",
        measures={"sends": _millions("one-way messages over a websocket, handled")},
        contenders=(NODE, NATS),
        question=ask("sends"),
        goals=(Goal("sends", 1.0),),
    ),
    Line(
        name="items",
        measures={"items": _millions("items of a stream over a websocket")},
        contenders=(NODE,),
        question=ask("items"),
        goals=(Goal("items", 1.0),),
    ),
    *(_tensors(name, what, count) for name, what, count in (("call", "a call each", 1), ("stream", "a stream", 64))),
    Line(
        name="idle clients",
        measures={"memory": Measure("memory of an idle client", "KiB", scale=1 / 1024)},
        contenders=(
            Contender(OURS, "sessions of mk.v1 on plain sockets", f"{HERE}.idle:IdleNode", f"{HERE}.node:Node"),
            Contender(
                "aiohttp echo",
                "websockets without a protocol above them",
                f"{HERE}.idle:IdleAiohttp",
                f"{HERE}.aiohttp_peer:EchoServer",
            ),
        ),
        question=idle.idle_memory,
        goals=(Goal("memory", 40.0),),
        rounds=1,
    ),
    Line(
        name="boot",
        measures={"boot": _millis("boot of 20 services, after imports")},
        contenders=(Contender(OURS, "a kernel with 20 small services, in a fresh process", f"{HERE}.boot:Boot"),),
        question=lambda running, _: running.client.ask("boot"),
        goals=(Goal("boot", 150.0),),
        fresh=True,
    ),
    _open_loop("quiet", "quiet", open_loop.quiet),
    _open_loop("hog", "beside a hog", open_loop.with_a_hog),
    _open_loop("tensors", "beside tensors", open_loop.with_tensors, BESIDE_TENSORS),
)
