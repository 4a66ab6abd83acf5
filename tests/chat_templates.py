"""Chat templates as published models have them, and small tokenizers with the control tokens that they write."""

from __future__ import annotations

from typing import Any

from tiny_tokenizers import CONTROL, byte_level, sentencepiece

from formats.text.tokenizer import Tokenizer, open_tokenizer

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)

CHATML = (  # Qwen 2.5, without tools
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
QWEN3 = (  # thoughts are left out of all answers but those behind the last question
    "{%- set ns = namespace(last=messages|length - 1, open=true) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.open and message.role == 'user' %}{%- set ns.open = false %}{%- set ns.last = index %}{%- endif %}"
    "{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{%- set content = message.content %}{%- set thoughts = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thoughts) %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (  # the end of the text stands behind the last turn where no answer is asked for
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK_R1 = (  # asks with a thought begun, and leaves thoughts out of every answer
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "qwen3": QWEN3, "gemma": GEMMA, "phi3": PHI3,
    "deepseek-r1": DEEPSEEK_R1,
}  # fmt: skip
ENDS = {
    "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "qwen3": "<|im_end|>", "gemma": "<end_of_turn>",
    "phi3": "<|end|>", "deepseek-r1": "</s>",
}  # fmt: skip
"""The token that ends an answer."""

MARKS = [
    "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|User|>", "<|Assistant|>", "<|im_start|>",
    "<|im_end|>",
]  # fmt: skip


def with_marks(metadata: dict[str, Any], template: str) -> dict[str, Any]:
    """`metadata` with all control tokens of `TEMPLATES`, and one of them as its chat template."""
    tokens = list(metadata["tokenizer.ggml.tokens"])
    more = [mark for mark in MARKS if mark not in tokens]
    result = {
        **metadata,
        "tokenizer.ggml.tokens": [*tokens, *more],
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], *[CONTROL] * len(more)],
        "tokenizer.chat_template": TEMPLATES[template],
    }
    if "tokenizer.ggml.scores" in metadata:
        result["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], *[0.0] * len(more)]
    end = result["tokenizer.ggml.tokens"].index("</s>")
    return result | {"tokenizer.ggml.eos_token_id": end}


def chatting(template: str, kind: str = "bytes") -> Tokenizer:
    """A tokenizer, of bytes or of `pieces`, whose model chats by that template."""
    words = ("ĊĊ", "Ċa", "Ġa", "Ġu", "aa", "ab", "uu", "au", "ua")
    pre = {"llama3": "llama-bpe", "chatml": "qwen2", "qwen3": "qwen2"}.get(template, "gpt-2")
    metadata = byte_level(pre, words) if kind == "bytes" else sentencepiece()
    return open_tokenizer(with_marks(metadata, template))
