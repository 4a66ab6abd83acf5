"""Parameters as views of flat tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.training.model.flat import FlatParameters, lay_out

CPU = torch.device("cpu")
SHAPES = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.one_of(st.tuples(st.integers(1, 5)), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    min_size=1,
)


@settings(deadline=None)
@given(SHAPES)
def test_every_element_belongs_to_one_parameter(shapes):
    flat = FlatParameters(lay_out(shapes), CPU)
    for name in shapes:
        flat.value(name).add_(1.0)
    assert torch.equal(flat.values, torch.ones(flat.layout.size))


@settings(deadline=None)
@given(SHAPES)
def test_matrices_lie_before_vectors(shapes):
    layout = lay_out(shapes)
    for slot in layout.slots:
        assert (slot.offset + slot.size <= layout.decayed) is (len(slot.shape) == 2)


def test_parameters_behind_each_other_are_one_with_one_gradient():
    flat = FlatParameters(lay_out({"q": (2, 3), "k": (1, 3), "norm": (3,)}), CPU)
    both = flat.parameter("q", "k")
    (both * torch.arange(9.0).view(3, 3)).sum().backward()
    assert torch.equal(flat.gradients, torch.cat((torch.arange(9.0), torch.zeros(3))))


def test_parameters_that_lie_apart_are_not_taken_for_one():
    flat = FlatParameters(lay_out({"q": (2, 3), "other": (2, 3), "k": (1, 3)}), CPU)
    with pytest.raises(AssertionError, match="k does not follow q"):
        flat.parameter("q", "k")


def test_loading_changes_what_the_parameters_are():
    flat = FlatParameters(lay_out({"q": (2, 3)}), CPU)
    parameter = flat.parameter("q")
    flat.load(torch.arange(6.0))
    assert torch.equal(parameter.detach(), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("given", [torch.zeros(5), torch.zeros(6, dtype=torch.float64)], ids=["short", "float64"])
def test_another_models_parameters_are_refused(given):
    flat = FlatParameters(lay_out({"q": (2, 3)}), CPU)
    with pytest.raises(Invalid, match=r"float32 \[6\]"):
        flat.load(given)
