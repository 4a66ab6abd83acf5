"""All lines of the benchmark, with the goals that we have set ourselves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.command_line import meant
from benchmarks.default_model import stored_model
from benchmarks.measure import Measure
from benchmarks.messages.line import ask
from benchmarks.scheduling import decisions, task_size
from benchmarks.scheduling.line import Contender, Goal, Line, asked
from benchmarks.scheduling.task_size import COSTS

__all__ = ["LINES", "NAMES", "wanted"]

HERE = "benchmarks.scheduling"
OURS = "microkernel"

RAY = Contender(
    "ray",
    "remote functions of a local cluster with a process for each core; ray.get of all, or of one",
    f"{HERE}.peers:RayTasks",
    packages={"ray": "ray"},
)
DASK = Contender(
    "dask",
    "Client.map and Client.submit of a LocalCluster with a process for each core",
    f"{HERE}.peers:DaskTasks",
    packages={"distributed": "dask[distributed]"},
)


def _ours(about: str, client: str) -> Contender:
    return Contender(OURS, about, f"{HERE}.{client}")


def _seconds(name: str) -> Measure:
    return Measure(name, "s")


def _millis(name: str) -> Measure:
    return Measure(name, "ms", scale=1e3)


def _micros(name: str) -> Measure:
    return Measure(name, "us", scale=1e6)


def _times(name: str) -> Measure:
    return Measure(name, "times")


def _tasks(name: str, about: str, client: str, goals: Sequence[Goal]) -> Line:
    return Line(
        name=f"tasks-{name}",
        measures={
            "bulk": _millis(f"no-op task in {name}, one of many"),
            "single": _millis(f"no-op task in {name}, alone, p50"),
            "p99": _millis(f"no-op task in {name}, alone, p99"),
        },
        contenders=(_ours(about, client), RAY, DASK),
        question=ask("tasks", seconds=1.0, quick=0.05, count=1000),
        goals=tuple(goals),
    )


def _interactive(name: str, about: str, method: str, made: str) -> Line:
    return Line(
        name=f"interactive-{name}",
        measures={
            "idle": _millis(f"first token p95, idle, before {name}"),
            "beside": _millis(f"first token p95 beside {name}"),
            "longer": _times(f"first token p95 beside {name}, by idle"),
            "median": _times(f"first token p50 beside {name}, by idle"),
            "pace": Measure(f"meanwhile in the background of {name}", made, less_is_better=False),
        },
        contenders=(_ours(about, "interactive:Interactive"),),
        question=asked(method, {"count": 20}, {"count": 2}),
        goals=(Goal("longer", 1.3),),
        rounds=3,
        prepare=stored_model,
    )


LINES: tuple[Line, ...] = (
    decisions.LINE,
    decisions.CURVE,
    _tasks(
        "threads",
        "scheduler.map on a node of its own, on the threads of its device; 1,000 tasks in a map, or one",
        "tasks:Threads",
        (Goal("bulk", 0.05), Goal("bulk", 10.0, RAY.name), Goal("bulk", 30.0, DASK.name)),
    ),
    _tasks(
        "processes",
        "the same with a worker process for each core",
        "tasks:Processes",
        (Goal("bulk", 0.2), Goal("single", 0.5)),
    ),
    Line(
        name="task-size",
        measures={
            key: measure
            for name, cost in COSTS.items()
            for key, measure in (
                (f"{name}/auto", _seconds(f"{cost.about}, automatic tasks")),
                (f"{name}/hand", _seconds(f"{cost.about}, best by hand")),
                (f"{name}/tasks", Measure(f"{cost.about}, what is best by hand", "tasks")),
                (f"{name}/near", Measure(f"{cost.about}, best by hand by automatic", "times", less_is_better=False)),
            )
        },
        contenders=(
            _ours("scheduler.map without and with a number of tasks, a process for each core", "task_size:TaskSizes"),
        ),
        question=task_size.compare,
        goals=tuple(Goal(f"{name}/near", 0.95) for name in COSTS),
    ),
    Line(
        name="slow-worker",
        measures={
            "one": _seconds("map, one worker of 8 at a quarter of the speed"),
            "none": _seconds("map, no worker slow"),
            "longer": _times("map with a slow worker, by without"),
        },
        contenders=(_ours("scheduler.map over 8 worker processes, items that rest for 5 ms", "stragglers:Slow"),),
        question=asked("compare", {"items": 3200, "seconds": 0.005}, {"items": 160, "seconds": 0.005}),
        goals=(Goal("longer", 1.25),),
    ),
    Line(
        name="frozen-worker",
        measures={
            "copies": _seconds("last result p99, a worker of 8 frozen"),
            "none": _seconds("last result p99, the same without copies"),
            "share": _times("last result p99 with copies, by without"),
        },
        contenders=(
            _ours("scheduler.imap over 8 worker processes, of which one is stopped for 2 s", "stragglers:Frozen"),
        ),
        question=asked(
            "compare",
            {"maps_each": 3, "items": 400, "seconds": 0.01, "freeze": 2.0},
            {"maps_each": 1, "items": 80, "seconds": 0.01, "freeze": 0.5},
        ),
        goals=(Goal("share", 0.5),),
    ),
    Line(
        name="zipf",
        measures={
            "threads": _times("costs by Zipf's law, last finish of 8 threads by mean"),
            "processes": _times("costs by Zipf's law, last finish of 8 processes by mean"),
        },
        contenders=(_ours("scheduler.map of items that rest for 0.1 to 100 ms", "skewed:Skewed"),),
        question=asked("finishes", {"items": 2000, "unit": 1e-4}, {"items": 200, "unit": 1e-4}),
        goals=(Goal("threads", 1.1), Goal("processes", 1.1)),
    ),
    Line(
        name="torch-map",
        measures={
            "one": _seconds("map of products of matrices, one thread"),
            "two": _seconds("map of products of matrices, two threads"),
            "faster": Measure("map of products of matrices, two threads by one", "times as fast", less_is_better=False),
            "bare": Measure("the same in a pool of threads, no map", "times as fast", less_is_better=False),
        },
        contenders=(_ours("scheduler.map on an executor with one thread or two for single cores", "compute:Compute"),),
        question=asked("speed_up", {"items": 200, "size": 512, "times": 4}, {"items": 4, "size": 64, "times": 1}),
        goals=(Goal("faster", 1.8),),
    ),
    Line(
        name="shares",
        measures={
            "heavier": Measure("share of the owner with three quarters of the weight", "%", scale=100.0),
            "off": Measure("shares of 75 and 25 %, off by", "%", scale=100.0),
            "jain": Measure("shares, Jain's index", "of 1", less_is_better=False),
        },
        contenders=(_ours("an executor with one thread under the policy fair, two owners", "shares:Shares"),),
        question=ask("shares", seconds=4.0, quick=0.1),
        goals=(Goal("off", 3.0), Goal("jain", 0.99)),
    ),
    _interactive(
        "answers",
        "a node with the default model, asked over a link, with 16 answers in the background",
        "beside_answers",
        "tokens/s",
    ),
    _interactive("map", "the same, with a map of torch's products in the background", "beside_map", "items/s"),
    Line(
        name="seeds-run",
        measures={
            "in_order": _seconds("1,000 tasks over 10 threads, results in order, each once"),
            "summed": _seconds("10,000,000 items in 10 tasks over 10 threads, summed"),
            "t_c": _micros("T_c, to create a thread"),
            "t_s": _micros("T_s, from handing in to start, p50"),
            "t_s_worst": _micros("T_s, from handing in to start, worst"),
            "t_f": _micros("T_f, to end the threads"),
        },
        contenders=(_ours("scheduler.map on a device with ten threads for single cores", "seeds_run:SeedsRun"),),
        question=asked("measure", {"tasks": 1000, "items": 10_000_000}, {"tasks": 1000, "items": 100_000}),
    ),
)
NAMES = tuple(line.name for line in LINES)


def wanted(words: Sequence[str]) -> list[Line]:
    """The lines that are named; a word that is no line's name stands for all that have it in theirs."""
    return [line for line in LINES if meant(words, line.name, NAMES)]
