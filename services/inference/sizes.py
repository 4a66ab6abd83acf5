"""How many requests a model runs at once, and how many tokens a step computes: as set, as measured, or as a guess."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.devices.messages import Tuning
from services.inference.engine.trials import Trials
from services.inference.settings import InferenceSettings

__all__ = ["Sizes", "chosen", "measured", "sizes_of", "trials_of"]

SLOTS = 32
TOKEN_BUDGET = 512
WORTH = 0.95  # part of the best throughput that is as good


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine has. `steps` tell what some took: how many decoded, how many tokens were read, the seconds."""

    slots: int
    token_budget: int
    steps: tuple[tuple[int, int, float], ...] = ()
    tuned: bool = False


def sizes_of(settings: InferenceSettings, tuning: Tuning | None) -> Sizes:
    """What the settings say, or else what was measured, or else what is about right anywhere."""
    found: Mapping[str, int] = {} if tuning is None else tuning.chosen
    trials = trials_of(tuning)
    return Sizes(
        slots=settings.slots or found.get("slots", SLOTS),
        token_budget=settings.token_budget or found.get("token_budget", TOKEN_BUDGET),
        steps=(
            *((count, 0, seconds) for count, seconds in trials.decoding.items()),
            *((0, count, seconds) for count, seconds in trials.reading.items()),
        ),
        tuned=tuning is not None,
    )


def chosen(trials: Trials) -> dict[str, int]:
    """The most answers at once that cost no throughput, and the fewest tokens in a step that gain no less.

    A place more lets somebody begin earlier, and a shorter step lets somebody more urgent begin earlier. A step has its
    tokens of prompts beside one for each answer: however many are given, prompts are read.
    """
    slots = max(_good(trials.decoding))
    return {"slots": slots, "token_budget": slots + min(_good(trials.reading))}


def trials_of(tuning: Tuning | None) -> Trials:
    """The figures that were kept, as they were measured."""
    trials = Trials()
    for name, seconds in ({} if tuning is None else tuning.measured).items():
        what, _, count = name.rpartition(" ")
        if count.isdecimal() and what in {"decode", "read"}:
            (trials.decoding if what == "decode" else trials.reading)[int(count)] = seconds
    return trials


def measured(trials: Trials) -> dict[str, float]:
    """The figures as they are kept."""
    return {f"decode {count}": seconds for count, seconds in trials.decoding.items()} | {
        f"read {count}": seconds for count, seconds in trials.reading.items()
    }


def _good(steps: Mapping[int, float]) -> list[int]:
    """Those whose tokens a second are about as many as there can be."""
    best = max(count / seconds for count, seconds in steps.items())
    return [count for count, seconds in steps.items() if count / seconds >= WORTH * best]
