from __future__ import annotations

import pytest
import torch

from microkernel.errors import Invalid
from services.training.checkpoints.facts import Facts, Parameter
from services.training.checkpoints.state import TrainingState

FLAT = torch.zeros(10)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 5), torch.zeros(10, dtype=torch.bfloat16), torch.zeros(20)[::2], torch.zeros(0)],
    ids=["two dimensions", "another type", "not contiguous", "empty"],
)
def test_only_flat_contiguous_float32_is_kept(tensor):
    with pytest.raises(Invalid):
        TrainingState({"weights": tensor}, Facts(step=1)).check()


@pytest.mark.parametrize("name", ["", "../weights", "Weights", "__metadata__", "a" * 129, "a/b"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(Invalid):
        TrainingState({name: FLAT}, Facts(step=1)).check()


@pytest.mark.parametrize(
    "layout",
    [
        {"other": ()},
        {"weights": (Parameter("a", (3, 4), 0),)},
        {"weights": (Parameter("a", (5,), 0), Parameter("b", (5,), 4))},
        {"weights": (Parameter("a", (1 << 40, 1 << 40), 0),)},
    ],
    ids=["no such tensor", "beyond its end", "overlapping", "huge"],
)
def test_a_layout_that_does_not_fit_its_tensor_is_refused(layout):
    with pytest.raises(Invalid):
        TrainingState({"weights": FLAT}, Facts(step=1, layout=layout)).check()


def test_a_layout_that_fits_is_taken():
    layout = {"weights": (Parameter("a", (2, 3), 0), Parameter("b", (4,), 6))}
    TrainingState({"weights": FLAT}, Facts(step=1, layout=layout)).check()


@pytest.mark.parametrize("facts", [{"metrics": {"loss": float("nan")}}, {"extra": {"rate": float("inf")}}])
def test_a_number_that_json_cannot_say_is_refused(facts):
    with pytest.raises(Invalid, match="JSON cannot say"):
        TrainingState({"weights": FLAT}, Facts(step=1, **facts)).check()
