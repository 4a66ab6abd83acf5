"""How often a checkpoint is worth its cost: Young's rule with Daly's terms, from what was measured.

With a cost of C seconds a checkpoint and M seconds between faults, the least time is lost with an interval of about
√(2CM): J. W. Young, https://doi.org/10.1145/361147.361115. J. T. Daly's next terms matter where faults are frequent:
https://doi.org/10.1016/j.future.2004.11.016. C is what training loses by a checkpoint, which is the time that it waits
for the copy and what the writer takes from its cores; the time until it is durable is none of it.

Where no fault was seen there is still one to come. Their rate has a gamma prior that is worth one fault in a day: after
an hour without any it is one in 25 hours. For one node that is often: clusters of thousands see one in some 50,000
hours of an accelerator (https://arxiv.org/abs/2407.21783, section 3.3.4). It is a job's, though, which is also ended by
hand, by updates and by want of memory, and a wrong guess costs little: with twice the interval the loss is 5/4.
"""

from __future__ import annotations

import math

import msgspec

from microkernel.errors import Invalid

__all__ = ["LONGEST", "LOSS", "Costs", "Faults", "best_seconds", "interval_steps", "lost_share"]

LOSS = 0.005
"""The part of its time that training gives for checkpoints at most."""

LONGEST = 1800.0
"""Seconds of work that a fault may take at most, where `LOSS` allows it."""

PRIOR_FAULTS = 1.0
PRIOR_SECONDS = 86_400.0
MOST_STEPS = 1 << 31


class Costs(msgspec.Struct, frozen=True):
    """Measured, in seconds: a `step`; what training waits for a copy; until it is durable; and what it loses meanwhile.

    `slowed` is the writer's share: the steps beside it are longer than others by so much in all.
    """

    step: float
    blocked: float
    written: float
    slowed: float = 0.0

    @property
    def cost(self) -> float:
        """What a checkpoint costs training."""
        return self.blocked + self.slowed


class Faults(msgspec.Struct, frozen=True):
    """What was seen: so many faults in so many seconds of the job."""

    seen: int = 0
    seconds: float = 0.0

    @property
    def between(self) -> float:
        """Seconds from one to the next, as far as can be said."""
        return (self.seconds + PRIOR_SECONDS) / (self.seen + PRIOR_FAULTS)


def best_seconds(cost: float, between: float) -> float:
    """Daly's interval, without the checkpoint itself, for a `cost` and faults that are `between` seconds apart."""
    if cost >= 2 * between:
        return between
    part = cost / (2 * between)
    return math.sqrt(2 * cost * between) * (1 + math.sqrt(part) / 3 + part / 9) - cost


def lost_share(costs: Costs, faults: Faults, seconds: float) -> float:
    """The part of its time that a job loses with this interval: copies, and what is computed again after faults."""
    return costs.cost / seconds + (seconds / 2 + costs.written) / faults.between


def interval_steps(costs: Costs, faults: Faults, *, loss: float = LOSS, longest: float = LONGEST) -> int:
    """After how many steps the next checkpoint is due; at least 1.

    It is Daly's interval, and no more than `longest` seconds. Above both stands that checkpoints cost at most the part
    `loss`, and that one is written before the next begins. Raises `Invalid` for costs that are none.
    """
    numbers = (costs.step, costs.blocked, costs.written, costs.slowed, loss, longest)
    if not all(math.isfinite(each) and each >= 0 for each in numbers) or costs.step == 0 or loss == 0:
        raise Invalid(f"no interval follows from {costs}, a loss of {loss} and at most {longest} s")
    wanted = min(best_seconds(costs.cost, faults.between), longest)
    least = max(costs.cost / loss, costs.written)
    return min(MOST_STEPS, max(1, math.ceil(max(wanted, least) / costs.step)))
