"""The decoder: the same logits however tokens are fed, and those that independent engines compute."""

from __future__ import annotations

import pytest
import torch
from forward_passes import Lane, in_chunks, lanes, one_by_one
from tiny_models import CPU, VOCABULARY, tiny_decoder, write_gguf

from services.inference.eager.decoder import choose_dtype

TOKENS = [int(token) for token in torch.randint(0, VOCABULARY, (60,), generator=torch.Generator().manual_seed(4))]
ARCHITECTURES = ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("metadata", [{}, {"attention.sliding_window": 9}], ids=["full", "window"])
def test_chunks_of_any_size_and_single_tokens_give_the_same_logits(architecture, metadata, tmp_path):
    fields = {f"{architecture}.{key}": value for key, value in metadata.items()}
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf", architecture=architecture, metadata=fields))
    whole = in_chunks(decoder, TOKENS)
    for chunk in (1, 7, 59):
        torch.testing.assert_close(in_chunks(decoder, TOKENS, chunk), whole, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(one_by_one(decoder, TOKENS), whole, atol=2e-5, rtol=1e-4)


def test_a_sliding_window_forgets_what_is_outside_of_it(tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf", layers=1, metadata={"llama.attention.sliding_window": 5}))
    changed = [TOKENS[0] ^ 1, *TOKENS[1:]]
    before, after = in_chunks(decoder, TOKENS), in_chunks(decoder, changed)
    assert not torch.allclose(before[4], after[4])
    assert torch.allclose(before[5:], after[5:], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sequences_of_different_lengths_share_a_step_without_mixing(dtype, tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"), dtype)
    prompts = [TOKENS[:3], TOKENS[10:40], TOKENS[20:21], TOKENS[5:25]]
    four = lanes(decoder, 4, length=100)
    decoder.forward(four[0].storage, [lane.part(prompt, 0) for lane, prompt in zip(four, prompts, strict=True)])
    together = decoder.forward(four[0].storage, [lane.part([9]) for lane in four])
    alone = torch.stack([in_chunks(decoder, [*prompt, 9])[-1] for prompt in prompts])
    limit = {torch.float32: 2e-5, torch.bfloat16: 0.06}[dtype]  # bfloat16: a few units in the last of 8 bits
    torch.testing.assert_close(together, alone, atol=limit, rtol=1e-3)


def test_many_long_sequences_take_the_other_attention_and_agree(tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf", context=512), torch.bfloat16)
    prompt = (TOKENS * 6)[:300]
    eight = lanes(decoder, 8, length=400)
    for number, lane in enumerate(eight):
        decoder.forward(lane.storage, [lane.part(prompt[number:], 0)])
    logits = decoder.forward(eight[0].storage, [lane.part([9]) for lane in eight])
    alone = torch.stack([in_chunks(decoder, [*prompt[number:], 9])[-1] for number in range(8)])
    torch.testing.assert_close(logits, alone, atol=0.06, rtol=1e-3)


def test_only_the_wanted_logits_are_computed(tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"))
    first, second, third = lanes(decoder, 3, length=64)
    assert decoder.forward(first.storage, [first.part(TOKENS, 0)]).shape == (0, VOCABULARY)
    parts = [first.part([1], 0), second.part(TOKENS, 1), third.part(TOKENS[:9], 2)]
    wanted = decoder.forward(first.storage, parts)
    assert wanted.dtype is torch.float32
    whole = in_chunks(decoder, TOKENS)
    torch.testing.assert_close(wanted, whole[[59, 7, 8]], atol=2e-5, rtol=1e-4)


def test_single_tokens_and_prompts_share_a_step(tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"))
    first, second, third = lanes(decoder, 3, length=64)
    decoder.forward(first.storage, [first.part(TOKENS[:20], 0), third.part(TOKENS[:33], 0)])
    parts = [first.part([TOKENS[20]]), second.part(TOKENS[:7], 1), third.part([TOKENS[33]])]
    mixed = decoder.forward(first.storage, parts)
    torch.testing.assert_close(mixed, in_chunks(decoder, TOKENS)[[20, 6, 33]], atol=2e-5, rtol=1e-4)


def test_a_page_that_was_read_and_written_back_elsewhere_goes_on_with_the_same_bits(tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"), torch.bfloat16)
    here, there = Lane(decoder, length=64), Lane(decoder, length=64)
    decoder.forward(here.storage, [here.part(TOKENS[:40], 0)])
    for page in range(3):
        there.storage.write(page, here.storage.read(page))
    there.part(TOKENS[:40])
    one = decoder.forward(here.storage, [here.part(TOKENS[40:])])
    assert torch.equal(one, decoder.forward(there.storage, [there.part(TOKENS[40:])]))


@pytest.mark.parametrize(("architecture", "size"), [("llama", 16), ("qwen2", 80), ("qwen3", 64)])
def test_with_pages_of_8_bits_logits_stay_near(architecture, size, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, head_dim=size)
    decoder = tiny_decoder(path, page_dtype="int8")
    got, expected = in_chunks(decoder, TOKENS), in_chunks(tiny_decoder(path), TOKENS)
    assert 0 < (got - expected).norm() / expected.norm() < 0.015
    torch.testing.assert_close(
        in_chunks(decoder, TOKENS, 7), got, atol=0.05, rtol=0
    )  # a step's last bit may tip a byte


def test_pages_of_8_bits_take_little_more_than_a_quarter_of_float32_and_move_as_others_do(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", head_dim=64)
    wide, decoder = tiny_decoder(path), tiny_decoder(path, page_dtype="int8")
    assert decoder.layout != wide.layout
    here, there = Lane(decoder, length=80), Lane(decoder, length=80)
    assert here.storage.page_bytes / wide.storage(1).page_bytes == (64 + 2 * 4) / (64 * 4)
    decoder.forward(here.storage, [here.part(TOKENS[:40], 0)])
    for page in range(3):
        assert len(here.storage.read(page)) == here.storage.page_bytes
        there.storage.write(page, here.storage.read(page))
    there.storage.copy(2, 4)
    there.storage.clear(2)
    assert not any(there.storage.read(2))
    there.storage.copy(4, 2)
    there.part(TOKENS[:40])
    one = decoder.forward(here.storage, [here.part(TOKENS[40:])])
    assert torch.equal(one, decoder.forward(there.storage, [there.part(TOKENS[40:])]))


def test_positions_beyond_the_first_rotations_are_reached(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    expected = in_chunks(tiny_decoder(path), TOKENS)
    monkeypatch.setattr("services.inference.eager.decoder.ROTATIONS", 8)
    torch.testing.assert_close(in_chunks(tiny_decoder(path), TOKENS, 5), expected, atol=2e-5, rtol=1e-4)


def test_the_chosen_dtype_is_one_that_the_device_computes_in(tmp_path):
    dtype = choose_dtype(CPU)
    assert dtype in (torch.bfloat16, torch.float32)
    assert torch.isfinite(in_chunks(tiny_decoder(write_gguf(tmp_path / "tiny.gguf"), dtype), TOKENS)).all()


SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


def transformers_model(name: str, **extra):
    """A tiny random model made by transformers itself."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=extra.pop("head_dim", 16),
        max_position_embeddings=128,
        **extra,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():  # biases and norms start as zeros and ones, which would prove nothing
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05))
    return model


def agrees(model, folder, *, shard: str = "5GB") -> None:
    """Logits of the saved model within 1e-4: float32, another order of additions."""
    model.save_pretrained(folder, max_shard_size=shard)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]
    decoder = tiny_decoder(folder)
    torch.testing.assert_close(in_chunks(decoder, TOKENS), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one_by_one(decoder, TOKENS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(name, tied, tmp_path):
    extra = {"head_dim": 32} if name == "Qwen3" else {}  # heads wider than the model, as Qwen3 has them
    agrees(transformers_model(name, tie_word_embeddings=tied, **extra), tmp_path)


@pytest.mark.peer
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_scaled_positions_are_those_of_transformers(name, scaling, tmp_path):
    agrees(transformers_model(name, rope_parameters=SCALINGS[scaling] | {"rope_theta": 5000.0}), tmp_path)


@pytest.mark.peer
def test_a_sliding_window_is_that_of_transformers(tmp_path):
    agrees(transformers_model("Mistral", sliding_window=11), tmp_path / "mistral")
    agrees(
        transformers_model("Qwen2", use_sliding_window=True, sliding_window=11, max_window_layers=1), tmp_path / "qwen2"
    )


@pytest.mark.peer
def test_biases_of_a_llama_and_shards_are_read(tmp_path):
    agrees(transformers_model("Llama", attention_bias=True), tmp_path, shard="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
