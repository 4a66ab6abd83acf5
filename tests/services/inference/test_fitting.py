"""What is said to a model that cannot fit: the numbers, and each way that would help."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.inference.fitting import Neighbour, Wish, too_large

MB = 10**6


def wish(weights: int = 100 * MB, page: int = MB, length: int = 4096, parameters: int = 10 * MB) -> Wish:
    return Wish(
        name="m",
        device="cpu0",
        weight_bytes=weights,
        buffer_bytes=10 * MB,
        page_bytes=page,
        length=length,
        slots=4,
        parameters=parameters,
    )


def test_the_numbers_are_named():
    error = too_large(wish(), 1024, 50 * MB, [])
    assert error.message == (
        "model 'm' needs 174.0 MB on cpu0 (100.0 MB of weights, 74.0 MB of buffers and pages for a context of 1024 "
        "tokens), and 50.0 MB are free"
    )


def test_a_shorter_context_that_fits_is_named():
    assert "with context_length = 640" in str(too_large(wish(), 1024, 150 * MB, []))


def test_no_context_is_named_where_not_even_the_weights_fit():
    assert "context_length" not in str(too_large(wish(), 1024, 110 * MB, []).remedy)


def test_the_fewest_models_that_would_have_to_go_are_named_and_whether_they_are_in_use():
    neighbours = [Neighbour("a", 50 * MB, False), Neighbour("b", 90 * MB, True), Neighbour("c", 60 * MB, False)]
    error = too_large(wish(), 1024, 40 * MB, neighbours)
    assert "without 'b' (in use) and 'c'" in str(error.remedy)
    assert error.retry_after
    assert "without 'b' (in use)" in str(too_large(wish(), 1024, 90 * MB, neighbours).remedy)


def test_no_models_are_named_where_all_of_them_would_not_be_enough():
    error = too_large(wish(), 1024, 10 * MB, [Neighbour("a", 50 * MB, False)])
    assert "without" not in str(error.remedy)
    assert error.retry_after is None


def test_fewer_bits_are_named_where_they_would_be_enough():
    large = wish(weights=1000 * MB, parameters=500 * MB)
    assert "in 4 bits (Q4_0: about 285.0 MB of weights)" in str(too_large(large, 1024, 400 * MB, []).remedy)
    assert "4 bits" not in str(too_large(large, 1024, 300 * MB, []).remedy)


def test_where_nothing_helps_a_smaller_model_is_advised():
    assert too_large(wish(), 1024, MB, []).remedy == "use a smaller model, or a device with more memory"


@given(free=st.integers(0, 173 * MB), page=st.integers(1, 4 * MB))
def test_a_context_that_is_named_really_fits_and_one_page_more_would_not(free, page):
    asked = wish(page=page)
    if asked.bytes_at(1024) <= free:
        return
    remedy = str(too_large(asked, 1024, free, []).remedy)
    if "context_length = " in remedy:
        length = int(remedy.rsplit("= ", 1)[1])
        assert asked.bytes_at(length) <= free
        assert length >= 1008 or asked.bytes_at(length + 16) > free
    else:
        assert asked.bytes_at(16) > free
