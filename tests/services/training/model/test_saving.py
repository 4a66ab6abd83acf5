"""What was trained, written and read again: by the decoder that answers, by transformers and by PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from forward_passes import in_chunks
from tiny_adapters import merged_decoder
from tiny_models import tiny_decoder, write_gguf
from tiny_tokenizers import byte_level, sentencepiece
from tiny_training import FAMILIES, FULL, batch_of, loaded_tensors, tiny_config, tiny_trained

from formats.checkpoint.adapter import open_adapter
from formats.checkpoint.architecture import RopeScaling
from formats.checkpoint.checkpoint import open_checkpoint
from formats.checkpoint.rope import frequencies
from formats.text.template import open_template
from formats.text.tokenizer import open_tokenizer
from microkernel.errors import AlreadyExists, Unimplemented
from services.inference.messages import ChatMessage
from services.inference.model_defaults import model_defaults
from services.training.config import MethodConfig
from services.training.model import saving
from services.training.model.loading import continue_adapter, open_model
from services.training.model.saving import save_adapter, save_model

METHOD = MethodConfig(rank=4, alpha=6.0, targets=("attn_q", "attn_k", "attn_v", "ffn_down"))
TEMPLATE = "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
TEXT = "hello <|im_start|> he said: 1234 é\n\n  ab bab"
TOKENS = batch_of([9]).tokens[0].tolist()


def trained_adapter(checkpoint):
    model = open_model(checkpoint, METHOD, dtype=torch.float32)
    model.flat.values.add_(
        torch.empty(model.flat.layout.size).normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    )
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_answers_with_the_logits_that_it_was_trained_to(tmp_path, family):
    model = tiny_trained(tiny_config(family))
    save_model(tmp_path / "out", model.flat, model.config, byte_level())
    expected = model.logits(batch_of([9]))[0]
    torch.testing.assert_close(in_chunks(tiny_decoder(tmp_path / "out"), TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_again_is_what_was_written(tmp_path, family):
    model = tiny_trained(tiny_config(family))
    save_model(tmp_path / "out", model.flat, model.config, byte_level())
    again = open_model(open_checkpoint(tmp_path / "out"), FULL)
    assert torch.equal(again.flat.values, model.flat.values)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_an_adapter_answers_with_the_logits_that_it_was_trained_to(tmp_path, architecture):
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture)
    checkpoint = open_checkpoint(path)
    model = trained_adapter(checkpoint)
    save_adapter(tmp_path / "adapter", model.flat, checkpoint.config, METHOD)
    adapter = open_adapter(tmp_path / "adapter", checkpoint.config, max_rank=8)
    answering = merged_decoder(path, {name: (low.a, low.b) for name, low in adapter.weights.items()})
    expected = model.logits(batch_of([9]))[0]
    torch.testing.assert_close(in_chunks(answering, TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metadata", [byte_level("smollm"), byte_level("llama-bpe"), sentencepiece()], ids=str)
def test_the_tokenizer_of_a_gguf_file_gives_the_same_tokens_from_the_folder(tmp_path, metadata):
    model = tiny_trained(tiny_config())
    save_model(tmp_path / "out", model.flat, model.config, metadata)
    base, written = open_tokenizer(metadata), open_tokenizer(tmp_path / "out")
    for parse in (False, True):
        assert written.encode(TEXT, add_bos=True, parse_special=parse) == base.encode(
            TEXT, add_bos=True, parse_special=parse
        )
    for field in ("special_tokens", "bos_id", "eos_ids", "add_bos", "vocab_size", "template_tokens", "strips_space"):
        assert getattr(written, field) == getattr(base, field), field
    assert written.decode(base.encode(TEXT, add_bos=False, parse_special=True), skip_special=False) == TEXT


def test_the_chat_template_of_a_gguf_file_writes_the_same_prompt_from_the_folder(tmp_path):
    metadata = byte_level(chat_template=TEMPLATE)
    model = tiny_trained(tiny_config())
    save_model(tmp_path / "out", model.flat, model.config, metadata)
    prompts = [
        open_template(open_tokenizer(source)).render([ChatMessage(role="user", content="he")])
        for source in (metadata, tmp_path / "out")
    ]
    assert prompts[0] == prompts[1]


def test_the_authors_advice_on_sampling_comes_along(tmp_path):
    metadata = byte_level() | {"general.sampling.temp": 0.5, "general.sampling.top_k": 7}
    model = tiny_trained(tiny_config())
    save_model(tmp_path / "out", model.flat, model.config, metadata)
    assert model_defaults(tmp_path / "out") == model_defaults(metadata)


def test_the_tokenizer_of_a_folder_is_copied(tmp_path):
    model = tiny_trained(tiny_config())
    save_model(tmp_path / "first", model.flat, model.config, byte_level(chat_template=TEMPLATE))
    save_model(tmp_path / "second", model.flat, model.config, tmp_path / "first")
    files = [sorted(path.name for path in (tmp_path / each).iterdir()) for each in ("first", "second")]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_half_the_bytes_are_written_as_bfloat16(tmp_path):
    model = tiny_trained(tiny_config())
    save_model(tmp_path / "out", model.flat, model.config, byte_level(), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in loaded_tensors(tmp_path / "out").values()} == {torch.bfloat16}
    assert open_checkpoint(tmp_path / "out").config.quantization == "BF16"


def test_nothing_is_left_of_a_model_that_could_not_be_written(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_tokenizer", fails)
    model = tiny_trained(tiny_config())
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "out", model.flat, model.config, byte_level())
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    model = tiny_trained(tiny_config())
    with pytest.raises(AlreadyExists):
        save_model(tmp_path / "out", model.flat, model.config, byte_level())
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_factors_of_a_published_scaling_are_written_by_its_name(tmp_path):
    config = tiny_config(rope_theta=500000.0, context_length=131072)
    scaled = tiny_config(
        rope_theta=500000.0,
        context_length=131072,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_length=8192),
    )
    factors = (frequencies(config)[0] / frequencies(scaled)[0]).float()
    model = tiny_trained(config)
    save_model(tmp_path / "out", model.flat, config, byte_level(), rope_factors=factors)
    written = open_checkpoint(tmp_path / "out").config
    torch.testing.assert_close(frequencies(written)[0], frequencies(scaled)[0])


def test_factors_without_a_name_are_refused(tmp_path):
    model = tiny_trained(tiny_config())
    with pytest.raises(Unimplemented, match="no name"):
        save_model(tmp_path / "out", model.flat, model.config, byte_level(), rope_factors=torch.full((8,), 3.0))


@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_logits(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    model = tiny_trained(tiny_config(family))
    save_model(tmp_path / "out", model.flat, model.config, byte_level())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    batch = batch_of([9])
    with torch.no_grad():
        logits = theirs(torch.from_numpy(batch.tokens)).logits
    torch.testing.assert_close(model.logits(batch), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.peer
@pytest.mark.parametrize(
    "metadata", [byte_level("smollm", chat_template=TEMPLATE), sentencepiece()], ids=["bytes", "pieces"]
)
def test_transformers_reads_the_same_tokens(tmp_path, metadata):
    transformers = pytest.importorskip("transformers")
    model = tiny_trained(tiny_config())
    save_model(tmp_path / "out", model.flat, model.config, metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    base = open_tokenizer(metadata)
    assert theirs(TEXT)["input_ids"] == base.encode(TEXT, add_bos=base.add_bos, parse_special=True)
    assert theirs.chat_template == base.chat_template


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's use of transformers
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_peft_computes_the_same_logits_with_the_adapter(tmp_path, family):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = tiny_trained(tiny_config(family))
    save_model(tmp_path / "base", base.flat, base.config, byte_level())
    model = trained_adapter(open_checkpoint(tmp_path / "base"))
    save_adapter(tmp_path / "adapter", model.flat, model.config, METHOD, model=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    batch = batch_of([9])
    with torch.no_grad():
        logits = adapted(torch.from_numpy(batch.tokens)).logits
    torch.testing.assert_close(model.logits(batch), logits, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == METHOD.rank


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_that_peft_began_is_continued(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = tiny_trained(tiny_config("qwen3"))
    save_model(tmp_path / "base", base.flat, base.config, byte_level())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    kind = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(theirs, kind)
    adapted.save_pretrained(tmp_path / "adapter")
    model = open_model(open_checkpoint(tmp_path / "base"), METHOD, dtype=torch.float32)
    continue_adapter(model.flat, open_adapter(tmp_path / "adapter", model.config, max_rank=4), METHOD)
    batch = batch_of([9])
    with torch.no_grad():
        logits = adapted(torch.from_numpy(batch.tokens)).logits
    torch.testing.assert_close(model.logits(batch), logits, rtol=1e-4, atol=1e-4)
