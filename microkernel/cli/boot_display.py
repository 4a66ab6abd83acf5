"""How a boot is shown: live on a terminal, as plain lines in a pipe, as JSON lines for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from microkernel.cli.boot_progress import Step
from microkernel.cli.output import clean, print_json, print_table, size, write
from microkernel.message import Message

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Booted", "BootDisplay", "JsonLines", "Live", "PlainLines", "ServiceRow", "make_display"]

MARKS = {"ok": "+", "busy": ".", "fail": "!"}


class ServiceRow(Message):
    """A service in the table that ends the boot."""

    name: str
    state: str
    detail: str


class Booted(Message, kw_only=True):
    """What the user gets to know at the end; `url` is None for a node without a gateway."""

    elapsed: float
    url: str | None
    token: str
    token_path: str
    services: Sequence[ServiceRow]
    hints: Sequence[str]


class BootDisplay(Protocol):
    """Shows a boot from its first step to the node's address. `with` restores the terminal."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, step: Step) -> None:
        """Show one step."""

    def finish(self, booted: Booted) -> None:
        """Show the table, the address and what to try next."""


def make_display(*, as_json: bool) -> BootDisplay:
    """What fits stdout."""
    if as_json:
        return JsonLines()
    return Live() if sys.stdout.isatty() else PlainLines()


class JsonLines:
    """One JSON object a line: every step with the event as it came, at last `ready`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, step: Step) -> None:
        print_json(step)

    def finish(self, booted: Booted) -> None:
        print_json(
            {
                "event": "ready",
                "elapsed": booted.elapsed,
                "url": booted.url,
                "token": booted.token,
                "services": booted.services,
            }
        )


class PlainLines:
    """Lines without control codes; what is counted is told at each tenth of it."""

    def __init__(self) -> None:
        self._told: tuple[str, int] = ("", -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, step: Step) -> None:
        if step.brief:
            return
        text = clean(step.text)
        if step.done is not None:
            tenth = int(10 * step.done / step.total) if step.total else -1
            if (text, tenth) == self._told:
                return
            self._told = (text, tenth)
            text = f"{text} {counted(step)}".rstrip()
        write(f"{MARKS[step.mark]} {step.elapsed:6.1f} s  {text}")

    def finish(self, booted: Booted) -> None:
        _print_end(booted)


class Live:
    """A terminal: what is finished stays as a line, what goes on is one moving line below."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        self._progress: Progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[counted]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._moving: Step | None = None
        self._since = 0.0
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        moving = self._moving
        if step.mark == "busy":
            if moving is None or moving.text != step.text:
                # What is over at once does not push aside what takes its time.
                if step.brief and moving is not None and not moving.brief:
                    return
                self._settle(step)
                self._begin(step)
            self._update(step)
            return
        if moving is not None and moving.event == step.event:
            self._end()
        elif moving is not None and step.mark == "ok" and _family(moving) == _family(step):
            self._settle(step)
        self._line("ok" if step.mark == "ok" else "fail", step.elapsed, step.text)

    def finish(self, booted: Booted) -> None:
        self._progress.stop()
        _print_end(booted)

    def _settle(self, after: Step) -> None:
        """What moved until now is done: it becomes a line with the time that it took, once."""
        moving = self._moving
        self._end()
        if moving is not None and not moving.brief and moving.text not in self._told:
            self._told.add(moving.text)
            self._line("ok", after.elapsed, f"{moving.text} ({after.elapsed - self._since:.1f} s)")

    def _begin(self, step: Step) -> None:
        self._moving, self._since = step, step.elapsed
        self._task = self._progress.add_task(clean(step.text), total=None, counted="")

    def _update(self, step: Step) -> None:
        assert self._task is not None
        self._progress.update(self._task, total=step.total, completed=step.done or 0, counted=counted(step))

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._moving = None

    def _line(self, mark: str, elapsed: float, text: str) -> None:
        from rich.text import Text

        sign, style = ("✓", "green") if mark == "ok" else ("✗", "red")
        self._console.print(Text.assemble((sign, style), (f" {elapsed:6.1f} s  ", "dim"), clean(text)))


def _family(step: Step) -> str:
    return step.event.partition(".")[0]


def counted(step: Step) -> str:
    """How far a step is, such as `12.0 MiB of 98.3 MiB (12 %)`."""
    if step.done is None or not (step.done or step.total):
        return ""
    done, total = (
        size(step.done) if step.unit == "B" else f"{step.done:g}",
        size(step.total) if step.unit == "B" else f"{step.total or 0:g}",
    )
    return f"{done} of {total} ({100 * step.done / step.total:.0f} %)" if step.total else done


def _print_end(booted: Booted) -> None:
    write(f"\nready after {booted.elapsed:.1f} s\n")
    print_table(("service", "state", ""), [(row.name, row.state, row.detail) for row in booted.services])
    if booted.url is None:
        write("\nno gateway runs: nothing can connect to this node")
        return
    write(f"\naddress  {booted.url}")
    write(f"token    {booted.token}  (kept in {booted.token_path})")
    write("\nwhat to try next")
    for hint in booted.hints:
        write(f"  {hint}")
