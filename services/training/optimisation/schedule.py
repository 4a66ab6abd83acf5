"""The learning rate by step: a rise over the warm-up, then a decay. A pure function of the step, counted from 0."""

from __future__ import annotations

import math

from services.training.config import ScheduleConfig

__all__ = ["rate_factor", "warmup_steps"]


def warmup_steps(schedule: ScheduleConfig, steps: int) -> int:
    """How many of `steps` the rate rises over: `warmup` itself, or that part of all where it is below 1."""
    warmup = schedule.warmup if schedule.warmup >= 1.0 else schedule.warmup * steps
    return min(round(warmup), steps)


def rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """By what the height of the rate is multiplied in `step` of `steps`.

    The last step of the warm-up has 1; the last step of all has `final`, unless the rate is constant. What comes behind
    the last stays there.
    """
    warm = warmup_steps(schedule, steps)
    if step < warm:
        return (step + 1) / warm
    if schedule.decay == "constant":
        return 1.0
    part = min(1.0, (step - warm + 1) / (steps - warm)) if steps > warm else 1.0
    left = 1.0 - part if schedule.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * part))
    return schedule.final + (1.0 - schedule.final) * left
