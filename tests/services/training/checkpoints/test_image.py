from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kept_states import slot_of, state_of
from safetensors.torch import load

from services.training.checkpoints.image import PAGE, header_of, image_of, plan

names = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True)
sizes_of_states = st.dictionaries(names, st.integers(1, 5000), min_size=1, max_size=6)


@given(sizes_of_states, st.integers(1, 40_000))
def test_what_lies_in_a_slot_is_what_the_library_reads(sizes, file_bytes):
    state = state_of(1, sizes=sizes)
    slot = slot_of(state, file_bytes)
    found = {}
    for image in plan(sizes, file_bytes).images:
        found.update(load(bytes(slot[image.place : image.place + image.size])))
    assert found.keys() == state.tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.tensors.items())


@given(sizes_of_states, st.integers(1, 40_000))
def test_files_in_a_slot_begin_on_pages_and_do_not_overlap(sizes, file_bytes):
    layout = plan(sizes, file_bytes)
    end = 0
    for image in layout.images:
        assert image.place % PAGE == 0
        assert image.place >= end
        end = image.place + image.size
    assert end <= layout.size


@given(sizes_of_states)
def test_tensors_begin_on_a_page_of_their_file(sizes):
    assert len(header_of(sizes)) % PAGE == 0


@pytest.mark.parametrize(("file_bytes", "files"), [(1, 3), (8000, 2), (12_000, 1)])
def test_a_file_is_full_before_the_next_begins(file_bytes, files):
    assert len(plan({"a": 1000, "b": 1000, "c": 1000}, file_bytes).images) == files


def test_a_file_is_as_long_as_its_header_says():
    image = image_of({"a": 3, "b": 5})
    assert image.size == len(image.header) + 4 * (3 + 5)
