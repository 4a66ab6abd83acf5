"""The work of tasks, in a thread or in a process of its own (hot: once an item)."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from microkernel.errors import ErrorReport, from_exception
from microkernel.message import Message
from services.scheduler.mapping.functions import find
from services.scheduler.messages import Range, RunTasks

__all__ = ["TOGETHER", "Outcome", "do", "work"]

QUANTUM = 0.005  # seconds after which others may have the turn, between two items
TOGETHER = 0.001  # seconds' worth of tasks that are handed over in one go


class Outcome(Message, kw_only=True):
    """What a task gave: a value for each of its items, or with a reduction one for all, `folded`.

    `failed` are the items that raised, by their place in the task; their values are None, and in no fold.
    """

    values: list[Any] = []
    folded: Any = None
    count: int = 0  # of those that are in `folded`
    failed: dict[int, ErrorReport] = {}
    seconds: float = 0.0


def do(batch: RunTasks) -> Generator[None, None, list[Outcome]]:
    """Look up what tasks name, here where they run, and run one after the other. Raises as `find`.

    Of several, those come back without an outcome, not begun, whose turn had not come when their time was over: one
    that takes longer than was thought holds up nobody but itself.
    """
    function = find(batch.function)
    reduce = None if batch.reduce is None else find(batch.reduce)
    outcomes: list[Outcome] = []
    due = time.perf_counter() + TOGETHER
    for task in batch.tasks:
        if outcomes and time.perf_counter() >= due:
            break
        items = task.numbers if isinstance(task, Range) else task
        outcomes.append((yield from work(function, items, batch.arguments, whole=batch.whole, reduce=reduce)))
    return outcomes


def work(
    function: Callable[..., Any],
    items: Iterable[Any],
    arguments: Mapping[str, Any],
    *,
    whole: bool = False,
    reduce: Callable[[Any, Any], Any] | None = None,
) -> Generator[None, None, Outcome]:
    """Run it, quantum by quantum. With `whole`, the function is called once, with all items.

    With `reduce`, values are folded from the left, in the order of the items.
    """
    began = time.perf_counter()
    if whole:
        items = [items]
    values: list[Any] = []
    failed: dict[int, ErrorReport] = {}
    folded: Any = None
    count = 0
    due = began + QUANTUM
    for place, item in enumerate(items):
        try:
            value = function(item, **arguments)
            if reduce is not None:
                folded = value if count == 0 else reduce(folded, value)
        except Exception as error:  # noqa: BLE001 - it fails alone: told with its place
            failed[place] = from_exception(error, service="scheduler").report()
            value = None
        else:
            count += 1
        if reduce is None:
            values.append(value)
        if time.perf_counter() >= due:
            yield
            due = time.perf_counter() + QUANTUM
    return Outcome(values=values, folded=folded, count=count, failed=failed, seconds=time.perf_counter() - began)
