"""Arrays: made from whatever lends its memory, read-only, checked."""

from __future__ import annotations

import array
import math
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import microkernel as mk
from microkernel.buffers import DTYPES, Array, array_from_json
from microkernel.errors import Invalid
from microkernel.message import convert, schema_of, to_builtins

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NUMPY = [dtype for dtype in DTYPES if hasattr(np, dtype)]
TORCH = [dtype for dtype in DTYPES if hasattr(torch, dtype)]


class Put(mk.Message):
    key: str
    tensor: mk.Array


@given(st.sampled_from(NUMPY), SHAPES)
def test_a_numpy_array_becomes_an_array_and_back_without_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    source = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    made = Array.from_(source)
    back = np.asarray(made)
    assert (made.dtype, made.shape, made.nbytes) == (dtype, shape, source.nbytes)
    assert back.dtype == source.dtype
    assert np.array_equal(back, source)
    assert not source.size or np.shares_memory(back, source)


@given(st.sampled_from(TORCH), SHAPES)
def test_a_tensor_becomes_an_array_and_back_bit_by_bit(dtype: str, shape: tuple[int, ...]) -> None:
    kind = getattr(torch, dtype)
    source = torch.zeros(shape, dtype=torch.float32).to(kind)
    made = Array.from_(source)
    assert (made.dtype, made.shape, made.nbytes) == (dtype, shape, source.numel() * source.element_size())
    if source.numel():
        back = torch.frombuffer(bytearray(made.view()), dtype=kind).reshape(shape)
        assert torch.equal(back.view(torch.uint8) if shape else back, source.view(torch.uint8) if shape else source)


def test_an_array_is_a_view_of_a_tensors_memory_that_cannot_be_written_through() -> None:
    source = torch.zeros(2, 3)
    made = Array.from_(source)
    source[0, 0] = 7.0
    assert np.asarray(made)[0, 0] == 7.0
    with pytest.raises(TypeError, match="read-only"):
        made.view()[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(made)[0, 0] = 1


@pytest.mark.parametrize(
    "source",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(6.0, requires_grad=True),
        torch.complex(torch.ones(2), torch.ones(2)).conj(),
        np.arange(6).reshape(2, 3).T,
        np.arange(12)[::2],
    ],
    ids=["transposed", "with a gradient", "conjugate", "in Fortran order", "with steps"],
)
def test_what_does_not_lie_in_order_is_put_in_order(source: Any) -> None:
    plain = source.detach().resolve_conj().numpy() if isinstance(source, torch.Tensor) else source
    assert np.array_equal(np.asarray(Array.from_(source)), plain)


def test_what_lends_a_buffer_is_an_array() -> None:
    assert Array.from_(b"abc") == Array(b"abc", "uint8", (3,))
    assert Array.from_(array.array("d", [1.0, 2.0])).dtype == "float64"
    assert Array.from_(Array.from_(b"abc")).shape == (3,)


def test_what_only_has_dunder_array_is_an_array() -> None:
    class Compiled:
        def __array__(self) -> Any:
            return np.arange(3, dtype=np.int16)

    assert Array.from_(Compiled()).dtype == "int16"


@pytest.mark.parametrize("source", [object(), 7, "text", np.arange(3).astype(">i4"), np.array(["x"]), np.array([None])])
def test_what_is_no_array_is_refused(source: Any) -> None:
    with pytest.raises(Invalid):
        Array.from_(source)


@pytest.mark.parametrize(
    ("dtype", "shape", "why"),
    [
        ("float32", (3,), r"float32 in the shape \[3\] takes 12 bytes, not 16"),
        ("float32", (-4, -1), "from 0 to 2\\*\\*63 - 1, not -4"),
        ("float32", (True, 4), "not True"),
        ("float32", (2**63, 0), "not 9223372036854775808"),
        ("float32", (1,) * 33, "at most 32"),
        ("float32", (4.0,), "not 4.0"),
        ("float32", "4", "at most 32"),
        ("float31", (4,), "no dtype 'float31'"),
        (None, (4,), "no dtype None"),
        ([], (4,), r"no dtype \[\]"),
    ],
)
def test_bytes_that_do_not_make_up_the_shape_are_refused_with_the_numbers(dtype: Any, shape: Any, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        Array(bytes(16), dtype, shape)


def test_numpy_is_told_that_it_has_no_bfloat16() -> None:
    with pytest.raises(AttributeError, match="numpy has no bfloat16: view it as uint16 instead"):
        _ = Array(bytes(4), "bfloat16").__array_interface__


def test_inside_the_process_an_array_is_passed_by_reference() -> None:
    tensor = Array(b"abc")
    assert convert({"key": "k", "tensor": tensor}, Put).tensor is tensor

    class Other(mk.Message):
        key: str
        tensor: mk.Array

    assert convert(Other("k", tensor), Put).tensor is tensor


@given(st.sampled_from(sorted(DTYPES)), SHAPES)
def test_in_json_an_array_is_base64_and_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    size = math.prod(shape) * DTYPES[dtype]
    put = Put("k", Array((bytes(range(256)) * (size // 256 + 1))[:size], dtype, shape))
    plain = msgspec.json.decode(msgspec.json.encode(to_builtins(put)))
    assert convert(plain, Put) == put


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (7, "Expected an array"),
        ({"dtype": "uint8", "shape": [1]}, "Expected an array"),
        ({"dtype": "uint8", "shape": [1], "data": "?"}, "Invalid base64"),
        ({"dtype": "uint8", "shape": [2], "data": "AA=="}, "takes 2 bytes, not 1"),
        ({"dtype": "uint8", "shape": [1], "data": 5}, "not of int"),
    ],
)
def test_json_that_is_no_array_names_the_field_at_fault(value: Any, why: str) -> None:
    with pytest.raises(Invalid, match=why) as caught:
        convert({"key": "k", "tensor": value}, Put)
    assert caught.value.field == "tensor"
    with pytest.raises(ValueError, match=why):
        array_from_json(value)


def test_a_message_with_an_array_has_a_schema() -> None:
    definitions = schema_of(Put)["$defs"]
    assert definitions["Put"]["properties"]["tensor"]["required"] == ["dtype", "shape", "data"]


def test_no_tensor_library_is_imported_for_it() -> None:
    script = "import sys, microkernel.buffers; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
