"""The order of a key, against a list that is sorted."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from microkernel.keyed import Keyed

keys = st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(-5.0, 5.0)


@given(st.lists(st.tuples(st.sampled_from(["push", "push", "pop", "put back"]), keys), max_size=200))
def test_the_smallest_key_goes_first_and_of_equals_what_came_first(moves):
    keyed, model, numbers = Keyed[int](), list[tuple[float, int]](), count()
    for move, key in moves:
        number = next(numbers)
        first = min(model, default=None)
        assert keyed.first() == (first and first[1])
        if move == "push":
            keyed.push(key, number)
        elif move == "pop":
            assert keyed.pop() == (first and first[1])
        elif first is not None:
            keyed.put_back(key, number)
        if move != "push" and first is not None:
            model.remove(first)
        if move == "push" or (move == "put back" and first is not None):
            model.append((key, number))
        assert sorted(keyed) == sorted(number for _, number in model)
    assert [keyed.pop() for _ in model] == [number for _, number in sorted(model)]
