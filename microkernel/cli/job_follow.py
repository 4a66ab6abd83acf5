"""Follows a training job to its end: a live screen on a terminal, else a line now and then, or each item as JSON."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import TYPE_CHECKING

from microkernel.cli.job_screen import JobScreen, Known, step_line
from microkernel.cli.output import clean, duration, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["follow", "goes_on", "told_at_the_end"]

REDRAW = 0.5  # seconds
INTERVAL = 15.0  # seconds between two lines about steps, where no terminal shows them
POINTS = 2000  # of the curve so far, for the chart


async def follow(args: argparse.Namespace, system: System, job: str) -> int:
    """Show a job until it is over; the exit status: 0 where it has come to its end, 1 else."""
    if wants_json(args):
        async with system.stream("training.watch", job=job) as news:
            async for item in news:
                print_json(item)
        return 0 if plain(await system.call("training.show", job=job))["state"] == "done" else 1
    known = await _known(system, job)
    if sys.stdout.isatty():
        await _live(system, known)
    else:
        await _lines(system, known)
    known = await _known(system, job)  # a reader that is slow may have missed points
    for line in told_at_the_end(known):
        write(clean(line))
    return 0 if known.job["state"] == "done" else 1


def goes_on(args: argparse.Namespace, job: str) -> None:
    """Say on stderr that whoever leaves does not end the job."""
    if not wants_json(args):
        sys.stderr.write(clean(f"\n{job} goes on without you: mk jobs watch {job}, mk jobs stop {job}\n"))


def told_at_the_end(known: Known) -> list[str]:
    """What came of a job, and what to do next."""
    job = known.job
    name, state, why = job["job"], job["state"], job["why"]
    if state == "done":
        took = duration(None if job["ended"] is None else job["ended"] - job["started"])
        first, last = known.first_held_out, known.last_held_out
        lines = [f"{name} is done: {job['steps']} steps, {job['tokens']} tokens, in {took}"]
        if first is not None and last is not None and first[0] != last[0]:
            lines.append(f"held-out loss {first[1]:.3f} at step {first[0]}, {last[1]:.3f} at step {last[0]}")
        elif last is not None:
            lines.append(f"held-out loss {last[1]:.3f}")
        if known.lost:
            lines.append(f"{known.lost} lost on the way, and replaced")
        lines += [f"note: {note}" for note in job["notes"]]
        return [*lines, f"the result is the model {job['result']}: mk chat {job['result']}"]
    ends = f"{name} is {state}" + (f": {why}" if why else "")
    lines = [ends, *(f"note: {note}" for note in job["notes"])]
    if state == "interrupted":
        return [*lines, "it goes on when its node is booted again"]
    if state in {"failed", "killed", "stopped"}:
        lines.append(f"go on from the last checkpoint: mk jobs resume {name}; or remove it: mk jobs forget {name}")
    return lines


async def _known(system: System, job: str) -> Known:
    known = Known(plain(await system.call("training.show", job=job)))
    known.take(plain(await system.call("training.curve", job=job, most=POINTS)))
    return known


async def _live(system: System, known: Known) -> None:
    from rich.live import Live

    screen = JobScreen(known)
    with Live(screen.draw(time.time()), auto_refresh=False) as live:

        async def redraw() -> None:
            while True:
                await asyncio.sleep(REDRAW)
                live.update(screen.draw(time.time()), refresh=True)

        drawing = asyncio.create_task(redraw())
        try:
            async with system.stream("training.watch", job=known.job["job"]) as news:
                async for item in news:
                    known.hear(plain(item))
        finally:
            drawing.cancel()
            live.update(screen.draw(time.time()), refresh=True)


async def _lines(system: System, known: Known) -> None:
    said, due = "", 0.0
    async with system.stream("training.watch", job=known.job["job"]) as news:
        async for item in news:
            told = plain(item)
            known.hear(told)
            job = known.job
            if job["state"] != said and job["state"] not in {"done", "failed"}:
                said = job["state"]
                write(clean(said + (f": {job['why']}" if job["why"] else "")))
            for point in told["points"]:
                if point["event"] is not None:
                    write(clean(f"step {point['step']}: {point['event']}"))
                if point["evaluation_loss"] is not None:
                    write(f"step {point['step']}: held-out loss {point['evaluation_loss']:.3f}")
            if any(point["loss"] is not None for point in told["points"]) and time.monotonic() >= due:
                write(clean(step_line(job)))
                due = time.monotonic() + INTERVAL
