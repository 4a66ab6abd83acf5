"""The benchmark's random model as a file, and our engine driven on a tiny one as the benchmark drives it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_tokenizers import byte_level

from benchmarks.engine.no_model import Engine as NoModel
from benchmarks.engine.random_model import BIG, Shape, kept, write_quantised, write_random
from benchmarks.first_token.own_engine import Engine as OwnEngine
from formats.checkpoint.checkpoint import open_checkpoint
from formats.text.tokenizer import open_tokenizer

TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head=16, feed_forward=96, words=320, context=512)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in byte_level().items():
        kinds = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        kinds[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path, tokenizer):
    path = tmp_path / "tiny.gguf"
    write_random(path, TINY, tokenizer=tokenizer)
    return path


def test_the_file_is_a_model_of_that_shape_with_the_other_files_tokenizer(model, tokenizer):
    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    assert (config.hidden_size, config.layers, config.vocab_size) == (64, 2, 320)
    source, copied = _metadata(tokenizer), _metadata(model)
    assert {name: copied[name] for name in source} == source
    assert open_tokenizer(checkpoint.tokenizer_source).vocab_size <= TINY.words
    reader = gguf.GGUFReader(model)
    assert sum(tensor.n_elements for tensor in reader.tensors) == TINY.parameters
    assert [tensor.name for tensor in reader.tensors] == [name for name, *_ in TINY.tensors()]


def test_weights_are_normal_with_a_small_deviation_and_norms_are_one(model):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(model).tensors}
    matrix = np.asarray(tensors["blk.1.ffn_down.weight"].data, np.float32)
    assert matrix.shape == (64, 96)
    assert abs(float(matrix.std()) - 0.02) < 0.001
    assert abs(float(matrix.mean())) < 0.001
    assert tensors["blk.1.ffn_down.weight"].tensor_type is gguf.GGMLQuantizationType.F16
    assert (tensors["output_norm.weight"].data == 1.0).all()
    one, other = (np.asarray(tensors[f"blk.{layer}.attn_q.weight"].data) for layer in (0, 1))
    assert (one != other).any()


def test_the_same_seed_makes_the_same_file_and_another_seed_another_one(tmp_path, model, tokenizer):
    again, other = tmp_path / "again.gguf", tmp_path / "other.gguf"
    write_random(again, TINY, tokenizer=tokenizer)
    write_random(other, TINY, tokenizer=tokenizer, seed=1)
    assert again.read_bytes() == model.read_bytes() != other.read_bytes()


def test_k_quants_apply_to_every_matrix_of_the_large_model():
    assert 0.6e9 < BIG.parameters < 1e9
    assert all(columns % 256 == 0 for _, rows, columns in BIG.tensors() if rows > 1)
    assert BIG.heads * BIG.head == BIG.hidden


@pytest.mark.peer
def test_the_large_models_kind_of_file_can_be_read_by_us(tmp_path, tokenizer):
    pytest.importorskip("llama_cpp")
    shape = Shape(hidden=256, layers=1, heads=2, kv_heads=1, head=128, feed_forward=512, words=320)
    path = tmp_path / "k.gguf"
    write_quantised(path, shape, tokenizer=tokenizer, kind="Q4_K_M")
    assert open_checkpoint(path).config.layers == 1
    kinds = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert gguf.GGMLQuantizationType.Q4_K in kinds
    assert not path.with_suffix(".f16").exists()


def test_a_file_is_written_once_and_never_half(tmp_path):
    path, written = tmp_path / "cache" / "m.gguf", []

    def write(target):
        target.write_text("half")
        if not written:
            written.append(target)
            raise KeyboardInterrupt
        target.write_text("whole")
        written.append(target)

    with pytest.raises(KeyboardInterrupt):
        kept(path, write, lambda _: None)
    assert list(path.parent.iterdir()) == []
    assert kept(path, write, lambda _: None) == path
    assert kept(path, write, lambda _: None).read_text() == "whole"
    assert len(written) == 2
    assert list(path.parent.iterdir()) == [path]


def test_our_engine_is_driven_with_a_prompt_that_comes_late(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROKERNEL_ROOT", str(tmp_path / "root"))
    engine = OwnEngine(model, 1, slots=4, kernels=False)
    first, second, late = engine.generate([[5, 6, 7], [8, 9]], 12, late={"prompt": [10] * 40, "after": 3})
    assert [each.prompt_tokens for each in (first, second, late)] == [3, 2, 40]
    assert [each.tokens for each in (first, second, late)] == [12, 12, 12]
    assert first.asked == second.asked == 0.0
    assert max(first.times[2], second.times[2]) <= late.asked < late.first
    (alone,) = engine.generate([[5, 6, 7]], 4)
    assert (alone.tokens, len(alone.times)) == (4, 4)


def test_the_process_without_a_model_answers_without_a_token_of_its_own(tmp_path):
    (answer,) = NoModel(tmp_path / "none", 1).generate([[1, 2]], 3)
    assert (answer.prompt_tokens, answer.tokens) == (2, 3)


def _metadata(path):
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}
