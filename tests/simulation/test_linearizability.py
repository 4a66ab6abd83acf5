"""The checker of linearizability: histories made by hand, histories made by chance, and a search by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.testing.linearizability import (
    Add,
    Calls,
    Counter,
    Model,
    NotLinearizable,
    Operation,
    Read,
    Register,
    Swap,
    Undecided,
    Write,
    check,
)

OPEN = None  # in place of an end


def op(what: Any, began: float, ended: float | None, result: Any = None, subject: str = "x") -> Operation:
    return Operation(subject, what, began, ended, result)


LINEARIZABLE = {
    "nothing at all": (Register(), []),
    "one after another": (Register(), [op(Write(1), 0, 1), op(Read(), 2, 3, 1)]),
    "a read beside a write sees the old value": (Register(), [op(Write(1), 0, 3), op(Read(), 1, 2, 0)]),
    "a read beside a write sees the new value": (Register(), [op(Write(1), 0, 3), op(Read(), 1, 2, 1)]),
    "what touches at one moment overlaps": (Register(), [op(Write(1), 0, 1), op(Read(), 1, 2, 0)]),
    "of two swaps at once one wins": (
        Register(),
        [op(Swap(0, 1), 0, 3, True), op(Swap(0, 2), 1, 2, False), op(Read(), 4, 5, 1)],
    ),
    "an open write has taken effect": (Register(), [op(Write(1), 0, OPEN), op(Read(), 1, 2, 1)]),
    "an open write never takes effect": (Register(), [op(Write(1), 0, OPEN), op(Read(), 1, 2, 0)]),
    "an open write takes effect much later": (
        Register(),
        [op(Write(1), 0, OPEN), op(Read(), 1, 2, 0), op(Write(2), 3, 4), op(Read(), 5, 6, 2), op(Read(), 7, 8, 1)],
    ),
    "sums come in any order of what overlaps": (Counter(), [op(Add(1), 0, 3, 3), op(Add(2), 1, 2, 2)]),
    "an open add explains a gap": (Counter(), [op(Add(1), 0, 1, 1), op(Add(5), 2, OPEN), op(Add(1), 3, 4, 7)]),
    "each subject has a time of its own": (
        Register(),
        [op(Write(1), 0, 1, None, "x"), op(Read(), 2, 3, 0, "y"), op(Read(), 2, 3, 1, "x")],
    ),
    "of two writes at once either is the last": (
        Register(),
        [op(Write(1), 0, 4), op(Write(2), 1, 3), op(Read(), 5, 6, 1), op(Read(), 7, 8, 1)],
    ),
}

NOT_LINEARIZABLE = {
    "a stale read": (Register(), [op(Write(1), 0, 1), op(Read(), 2, 3, 0)]),
    "a value out of nowhere": (Register(), [op(Read(), 0, 1, 7)]),
    "a value that goes back": (
        Register(),
        [op(Write(1), 0, 9), op(Read(), 1, 2, 1), op(Read(), 3, 4, 0)],
    ),
    "two swaps of the same value win": (Register(), [op(Swap(0, 1), 0, 3, True), op(Swap(0, 2), 1, 2, True)]),
    "a swap that found what was there lost": (Register(), [op(Swap(0, 1), 0, 1, False)]),
    "an open write is read before it began": (Register(), [op(Read(), 0, 1, 1), op(Write(1), 2, OPEN)]),
    "an open write takes effect twice": (
        Register(),
        [op(Write(1), 0, OPEN), op(Read(), 1, 2, 1), op(Write(2), 3, 4), op(Read(), 5, 6, 2), op(Read(), 7, 8, 1),
         op(Write(3), 9, 10), op(Read(), 11, 12, 1)],
    ),
    "an add that ran twice": (Counter(), [op(Add(1), 0, 1, 1), op(Add(1), 2, 3, 3)]),
    "an add that was lost": (Counter(), [op(Add(1), 0, 1, 1), op(Add(1), 2, 3, 1)]),
    "two adds with one sum": (Counter(), [op(Add(1), 0, 3, 1), op(Add(1), 1, 2, 1)]),
    "one subject of two": (
        Register(),
        [op(Write(1), 0, 1, None, "x"), op(Read(), 2, 3, 1, "x"), op(Read(), 2, 3, 1, "y")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_a_linearizable_history_passes(name):
    model, operations = LINEARIZABLE[name]
    check(model, operations)


@pytest.mark.parametrize("name", NOT_LINEARIZABLE)
def test_a_history_that_no_order_explains_fails(name):
    model, operations = NOT_LINEARIZABLE[name]
    with pytest.raises(NotLinearizable):
        check(model, operations)


def test_the_report_says_how_far_the_best_order_comes_and_what_does_not_fit():
    with pytest.raises(NotLinearizable) as caught:
        check(Counter(), [op(Add(1), 0, 1, 1), op(Add(5), 2, 3, 7), op(Read(), 4, OPEN)])
    assert str(caught.value).splitlines() == [
        "x: no order explains the results of 3 operations",
        "the longest that fits:",
        "  Add(amount=1) from 0 to 1: 1 → 1",
        "then none of:",
        "  Add(amount=5) from 2 to 3: 7",
        "  Read() from 4 and nobody knows",
    ]


def test_a_search_that_meets_its_limit_proves_nothing_and_says_so():
    operations = [op(Write(number), 0, 100) for number in range(12)]
    with pytest.raises(Undecided, match="50 configurations of 13 operations"):
        check(Register(), [*operations, op(Read(), 200, 201, "never")], most=50)


def test_what_was_tried_is_not_tried_again():
    operations = [op(Add(1), 0, 100, number + 1) for number in range(64)]  # 64! orders, and one state for each sum
    check(Counter(), reversed(operations), most=10_000)


def test_a_model_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="a counter does not know"):
        check(Counter(), [op(Write(1), 0, 1)])


def test_calls_are_written_down_in_the_order_in_which_they_begin_and_end():
    calls = Calls()
    first, second, third = (calls.began("x", Add(amount)) for amount in (1, 2, 3))
    calls.ended(second, 2)
    calls.refused(third)
    fourth = calls.began("x", Read())
    calls.ended(fourth, 3)
    assert calls.operations == (
        Operation("x", Add(2), 1, 3, 2),
        Operation("x", Read(), 4, 5, 3),
        Operation("x", Add(1), 0),
    )
    assert first == 0
    check(Counter(), calls.operations)


# By chance

REGISTER = st.one_of(
    st.just(Read()),
    st.builds(Write, st.integers(0, 2)),
    st.builds(Swap, st.integers(0, 2), st.integers(0, 2)),
)
COUNTER = st.one_of(st.just(Read()), st.builds(Add, st.integers(1, 3)))
KINDS = st.sampled_from([(Register(), REGISTER), (Counter(), COUNTER)])


@st.composite
def histories(draw: st.DrawFn, *, most: int) -> tuple[Model, list[Operation]]:
    """A run of one caller, in which each operation then takes longer; some stay open, and some of those do nothing."""
    model, kind = draw(KINDS)
    state = model.initial
    operations = []
    for place, what in enumerate(draw(st.lists(kind, max_size=most))):
        fate = draw(st.sampled_from(("ended", "ended", "ended", "open", "lost")))
        began = place - draw(st.integers(0, 12)) / 4
        if fate == "lost":
            operations.append(op(what, began, OPEN))
            continue
        state, result = model.apply(state, what)
        ended = OPEN if fate == "open" else place + draw(st.integers(0, 12)) / 4
        operations.append(op(what, began, ended, result if ended is not OPEN else None))
    return model, draw(st.permutations(operations))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Model, list[Operation]]:
    """A history in which some results are others."""
    model, operations = draw(histories(most=6))
    for place, operation in enumerate(operations):
        if operation.ended is not OPEN and draw(st.booleans()):
            result = draw(st.sampled_from((0, 1, 2, 3, True, False, None)))
            operations[place] = msgspec.structs.replace(operation, result=result)
    return model, operations


def is_linearizable(model: Model, operations: Iterable[Operation]) -> bool:
    try:
        check(model, operations)
    except NotLinearizable:
        return False
    return True


def by_brute_force(model: Model, operations: list[Operation]) -> bool:
    """Whether any order of all that ended and of any of the open ones keeps to time and to the model."""
    closed = [operation for operation in operations if operation.ended is not OPEN]
    opened = [operation for operation in operations if operation.ended is OPEN]
    chosen = itertools.chain.from_iterable(itertools.combinations(opened, n) for n in range(len(opened) + 1))
    return any(explains(model, order) for some in chosen for order in itertools.permutations([*closed, *some]))


def explains(model: Model, order: tuple[Operation, ...]) -> bool:
    state, latest = model.initial, float("-inf")
    for operation in order:
        latest = max(latest, operation.began)
        if operation.ended is not OPEN and operation.ended < latest:
            return False
        state, result = model.apply(state, operation.what)
        if operation.ended is not OPEN and result != operation.result:
            return False
    return True


@settings(deadline=None)
@given(histories(most=40))
def test_a_run_of_one_caller_whose_operations_are_stretched_is_linearizable(history):
    check(*history)


@settings(deadline=None)
@given(mutated())
def test_the_checker_says_what_brute_force_says(history):
    model, operations = history
    assert is_linearizable(model, operations) is by_brute_force(model, operations)


@settings(deadline=None)
@given(st.lists(COUNTER, min_size=1, max_size=20), st.data())
def test_without_overlap_any_other_result_is_found(operations, data):
    state, history = 0, []
    for place, what in enumerate(operations):
        state, result = Counter().apply(state, what)
        history.append(op(what, 2 * place, 2 * place + 1, result))
    place = data.draw(st.integers(0, len(history) - 1))
    wrong = history[place].result + data.draw(st.integers(1, 5))
    history[place] = msgspec.structs.replace(history[place], result=wrong)
    assert not is_linearizable(Counter(), history)
