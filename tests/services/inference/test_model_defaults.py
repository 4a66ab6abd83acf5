"""How a model's authors say it should be sampled."""

from __future__ import annotations

import json

import pytest

from services.inference.engine.sampler import resolve
from services.inference.messages import SamplingParams
from services.inference.model_defaults import model_defaults


def test_a_folder_says_it_in_its_generation_config(tmp_path):
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]})
    )
    assert model_defaults(tmp_path) == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)


def test_a_folder_that_does_not_sample_is_greedy(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert model_defaults(tmp_path) == SamplingParams(temperature=0.0)


def test_gguf_says_it_in_its_metadata():
    metadata = {"general.sampling.temp": 0.5, "general.sampling.top_k": 40, "general.sampling.penalty_repeat": 1.1}
    assert model_defaults(metadata) == SamplingParams(temperature=0.5, top_k=40, repetition_penalty=1.1)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"temperature": "hot", "top_k": true, "top_p": null}'])
def test_what_is_no_hint_is_left_out(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    assert model_defaults(tmp_path) == SamplingParams()


def test_the_request_goes_before_the_model_and_the_model_before_the_service():
    resolved = resolve(
        SamplingParams(top_k=1), SamplingParams(temperature=0.5, top_k=9), SamplingParams(temperature=1.0, top_p=0.3)
    )
    assert (resolved.top_k, resolved.temperature, resolved.top_p) == (1, 0.5, 0.3)
