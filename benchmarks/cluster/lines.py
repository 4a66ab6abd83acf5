"""All lines of the benchmark, with the goals that we have set ourselves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.command_line import meant
from benchmarks.default_model import store_both
from benchmarks.measure import Measure
from benchmarks.messages.line import Running
from benchmarks.scheduling.line import Contender, Goal, Line, asked

__all__ = ["LINES", "NAMES", "PUBLISHED", "wanted"]

HERE = "benchmarks.cluster"
OURS = "microkernel"
PUBLISHED = 800.0  # requests a second of one proxy of Ray Serve, the most of the 220 to 800 that it publishes
WHOLE_CONNECTIONS = 32

RAY = Contender(
    "ray",
    "a local cluster with three workers: ray.get of 10,000 remote functions; batched, of 100 for 100 items each",
    f"{HERE}.maps:RayMap",
    packages={"ray": "ray"},
)
DASK = Contender(
    "dask",
    "a LocalCluster of three processes: Client.map of 10,000 items; batched, of 100 lists of 100",
    f"{HERE}.maps:DaskMap",
    packages={"distributed": "dask[distributed]"},
)
SERVE = Contender(
    "ray serve",
    "one proxy and one replica of a deployment that answers at once, on one machine",
    f"{HERE}.load:Load",
    f"{HERE}.serve_peer:RayServe",
    packages={"ray": "ray[serve]", "grpc": "ray[serve]", "grpc_reflection": "ray[serve]"},
)


def _millis(name: str) -> Measure:
    return Measure(name, "ms", scale=1e3)


def _micros(name: str) -> Measure:
    return Measure(name, "us", scale=1e6)


def _share(name: str, *, less_is_better: bool = True) -> Measure:
    return Measure(name, "%", less_is_better, 100.0)


def _a_second(name: str) -> Measure:
    return Measure(name, "/s", less_is_better=False)


def _kill(name: str, about: str, client: str, done: str) -> Line:
    return Line(
        name=f"kill-{name}",
        measures={
            "p50": _millis(f"kill -9 to {done}, p50"),
            "p99": _millis(f"kill -9 to {done}, p99"),
        },
        contenders=(Contender(OURS, about, f"{HERE}.kills:{client}"),),
        question=asked("kills", {"count": 10}, {"count": 2}),
        goals=(Goal("p99", 1000.0),),
        rounds=2,
    )


def _remote_call(running: Running, is_quick: bool) -> dict[str, float]:
    """One call at a time with how long both ends had a processor for it, and calls among 32."""
    seconds = 0.05 if is_quick else 1.0
    ends = [running.client, *([running.server] if running.server else [])]
    before = sum(each.processor_time() for each in ends)
    alone = running.client.ask("round_trips", seconds=seconds)
    busy = sum(each.processor_time() for each in ends) - before
    beside = running.client.ask("among", seconds=seconds)
    return {"alone": alone["p50"], "p99": alone["p99"], "busy": busy / alone["count"], "beside": beside["p50"]}


def _first_token(running: Running, is_quick: bool) -> dict[str, float]:
    assert running.server is not None
    assert running.beside is not None
    near, far = running.server.ask("door"), running.beside.ask("door")
    return dict(running.client.ask("first_token", near=near, far=far, count=20 if is_quick else 500))


def _forwarded(running: Running, is_quick: bool) -> dict[str, float]:
    """What a gateway forwards, and what each request costs its process."""
    assert running.server is not None
    front = running.beside or running.server
    clock = "processor_time" if running.beside else "proxy_time"
    before = float(front.ask(clock))
    found = running.client.ask(
        "rate", door=front.ask("door"), seconds=0.3 if is_quick else 4.0, connections=WHOLE_CONNECTIONS
    )
    busy = float(front.ask(clock)) - before
    return {"rate": found["rate"], "core": found["all"] / busy, "client": found["client"]}


LINES: tuple[Line, ...] = (
    Line(
        name="remote-call",
        measures={
            "alone": _micros("remote call, p50"),
            "p99": _micros("remote call, p99"),
            "busy": _micros("remote call, processor time of both ends"),
            "beside": _micros("remote call among 32, p50"),
        },
        contenders=(
            Contender(
                OURS,
                "two nodes of a cluster, one process each; a service of one calls `echo.echo@n1`, 100 bytes and back",
                f"{HERE}.calls:AskingNode",
                f"{HERE}.calls:AnsweringNode",
            ),
            Contender(
                "aiohttp",
                "100 bytes that come back over a websocket, without any protocol",
                f"{HERE}.echo_peer:EchoClient",
                "benchmarks.messages.aiohttp_peer:EchoServer",
                packages={"aiohttp": "aiohttp"},
            ),
        ),
        question=_remote_call,
        goals=(Goal("alone", 0.714, "aiohttp"),),  # 1 / 1.4
    ),
    Line(
        name="map",
        measures={
            "each": _millis("10,000 no-op tasks, a task each"),
            "batched": _millis("10,000 no-op items, batched"),
        },
        contenders=(
            Contender(
                OURS,
                "scheduler.map over `boot --nodes 2`; a task for each item, and batched as many as it chooses",
                f"{HERE}.maps:Map",
            ),
            RAY,
            DASK,
        ),
        question=asked("map", {"count": 10_000}, {"count": 300}),
        goals=(Goal("each", 2.0, RAY.name), Goal("each", 2.0, DASK.name)),
        rounds=3,
    ),
    _kill("service", "a service with one replica, called again and again", "KilledService", "the service answering"),
    _kill("stream", "a stream that says how it is continued", "KilledStream", "the next item of the stream"),
    _kill("map", "a map over three nodes, of tasks that take 20 ms", "KilledMap", "the lost tasks begun elsewhere"),
    Line(
        name="gateway-first-token",
        measures={
            "near": _millis("first token by the engine's own gateway, p50"),
            "far": _millis("first token by another node's gateway, p50"),
            "added": _millis("first token, added by the other node, p50"),
        },
        contenders=(
            Contender(
                OURS,
                "streamed chats over HTTP to the gateway of the engine's node and to that of another node, in turn",
                f"{HERE}.load:Load",
                f"{HERE}.gateway:EngineNode",
                f"{HERE}.gateway:FrontNode",
            ),
        ),
        question=_first_token,
        goals=(Goal("added", 3.0),),
    ),
    Line(
        name="gateway-rate",
        measures={
            "rate": _a_second("chats forwarded by one gateway"),
            "core": _a_second("chats forwarded, for each core that it had"),
            "client": _share("a core that the client had meanwhile"),
        },
        contenders=(
            Contender(
                OURS,
                "whole chats over 32 connections to a gateway in front of another node, whose engine answers at once",
                f"{HERE}.load:Load",
                f"{HERE}.gateway:EngineNode",
                f"{HERE}.gateway:FrontNode",
            ),
            SERVE,
        ),
        question=_forwarded,
        goals=(Goal("rate", 5 * PUBLISHED), Goal("rate", 5.0, SERVE.name)),
        rounds=3,
    ),
    Line(
        name="prefix",
        measures={
            "hits": _share("tokens seen before that were not computed again", less_is_better=False),
            "first": _millis("first token of a turn that goes on, p50"),
            "other": _share("the work that the second node had"),
        },
        contenders=(
            Contender(OURS, "eight conversations over two nodes, balanced by prefix", f"{HERE}.prefixes:ByPrefix"),
            Contender("in turn", "the same, each question to the next node", f"{HERE}.prefixes:InTurn"),
        ),
        question=asked("talks", {"turns": 4}, {"turns": 2}),
        goals=(Goal("hits", 90.0),),
        rounds=3,
        prepare=store_both,
    ),
)
NAMES = tuple(line.name for line in LINES)


def wanted(words: Sequence[str]) -> list[Line]:
    """The lines that are named; a word that is no line's name stands for all that have it in theirs."""
    return [line for line in LINES if meant(words, line.name, NAMES)]
