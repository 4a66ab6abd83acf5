"""What is learned of chats is what transformers marks, for templates that say themselves where answers are."""

from __future__ import annotations

import pytest
from chat_templates import CHATML, LLAMA3, chatting

from services.training.data.examples import Examples
from services.training.data.records import Chat, ChatTurn

MARKED = {
    "chatml": CHATML.replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' %}{%- generation %}"
        "{{- message.content + '<|im_end|>' }}{%- endgeneration %}{%- else %}{{- message.content + '<|im_end|>' }}"
        "{%- endif %}{{- '\\n' }}",
    ),
    "llama3": LLAMA3.replace("{{ content }}{% endfor %}", "{% if message.role == 'assistant' %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% generation %}"
        "{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ content }}{% endif %}{% endfor %}"),
}  # fmt: skip

TURNS = [
    ("system", "xx <|im_end|>"), ("user", "uu\n\nvv"), ("assistant", "aa bb\n\ncc"), ("user", "hello? "),
    ("assistant", "aab"), ("user", "uv"),
]  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize("name", MARKED)
def test_what_is_learned_is_what_the_templates_marks_say(name):
    transformers = pytest.importorskip("transformers", reason="compared where transformers is installed")
    tokenizer = chatting(name)
    tokenizer.chat_template = MARKED[name]
    turns = [(role, text.replace("<|im_end|>", "")) for role, text in TURNS]
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._library, bos_token=tokenizer.template_tokens["bos_token"]
    )
    theirs = library.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        chat_template=MARKED[name],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    (ours,) = Examples(tokenizer, "chat").of(Chat(tuple(ChatTurn(role, text) for role, text in turns)))
    count = len(ours.tokens)
    assert ours.tokens.tolist() == theirs["input_ids"][:count]
    assert ours.learned.astype(int).tolist() == theirs["assistant_masks"][:count]
    assert not any(theirs["assistant_masks"][count:])
