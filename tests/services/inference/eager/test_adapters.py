"""Adapters in plain torch: the logits of merged weights, for whoever has one and for nobody else."""

from __future__ import annotations

import pytest
import torch
from forward_passes import in_chunks, lanes
from tiny_adapters import TARGETS, merged_decoder, peft_tensors, random_pairs, write_gguf_adapter, write_peft
from tiny_models import tiny_decoder, write_gguf

from formats.checkpoint.adapter import open_adapter
from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import Internal

TOKENS = [int(token) for token in torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(4))]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def model(request, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp(request.param) / "tiny.gguf", architecture=request.param)


def adapter(path, folder, *, seed: int = 0, targets=TARGETS, layers=None, alpha: int = 8):
    config = open_checkpoint(path).config
    pairs = random_pairs(config, seed=seed, targets=targets, layers=layers)
    written = write_peft(folder / f"adapter-{seed}", peft_tensors(pairs, config), lora_alpha=alpha)
    return open_adapter(written, config, max_rank=64), pairs


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Float32 sums in another order differ by 1.2e-6 here; any target left out moves the logits by half."""
    return bool((got - expected).norm() < tolerance * expected.norm())


def test_logits_are_those_of_merged_weights(model, tmp_path):
    decoder = tiny_decoder(model)
    read, pairs = adapter(model, tmp_path, alpha=16)
    expected = in_chunks(merged_decoder(model, pairs, 2.0), TOKENS)
    number = decoder.add_adapter(read)
    assert close(in_chunks(decoder, TOKENS, adapter=number), expected)
    assert close(in_chunks(decoder, TOKENS, 7, adapter=number), expected)
    assert not close(in_chunks(decoder, TOKENS), expected, 0.5)


def test_bfloat16_and_weights_of_4_bits_stay_near(tmp_path):
    import gguf

    path = write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q4_0)
    decoder = tiny_decoder(path, torch.bfloat16)
    read, pairs = adapter(path, tmp_path)
    expected = in_chunks(merged_decoder(path, pairs), TOKENS)
    # 2.4 %, and 2.0 % without an adapter: activations are rounded to 8 bits.
    assert close(in_chunks(decoder, TOKENS, adapter=decoder.add_adapter(read)), expected, 0.04)


@pytest.mark.parametrize("target", TARGETS)
def test_one_target_in_one_layer_is_added_where_it_belongs(target, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    decoder = tiny_decoder(path)
    read, pairs = adapter(path, tmp_path, targets=(target,), layers=[1])
    expected = in_chunks(merged_decoder(path, pairs), TOKENS)
    assert close(in_chunks(decoder, TOKENS, adapter=decoder.add_adapter(read)), expected)


def test_a_step_may_mix_several_adapters_and_none(model, tmp_path):
    decoder = tiny_decoder(model)
    one = decoder.add_adapter(adapter(model, tmp_path, seed=1)[0])
    two = decoder.add_adapter(adapter(model, tmp_path, seed=2, targets=("attn_q", "attn_v"))[0])
    who = [one, None, two, None, one, two, None]
    prompts = [TOKENS[row : row + 1 + 6 * row] for row in range(len(who))]
    expected = [in_chunks(decoder, prompt, adapter=number)[-1] for prompt, number in zip(prompts, who, strict=True)]
    several = lanes(decoder, len(who), length=64)
    for lane, number in zip(several, who, strict=True):
        lane.adapter = number
    parts = [lane.part(prompt, 1) for lane, prompt in zip(several, prompts, strict=True)]
    assert close(decoder.forward(several[0].storage, parts), torch.stack(expected))


@pytest.mark.peer
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_reads_the_same_out_of_a_file_of_its_own_layout(architecture, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    vocabulary = {"merges": ["t 0"], "token_type": [1] * 256, "bos_token_id": 1, "eos_token_id": 2}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    metadata[f"{architecture}.rope.dimension_count"] = 16
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, metadata=metadata)
    config = open_checkpoint(path).config
    file = write_gguf_adapter(tmp_path / "adapter.gguf", random_pairs(config), config, alpha=12.0)
    peer = llama_cpp.Llama(str(path), lora_path=str(file), logits_all=True, n_ctx=128, n_threads=1, verbose=False)
    peer.eval(TOKENS)
    expected = torch.tensor(peer.scores[: len(TOKENS)])
    decoder = tiny_decoder(path)
    number = decoder.add_adapter(open_adapter(file, config, max_rank=64))
    # 0.05 % with an adapter and without: its pages are float16.
    assert close(in_chunks(decoder, TOKENS, adapter=number), expected, 0.002)


def test_its_memory_is_told_and_one_that_was_removed_is_asked_for_in_vain(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    decoder = tiny_decoder(path)
    read, _ = adapter(path, tmp_path)
    number = decoder.add_adapter(read)
    matrices = decoder._adapters._matrices[number].values()
    assert decoder.adapter_bytes(read) == sum(a.nbytes + b.nbytes for a, b in matrices)
    decoder.remove_adapter(number)
    with pytest.raises(Internal, match=f"there is no adapter {number}"):
        in_chunks(decoder, [1, 2], adapter=number)
