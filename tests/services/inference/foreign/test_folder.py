"""Which folders transformers computes, and that damage, pickles and strangers' code never get that far."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import tiny_foreign
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from formats.checkpoint.architecture import Unsupported
from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import DataLoss, Invalid, MicrokernelError
from services.inference.foreign import folder as module
from services.inference.foreign.decoder import ForeignDecoder
from services.inference.foreign.folder import open_folder, page_estimate
from services.inference.foreign.model import CausalModel


def opened(path):
    """The folder as `open_model` opens it."""
    with pytest.raises(Unsupported) as refused:
        open_checkpoint(path)
    return open_folder(path, refused.value)


def load(path) -> ForeignDecoder:
    return ForeignDecoder(opened(path), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def folder(folder_of, tmp_path):
    """A model to be damaged."""
    return shutil.copytree(folder_of("gpt2"), tmp_path / "tiny")


def change(folder, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_it_is_described_before_a_weight_is_read(folder_of):
    folder = opened(folder_of("gemma3_text"))
    config = folder.config
    assert (config.architecture, config.vocab_size, config.context_length) == ("gemma3_text", 128, 131072)
    assert (config.layers, config.kv_heads, config.head_dim, config.quantization) == (3, 2, 8, "F32")
    assert folder.tokenizer_source == folder_of("gemma3_text")


def test_of_a_model_that_also_sees_its_language_model_runs(tmp_path):
    text = tiny_foreign.FAMILIES["gemma3_text"]
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sight, "image_size": 28, "patch_size": 14}
    path = tiny_foreign.write(tmp_path / "sees", "gemma3", text_config=text, vision_config=vision)
    config = opened(path).config
    assert (config.vocab_size, config.layers) == (128, 3)
    assert load(path).weight_bytes == 4 * config.parameters


def test_without_transformers_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="'GPT2LMHeadModel' is not one that is computed here") as caught:
        opened(folder)
    assert "pip install 'microkernel[transformers]'" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["StrangerForCausalLM"]},
        {"architectures": ["GPT2ForSequenceClassification"]},
        {"model_type": "stranger"},
        {"architectures": None},
        {"n_layer": "many"},
    ],
)
def test_what_transformers_does_not_know_as_a_language_model_is_refused(folder, fields):
    change(folder, **fields)
    with pytest.raises(Unsupported, match="nor does transformers .* know it as a language model"):
        opened(folder)


def test_code_in_the_folder_is_never_run(folder):
    (folder / "stranger.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    auto = {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"}
    change(folder, auto_map=auto)
    load(folder)  # by the class of the library
    change(folder, auto_map=auto, model_type="stranger", architectures=["Model"])
    with pytest.raises(Unsupported):
        opened(folder)
    assert not (folder / "ran").exists()


def test_pickled_weights_are_no_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Invalid, match=r"no \*\.safetensors"):
        open_checkpoint(folder)


def test_a_file_that_is_cut_off_is_damaged_and_not_foreign(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(DataLoss, match="the download is incomplete"):
        open_checkpoint(folder)


def test_a_quantised_folder_is_refused(folder):
    change(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(Invalid, match="a quantised safetensors model is not read here"):
        opened(folder)


def test_a_number_that_cannot_be_is_named(folder):
    change(folder, n_positions=1 << 40)
    with pytest.raises(Invalid, match="context_length is 1099511627776"):
        opened(folder)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "jamba"])
def test_wild_numbers_in_a_configuration_are_refused_or_described_and_nothing_else(folder_of, tmp_path_factory, family):
    source = json.loads((folder_of(family) / "config.json").read_text())
    folder = shutil.copytree(folder_of(family), tmp_path_factory.mktemp("wild") / "tiny")
    wild = st.sampled_from([None, True, -1, 0, 3, 1.5, float("nan"), 1 << 40, "many", [], [7, "x"], {}, {"a": {}}])

    @given(st.dictionaries(st.sampled_from(sorted(source)), wild, min_size=1, max_size=3))
    @settings(max_examples=60, deadline=None)
    def refuse_or_describe(fields):
        (folder / "config.json").write_text(json.dumps(source | fields))
        try:
            described = open_folder(folder, Unsupported("tiny: not known"))
        except MicrokernelError as error:
            assert "\n" not in error.message
        else:
            assert 0 < page_estimate(described, 2) < 1 << 50

    refuse_or_describe()


def test_a_number_of_layers_that_cannot_be_is_refused_before_lists_are_made_of_it(folder):
    change(folder, n_layer=1 << 40)
    with pytest.raises(Invalid, match="n_layer is 1099511627776"):
        opened(folder)


def test_a_tensor_that_is_missing_is_named_and_never_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataLoss, match=r"tensor transformer\.h\.1\.mlp\.c_fc\.weight is missing"):
        load(folder)


def test_weights_that_are_not_finite_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wte.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataLoss, match=r"wte\.weight holds numbers that are not finite"):
        load(folder)


def test_a_shape_that_does_not_fit_is_refused(folder):
    change(folder, n_embd=64)
    with pytest.raises(MicrokernelError, match="tiny: "):
        load(folder)


def test_an_encoder_is_refused_because_it_does_not_write_token_by_token(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = tiny_foreign.write(tmp_path / "encoder", "bert", vocab_size=128, **small)
    with pytest.raises(Unsupported, match="token by token it gives other results than at once"):
        load(folder)


def test_a_model_that_breaks_after_its_first_step_is_refused(folder, monkeypatch):
    run = CausalModel.run

    def broken(self, state, tokens, positions, *rest):
        logits = run(self, state, tokens, positions, *rest)
        return logits / 0 if positions[0, 0] else logits

    monkeypatch.setattr(CausalModel, "run", broken)
    with pytest.raises(Unsupported, match="token by token it gives other results"):
        load(folder)


def test_a_model_whose_state_is_kept_elsewhere_is_refused(tmp_path):
    small = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    folder = tiny_foreign.write(tmp_path / "other", "rwkv", vocab_size=128, **small)
    with pytest.raises(Unsupported, match="keeps its state in its own way"):
        load(folder)


def test_loading_opens_no_connection(folder_of, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load(folder_of("mamba"))


def test_loading_says_nothing_on_the_terminal(folder_of, capfd):
    load(folder_of("gpt2"))
    assert capfd.readouterr() == ("", "")
