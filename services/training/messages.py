"""What the training service answers: jobs that fit a model to texts, and how they get on."""

from __future__ import annotations

from enum import StrEnum

from microkernel.message import Message

__all__ = [
    "Curve", "ForgetJob", "Job", "JobNews", "JobState", "ListJobs", "NameJob", "Point", "StartJob",
]  # fmt: skip


class JobState(StrEnum):
    """Where a job is. One that was interrupted goes on when its node does, or when it is told to."""

    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    KILLED = "killed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs, or will by itself."""
        return self in {JobState.DONE, JobState.FAILED, JobState.KILLED, JobState.STOPPED}


class StartJob(Message, kw_only=True):
    """Start a job by its configuration, TOML text; `where` is what errors call it.

    A path of its data that begins neither with `/` nor with a scheme is a file beside the configuration, which the node
    does not see: `files` says which paths of the tree such a path, or pattern, stands for.
    """

    text: str
    where: str = "the configuration"
    files: dict[str, tuple[str, ...]] = {}


class NameJob(Message):
    """A job by its name, which is unique on its node."""

    job: str


class ListJobs(Message, kw_only=True):
    """Ask for jobs, the newest first; `limit` of them."""

    limit: int = 100


class ForgetJob(Message, kw_only=True):
    """Remove a job that is over, with its checkpoints and its curve. What it has learned stays among the models."""

    job: str


class Job(Message, kw_only=True):
    """A job as it is shown. Times are Unix time in seconds, `seconds_left` what the steps to come will take.

    `loss` is the mean of a learned token in the last step, `evaluation_loss` that of a held-out one when that was last
    measured. `saved_step` is the one that a crash of the whole machine would go back to. `result` is the model or
    adapter that came of it.
    """

    job: str
    name: str
    owner: str
    state: JobState
    why: str = ""
    pid: int = 0
    base: str = ""
    method: str = ""
    device: str = ""
    workers: int = 1
    step: int = 0
    steps: int = 0
    tokens: int = 0
    tokens_second: float = 0.0
    loss: float | None = None
    evaluation_loss: float | None = None
    trained: int = 0
    saved_step: int = 0
    lost_workers: int = 0
    started: float = 0.0
    ended: float | None = None
    seconds_left: float | None = None
    result: str = ""
    notes: tuple[str, ...] = ()


class Point(Message, kw_only=True):
    """What was measured behind a step: its loss, rate and gradient, or a loss on what is held out, or what happened."""

    step: int
    at: float
    loss: float | None = None
    evaluation_loss: float | None = None
    rate: float | None = None
    norm: float | None = None
    tokens: int = 0
    seconds: float | None = None
    event: str | None = None


class Curve(Message, kw_only=True):
    """All points of a job, thinned out to about `most` of each kind."""

    job: str
    most: int = 1000


class JobNews(Message, kw_only=True):
    """One item of a job's stream: the job as it is now, and the points since the last item."""

    job: Job
    points: tuple[Point, ...] = ()
