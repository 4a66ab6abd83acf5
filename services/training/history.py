"""The jobs of a node on its disk: a folder each, with what it was told, how it is, and every point of its curve.

It blocks: for threads. A folder `NAME` has `config.toml`, `job.json` and `curve.jsonl`, and `files.json` where paths of
the configuration stand for others; checkpoints and results of a job's processes lie beside them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from microkernel import durable
from microkernel.errors import DataLoss, NotFound
from services.training.messages import Job, Point

__all__ = ["History", "thinned"]

CONFIG, FILES, RECORD, CURVE = "config.toml", "files.json", "job.json", "curve.jsonl"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


class History:
    """All jobs that a node remembers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def folder(self, job: str) -> Path:
        """Where a job's files are. Raises `NotFound` for what is no name of a job."""
        if NAME.fullmatch(job) is None:
            raise NotFound(f"there is no job {job[:64]!r}", field="job", remedy="see `mk jobs`")
        return self.root / job

    def begin(self, name: str, config: str, files: Mapping[str, tuple[str, ...]] | None = None) -> str:
        """A new job's folder; the job is called by its name and the first free number.

        `files` says which paths of the tree a relative one in `config` stands for.
        """
        number = 1 + max((_number(path.name, name) for path in self.root.iterdir()), default=0)
        while True:
            job = f"{name}-{number}"
            try:
                (self.root / job).mkdir(mode=0o700)
            except FileExistsError:
                number += 1
                continue
            durable.create(self.root / job / CONFIG, config.encode())
            if files:
                durable.create(self.root / job / FILES, msgspec.json.encode(files))
            return job

    def config(self, job: str) -> str:
        """What a job was told. Raises `NotFound`."""
        try:
            return (self.folder(job) / CONFIG).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFound(f"there is no job '{job}'", field="job", remedy="see `mk jobs`") from error

    def files(self, job: str) -> dict[str, tuple[str, ...]]:
        """What relative paths of a job's configuration stand for. Raises `DataLoss`."""
        path = self.folder(job) / FILES
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[str, ...]])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise DataLoss(f"{path} is damaged: {error}", remedy="start the job again") from error

    def record(self, job: Job) -> None:
        """Remember how a job is."""
        durable.replace(self.folder(job.job) / RECORD, msgspec.json.encode(job))

    def all(self) -> tuple[list[Job], list[str]]:
        """Every job as it was recorded last, and the names of folders that hold none that can be read."""
        jobs, broken = [], []
        for path in sorted(self.root.iterdir()):
            try:
                jobs.append(msgspec.json.decode((path / RECORD).read_bytes(), type=Job))
            except (OSError, msgspec.MsgspecError):
                broken.append(path.name)
        return jobs, broken

    def append(self, job: str, points: Sequence[Point]) -> None:
        """Add to a job's curve; a crash may lose the last ones."""
        with (self.folder(job) / CURVE).open("ab") as file:
            file.write(b"".join(msgspec.json.encode(point) + b"\n" for point in points))

    def curve(self, job: str) -> list[Point]:
        """A job's points, in order. Those of steps that were done again after a crash are there once, as they were
        done last. Raises `NotFound`.
        """
        try:
            lines = (self.folder(job) / CURVE).read_bytes().splitlines()
        except FileNotFoundError:
            if not self.folder(job).exists():
                raise NotFound(f"there is no job '{job}'", field="job", remedy="see `mk jobs`") from None
            return []
        points: list[Point] = []
        for line in lines:
            try:
                points.append(msgspec.json.decode(line, type=Point))
            except msgspec.MsgspecError:
                continue  # half a line, of a crash
        return _as_done_last(points)

    def forget(self, job: str) -> None:
        """Remove all of a job. Raises `NotFound`."""
        folder = self.folder(job)
        if not folder.exists():
            raise NotFound(f"there is no job '{job}'", field="job", remedy="see `mk jobs`")
        shutil.rmtree(folder)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """About `most` of the losses, evenly, and as many of the others; events stay."""
    losses = [point for point in points if point.loss is not None]
    others = [point for point in points if point.evaluation_loss is not None]
    events = [point for point in points if point.event is not None]
    kept = {id(point) for group in (losses, others) for point in _evenly(group, most)} | {id(point) for point in events}
    return [point for point in points if id(point) in kept]


def _evenly(points: list[Point], most: int) -> Iterable[Point]:
    if len(points) <= most:
        return points
    step = (len(points) - 1) / max(1, most - 1)
    return [points[round(place * step)] for place in range(most)]


def _as_done_last(points: list[Point]) -> list[Point]:
    kept: dict[tuple[int, str], Point] = {}
    for point in points:
        kind = "loss" if point.loss is not None else "held" if point.evaluation_loss is not None else f"{point.at}"
        kept.pop((point.step, kind), None)
        kept[point.step, kind] = point
    return sorted(kept.values(), key=lambda point: (point.step, point.at))


def _number(folder: str, name: str) -> int:
    """The number of a job of that name; 0 for another one's folder."""
    found = re.fullmatch(re.escape(name) + r"-(\d{1,9})", folder)
    return int(found[1]) if found else 0
