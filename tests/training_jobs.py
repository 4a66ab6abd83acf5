"""Small jobs of training for tests: a tiny model, a page of text, and the real processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from formats.checkpoint.checkpoint import open_checkpoint
from services.training.agent.fork_server import ForkServer
from services.training.agent.forks import Forked
from services.training.agent.run import JobRun
from services.training.config import read_job
from services.training.data.preparation import prepare
from services.training.data.sources import Source
from services.training.job_file import JobFile, write_file
from tiny_model import write_tiny_model

TEXT = "\n".join(f"The {number}th line says that {number} and {number + 1} are {2 * number + 1}." for number in range(400))


def toml(base: Path, data: Path, **sections: dict[str, Any]) -> str:
    """The configuration of a job."""
    lines = [f'name = "tiny"\n[model]\nbase = "{base}"\n[data]\ntrain = ["{data}"]\nlength = 64']
    given = {"schedule": {"steps": 8, "rows": 4, "shards": 4, "rate": 1e-3}, "evaluation": {"every": 0}}
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    for name, section in given.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def write_job(folder: Path, **sections: dict[str, Any]) -> Path:
    """The file of a job that is ready to be begun, with its model and its data."""
    base = folder / "model"
    if not base.exists():
        write_tiny_model(base)
        (folder / "text.txt").write_text(TEXT)
    config = read_job(toml(base, folder / "text.txt", **sections))
    source = open_checkpoint(base).tokenizer_source
    prepared = prepare([Source(folder / "text.txt", "text.txt")], [], source, config.data, folder / "cache")
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


class FreeTurns:
    """Nobody else wants the device."""

    has_turn = True

    def add(self, forked: Forked) -> None:
        """As `Turns`."""

    def remove(self, forked: Forked) -> None:
        """As `Turns`."""


@contextlib.asynccontextmanager
async def fork_server() -> AsyncIterator[ForkServer]:
    """The real one."""
    server = await ForkServer.start()
    try:
        yield server
    finally:
        await server.close()


class Running:
    """A job that runs, and what it has told so far."""

    def __init__(self, server: ForkServer, path: Path, job: JobFile) -> None:
        self.told: list[Any] = []
        self.paused = False
        self._news = asyncio.Event()
        self.run = JobRun(server.forks, path, job, FreeTurns(), self._heard, lambda: self.paused)
        self.task = asyncio.create_task(self.run.run())

    def _heard(self, report: Any) -> None:
        self.told.append(report)
        self._news.set()

    async def until(self, kind: type, **fields: Any) -> Any:
        """The first report of a kind with these fields."""
        async with asyncio.timeout(60):
            seen = 0
            while True:
                for report in self.told[seen:]:
                    seen += 1
                    if isinstance(report, kind) and all(getattr(report, name) == value for name, value in fields.items()):
                        return report
                if self.task.done():
                    self.task.result()
                self._news.clear()
                await self._news.wait()
