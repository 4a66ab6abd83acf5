"""The section `[services.training]` of the configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec

from microkernel.message import Message

__all__ = ["TrainingSettings"]


class TrainingSettings(Message, kw_only=True):
    """`at_once` jobs run at a time, and `waiting` more may wait. A job that is stopped has `stop_seconds` for its last
    checkpoint. With `resume`, jobs that were interrupted go on when the node is booted.
    """

    at_once: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    waiting: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 64
    stop_seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0
    resume: bool = True
