"""Model folders as they are written."""

from __future__ import annotations

import pytest
import torch
from tiny_training import FAMILIES, tiny_config, write_folder_of

from formats.checkpoint.architecture import RopeScaling, expected_shapes
from formats.checkpoint.checkpoint import open_checkpoint
from formats.checkpoint.safetensors_writer import fresh_folder, hf_config
from microkernel.errors import AlreadyExists, Unimplemented

SCALINGS = [
    RopeScaling(kind="linear", factor=2.0, original_length=128),
    RopeScaling(kind="llama3", factor=8.0, original_length=64, low_freq_factor=1.5, high_freq_factor=3.0),
    RopeScaling(kind="yarn", factor=4.0, original_length=64, beta_fast=16.0, attention_factor=1.1),
]
SHAPES = [
    *({"family": family} for family in FAMILIES),
    *({"rope_scaling": scaling} for scaling in SCALINGS),
    {"qkv_bias": True, "output_bias": True},
    {"family": "qwen2", "sliding_window": 7, "sliding_from": 1},
    {"head_dim": 24, "rope_theta": 5e5, "norm_eps": 1e-6},
]


def random_weights(config):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_shape_that_is_read_is_the_one_that_was_written(tmp_path, changes):
    config = tiny_config(**changes)
    read = open_checkpoint(write_folder_of(tmp_path / "out", config, random_weights(config).__getitem__)).config
    for field in config.__struct_fields__:
        if field != "quantization":
            assert getattr(read, field) == getattr(config, field), field


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_weights_that_are_read_are_those_that_were_written(tmp_path, changes):
    config = tiny_config(**changes)
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_folder_of(tmp_path / "out", config, weights.__getitem__))
    for name, values in weights.items():
        assert torch.equal(checkpoint.weight(name).dequantize(), values), name


def test_a_llama_with_a_window_is_written_as_the_mistral_that_it_is():
    assert hf_config(tiny_config(sliding_window=9), torch.float32, bos=None, eos=[])["model_type"] == "mistral"


@pytest.mark.parametrize("changes", [{"qkv_bias": True}, {"qk_norm": True}, {"family": "qwen2", "qkv_bias": False}])
def test_a_shape_that_no_class_has_is_refused(changes):
    with pytest.raises(Unimplemented):
        hf_config(tiny_config(**changes), torch.float32, bos=None, eos=[])


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with fresh_folder(tmp_path / "out") as fresh:
        (fresh / "file").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def half() -> None:
        with fresh_folder(tmp_path / "out") as fresh:
            (fresh / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with fresh_folder(tmp_path / "out") as fresh:
        (fresh / "file").write_text("whole")
    assert (tmp_path / "out" / "file").exists()


def test_a_folder_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(AlreadyExists), fresh_folder(tmp_path / "out"):
        pass
