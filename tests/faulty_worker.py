"""The fork server of training with faults that are planned: a worker reaches a place, and is hit there.

Beside a job's file lies `faults.json`: a list of faults, each with the rank, the phase and the step that it waits for,
and the signal that the worker gets then. Each hits once, whichever process it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from services.training.beat import Beat
from services.training.worker import processes
from services.training.worker.group import Group
from services.training.worker.loop import Worker
from services.training.worker.trainer import Trainer


class Here:
    """Where this process is."""

    folder = Path()
    rank = step = 0


def hit(phase: str) -> None:
    """Send the signal of the first fault that waits for this."""
    for path in sorted(Here.folder.glob("fault-*.json")):
        try:
            fault = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # it has hit another worker
        if fault["phase"] == phase and fault["rank"] == Here.rank and Here.step >= fault["step"]:
            try:
                path.rename(path.with_suffix(".hit"))
            except FileNotFoundError:
                continue  # another worker was faster
            os.kill(os.getpid(), fault["signal"])


def plan() -> None:
    enter, join, init, live = Beat.enter, Group.join.__func__, Trainer.__init__, Worker._meet

    def entering(self, phase, at=None):
        Here.step = Here.step if at is None else at
        enter(self, phase, at)
        hit(phase)

    def joining(cls, store, at, world, **more):
        Here.rank = at
        hit("joining")
        return join(cls, store, at, world, **more)

    def making(self, job):
        Here.folder = Path(job.folder)
        init(self, job)

    def meeting(self, form):
        Here.rank = form.rank
        return live(self, form)

    Beat.enter, Group.join, Trainer.__init__, Worker._meet = entering, classmethod(joining), making, meeting


def main() -> None:
    plan()
    processes.main()
