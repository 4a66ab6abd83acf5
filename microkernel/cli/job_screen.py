"""What is shown of a training job: what is known of it, one line of a step, and the live screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from microkernel.cli.output import STATE_STYLES, clean, duration
from microkernel.cli.text_chart import chart

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["JobScreen", "Known", "step_line"]

BAR = 40  # characters
CHART = (64, 8)  # characters and lines
EVENTS = 4  # the last that are shown


class Known:
    """A job as it was told last, and its curve so far. Steps that are done again replace what they were."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.losses: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self.events: list[tuple[int, str]] = []

    def hear(self, news: dict[str, Any]) -> None:
        """Take an item of `training.watch`."""
        self.job = news["job"]
        self.take(news["points"])

    def take(self, points: Sequence[dict[str, Any]]) -> None:
        """Take points of the curve."""
        for point in points:
            if point["loss"] is not None:
                self.losses[point["step"]] = point["loss"]
            if point["evaluation_loss"] is not None:
                self.held_out[point["step"]] = point["evaluation_loss"]
            if point["event"] is not None and (point["step"], point["event"]) not in self.events:
                self.events.append((point["step"], point["event"]))

    @property
    def first_held_out(self) -> tuple[int, float] | None:
        """The step of the first measurement on what is held out, and its loss."""
        return min(self.held_out.items(), default=None)

    @property
    def last_held_out(self) -> tuple[int, float] | None:
        """The step of the last measurement on what is held out, and its loss."""
        return max(self.held_out.items(), default=None)

    @property
    def lost(self) -> str:
        """How many workers were lost, in words; "" for none."""
        count = self.job["lost_workers"]
        return "" if not count else "1 worker was" if count == 1 else f"{count} workers were"


def step_line(job: dict[str, Any]) -> str:
    """How far a job is, in one line."""
    parts = [f"step {job['step']} of {job['steps']}"]
    if job["loss"] is not None:
        parts.append(f"loss {job['loss']:.3f}")
    if job["evaluation_loss"] is not None:
        parts.append(f"held out {job['evaluation_loss']:.3f}")
    if job["tokens_second"]:
        parts.append(f"{job['tokens_second']:.0f} tokens/s")
    if job["seconds_left"] is not None:
        parts.append(f"{duration(job['seconds_left'])} left")
    return "   ".join(parts)


class JobScreen:
    """Draws a job for a terminal."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def draw(self, now: float) -> Group:
        """All of it, at a Unix time in seconds."""
        from rich.console import Group
        from rich.text import Text

        job = self.known.job
        state, why = job["state"], job["why"]
        ended = now if job["ended"] is None else job["ended"]
        kind = " ".join(part for part in (job["method"], "of", job["base"]) if job["base"] or part == job["method"])
        head = Text.assemble(
            (clean(job["job"]), "bold"), "   ", (state, STATE_STYLES.get(state, "")), "   ", clean(kind),
            f"   {duration(max(0.0, ended - job['started']))}",
        )  # fmt: skip
        lines = [head]
        if why:
            lines.append(Text(clean(why), style="dim"))
        if job["steps"]:
            lines.append(Text(_bar(job["step"] / job["steps"])))
            lines.append(Text(step_line(job)))
        if len(self.known.losses) > 1:
            lines += [
                Text(""),
                *(Text(line) for line in chart(self.known.losses, self.known.held_out, *CHART)),
                Text(""),
            ]
        lines += [Text(line, style="dim") for line in self._rest()]
        return Group(*lines)

    def _rest(self) -> list[str]:
        job = self.known.job
        lines = []
        if job["saved_step"]:
            lines.append(f"last checkpoint: step {job['saved_step']}")
        if self.known.lost:
            lines.append(f"{self.known.lost} lost, and replaced")
        lines += [f"step {step}: {clean(event)}" for step, event in self.known.events[-EVENTS:]]
        lines += [f"note: {clean(note)}" for note in job["notes"][-EVENTS:]]
        if not job["ended"]:
            lines.append("Ctrl-C leaves it running")
        return lines


def _bar(share: float) -> str:
    share = max(0.0, min(1.0, share))
    full = round(BAR * share)
    return f"{'█' * full}{'░' * (BAR - full)} {share:>4.0%}"
