"""Small jobs of training for tests: a tiny model, a page of text, and the real processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tiny_model import write_tiny_model

from formats.checkpoint.checkpoint import open_checkpoint
from services.training.agent.fork_server import ForkServer
from services.training.agent.forks import Forked
from services.training.agent.liveness import WorkerLost
from services.training.agent.run import JobRun
from services.training.agent.worker_process import WorkerProcess
from services.training.config import read_job
from services.training.data.preparation import prepare
from services.training.data.sources import Source
from services.training.job_file import JobFile, read_file, write_file
from services.training.orders import Stepped

TEXT = [f"The {number}th line says that {number} and {number + 1} are {2 * number + 1}." for number in range(200)]


def toml(base: Path, text: Path, **sections: dict[str, Any]) -> str:
    """The configuration of a job."""
    lines = [f'name = "tiny"\n[model]\nbase = "{base}"']
    given = {
        "data": {"train": [str(text)], "length": 64, "evaluation_part": 0.5},
        "schedule": {"steps": 8, "rows": 4, "shards": 4, "rate": 1e-3},
        "evaluation": {"every": 0},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    for name, section in given.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def write_job(folder: Path, **sections: dict[str, Any]) -> Path:
    """The file of a job that is ready to be begun, with its model and its data."""
    base = folder / "model"
    if not base.exists():
        write_tiny_model(base)
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT))
    config = read_job(toml(base, folder / "text.jsonl", **sections))
    source = open_checkpoint(base).tokenizer_source
    prepared = prepare([Source(folder / "text.jsonl", "text.jsonl")], [], source, config.data, folder / "cache")
    home = folder / "job"
    home.mkdir(exist_ok=True)
    job = JobFile(
        job="tiny-1",
        config=config,
        base=str(base),
        tokenizer=str(base),
        prepared=prepared,
        folder=str(home),
        key=str(folder / "key.pem"),
        steps=config.schedule.steps or 8,
    )
    write_file(home / "job.json", job)
    return home / "job.json"


def plan_fault(path: Path, phase: str, *, rank: int = 0, step: int = 0, by: signal.Signals = signal.SIGKILL) -> Path:
    """Have a worker of that job hit once, when it comes to a phase with that many steps done; the file that tells."""
    number = len(list(path.parent.glob("fault-*")))
    fault = path.parent / f"fault-{number}.json"
    fault.write_text(json.dumps({"phase": phase, "rank": rank, "step": step, "signal": int(by)}))
    return fault.with_suffix(".hit")


class FreeTurns:
    """Nobody else wants the device."""

    has_turn = True

    def add(self, forked: Forked) -> None:
        """As `Turns`."""

    def remove(self, forked: Forked) -> None:
        """As `Turns`."""


@contextlib.asynccontextmanager
async def fork_server() -> AsyncIterator[ForkServer]:
    """The real one, whose workers are hit where `plan_fault` says."""
    server = await ForkServer.start("faulty_worker")
    try:
        yield server
    finally:
        await server.close()


class Running:
    """A job that runs, and what it has told so far."""

    def __init__(self, server: ForkServer, path: Path) -> None:
        job = read_file(path, JobFile)
        self.told: list[Any] = []
        self.paused = False
        self._news = asyncio.Event()
        self.run = JobRun(server.forks, path, job, FreeTurns(), self._heard, lambda: self.paused)
        self.task = asyncio.create_task(self.run.run())

    def _heard(self, report: Any) -> None:
        self.told.append(report)
        self._news.set()

    def worker(self, rank: int) -> WorkerProcess:
        """The one with that rank in the group that was called last."""
        return self.run._workers[self.run._formation.members[rank]]

    @property
    def steps(self) -> list[int]:
        """The steps that were told of, in order."""
        return [report.step for report in self.told if isinstance(report, Stepped)]

    @property
    def lost(self) -> list[WorkerLost]:
        """The workers that were."""
        return [report for report in self.told if isinstance(report, WorkerLost)]

    async def until(self, kind: type, *, count: int = 1, **fields: Any) -> Any:
        """The first report of a kind with these fields, or the one that is the `count`-th of them."""

        def fits(report: Any) -> bool:
            return isinstance(report, kind) and all(getattr(report, name) == value for name, value in fields.items())

        async with asyncio.timeout(60):
            while len(found := [report for report in self.told if fits(report)]) < count:
                assert not self.task.done(), f"it has ended: {self.task.result()}"
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                await asyncio.wait([self.task, news], return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
        return found[count - 1]


def learned(path: Path) -> str:
    """A digest of what a job has learned."""
    return hashlib.sha256((path.parent / "result" / "adapter_model.safetensors").read_bytes()).hexdigest()
