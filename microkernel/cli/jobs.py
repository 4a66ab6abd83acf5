"""`mk jobs`: training jobs of the node: lists, shows and follows them, stops them and has them go on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microkernel.cli import jobs_curve
from microkernel.cli.job_follow import follow, goes_on, told_at_the_end
from microkernel.cli.job_screen import Known
from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, date, duration, plain, print_json, print_table, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

COLUMNS = ("job", "state", "step", "loss", "held out", "left", "workers", "owner", "started", "result", "why")
WHY = 100  # characters of a reason in the list; `show` has all of it
ACTIONS = (
    ("show", "everything about a job"),
    ("watch", "follow a job to its end; Ctrl-C leaves it running"),
    ("curve", "the losses of a job, as a chart, a picture or a file"),
    ("stop", "end a job behind its step, with a checkpoint, and wait for that"),
    ("resume", "go on with a job that has ended before it was done, from its last checkpoint"),
    ("save", "have a checkpoint made behind the next step"),
    ("forget", "remove a job that is over, with its checkpoints; what it has learned stays"),
)


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "jobs",
        help="list training jobs, show, watch, stop, resume them",
        description=__doc__,
        parents=parents,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, action="list")
    actions = parser.add_subparsers(metavar="ACTION")
    told = "all jobs, the newest first (the default)"
    listing = actions.add_parser("list", help=told, description=told, parents=parents, allow_abbrev=False)
    listing.set_defaults(action="list")
    for action, told in ACTIONS:
        sub = actions.add_parser(action, help=told, description=told, parents=parents, allow_abbrev=False)
        sub.add_argument("job", metavar="JOB", help="as `mk jobs` shows it")
        sub.set_defaults(action=action)
        if action == "curve":
            jobs_curve.add(sub)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""

    async def work(system: System) -> int:
        match args.action:
            case "list":
                _list(args, plain(await system.call("training.list")))
            case "watch":
                return await follow(args, system, args.job)
            case "curve":
                return await jobs_curve.run(args, system)
            case "stop":
                return await _stop(args, system)
            case _:
                _told(args, plain(await system.call(f"training.{args.action}", job=args.job)))
        return 0

    try:
        return on_node(args, work)
    except KeyboardInterrupt:
        if args.action == "watch":
            goes_on(args, args.job)
        raise


async def _stop(args: argparse.Namespace, system: System) -> int:
    """Stop it, and wait until it is: what follows may want to go on with it at once."""
    job = plain(await system.call("training.stop", job=args.job))
    async with system.stream("training.watch", job=args.job) as news:
        async for item in news:
            job = plain(item)["job"]
    _told(args, job)
    return 0


def _told(args: argparse.Namespace, job: dict[str, Any]) -> None:
    if wants_json(args):
        print_json(job)
        return
    match args.action:
        case "show":
            print_table(("", ""), [row for row in _rows(job) if row[1] not in {"", None}])
        case "stop":
            for line in told_at_the_end(Known(job)):
                write(clean(line))
        case "save":
            write(clean(f"{job['job']} makes a checkpoint behind the step that it is in"))
        case "resume":
            write(clean(f"{job['job']} goes on: mk jobs watch {job['job']}"))
        case "forget":
            write(clean(f"{job['job']} is forgotten" + (f"; {job['result']} stays" if job["result"] else "")))


def _list(args: argparse.Namespace, jobs: list[dict[str, Any]]) -> None:
    if wants_json(args):
        print_json(jobs)
    else:
        print_table(COLUMNS, [_row(job) for job in jobs])


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    why = " ".join(job["why"].split())
    return (
        job["job"],
        job["state"],
        f"{job['step']}/{job['steps']}" if job["steps"] else "",
        _number(job["loss"]),
        _number(job["evaluation_loss"]),
        duration(job["seconds_left"]),
        job["workers"],
        job["owner"],
        date(job["started"]),
        job["result"],
        why if len(why) <= WHY else why[: WHY - 1] + "…",
    )


def _rows(job: dict[str, Any]) -> list[tuple[str, object]]:
    took = None if job["ended"] is None else job["ended"] - job["started"]
    return [
        ("job", job["job"]),
        ("state", job["state"] + (f": {job['why']}" if job["why"] else "")),
        ("owner", job["owner"]),
        ("process", job["pid"] or ""),
        ("base", job["base"] or "none: from scratch"),
        ("method", job["method"] + (f", {job['trained']} numbers are learned" if job["trained"] else "")),
        (
            "device",
            f"{job['device']}, {job['workers']} worker{'' if job['workers'] == 1 else 's'}" if job["device"] else "",
        ),
        ("step", f"{job['step']} of {job['steps']}" if job["steps"] else ""),
        ("tokens", f"{job['tokens']}, {job['tokens_second']:.0f} a second" if job["tokens"] else ""),
        ("loss", _number(job["loss"])),
        ("held-out loss", _number(job["evaluation_loss"])),
        ("last checkpoint", f"step {job['saved_step']}" if job["saved_step"] else ""),
        ("lost workers", job["lost_workers"] or ""),
        ("started", date(job["started"])),
        ("ended", date(job["ended"]) + (f", after {duration(took)}" if took is not None else "")),
        ("left", duration(job["seconds_left"])),
        ("result", job["result"]),
        *(("note", note) for note in job["notes"]),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
