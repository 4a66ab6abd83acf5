"""Cases as pytest takes them: by number, slow ones and those that are known to fail marked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from conformance.case import Case

__all__ = ["parameters"]


def parameters(cases: Iterable[Case]) -> list[Any]:
    """One for each case. What is known to be wrong has to go on failing, or its mark has to go."""
    found = []
    for case in cases:
        marks = [pytest.mark.slow] if case.slow else []
        if case.wrong:
            marks.append(pytest.mark.xfail(strict=True, raises=AssertionError, reason=case.wrong))
        found.append(pytest.param(case, id=case.number, marks=marks))
    return found
