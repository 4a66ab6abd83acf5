"""The tokenizer of the default model, from its GGUF file and from the folder that is written of it."""

from __future__ import annotations

import pytest

from formats.checkpoint.checkpoint import open_checkpoint
from formats.text.template import open_template
from formats.text.tokenizer import open_tokenizer
from services.inference.messages import ChatMessage
from services.training.model.tokenizer_files import define_tokenizer, write_tokenizer

TEXTS = [
    "Hello, world! 12345",
    "  naïve\n\n\tcafé  ",
    "<|im_start|>user\nHi<|im_end|>",
    "日本語 🙂 def f(x):\n    return x",
]


@pytest.mark.model
def test_a_real_models_folder_gives_the_tokens_and_prompts_of_its_file(default_model, tmp_path):
    source = open_checkpoint(default_model).tokenizer_source
    write_tokenizer(tmp_path, source, define_tokenizer(source))
    base, written = open_tokenizer(source), open_tokenizer(tmp_path)
    for text in TEXTS:
        for parse in (False, True):
            ids = [each.encode(text, add_bos=True, parse_special=parse) for each in (base, written)]
            assert ids[0] == ids[1]
    prompts = [open_template(each).render([ChatMessage(role="user", content=TEXTS[2])]) for each in (base, written)]
    assert prompts[0] == prompts[1]
