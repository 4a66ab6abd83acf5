"""What a tokenizer is before it is opened: the library's object and what the model's files say around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import tokenizers

from microkernel.errors import DataLoss, MicrokernelError

__all__ = ["TokenizerDefinition", "END_OF_TURN", "ends_of_turn", "library_errors"]

# Names under which published models end a turn or a text. Files often name one of them and train on another,
# so all that a vocabulary has as control tokens end an answer, as in llama.cpp.
END_OF_TURN = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
        "<|end_of_turn|>", "<end_of_turn>", "<|end_of_sentence|>", "<EOT>", "<|eot|>", "<|return|>", "</s>",
    }
)  # fmt: skip


class TokenizerDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer as read from a model's files.

    `library` knows vocabulary, control tokens (`special`) and how text is cut. `add_bos` says whether a
    prompt begins with `bos_id`. `source` names the files in errors. `tokens` are named texts for chat
    templates (`bos_token`, …).
    """

    library: tokenizers.Tokenizer
    source: str
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    chat_template: str | None = None
    tokens: dict[str, str] = {}


def ends_of_turn(library: tokenizers.Tokenizer, known: Iterable[int | None]) -> frozenset[int]:
    """The ids of `known` and those of all control tokens whose name says that they end a turn."""
    special = library.get_added_tokens_decoder()
    named = {token for token, added in special.items() if added.special and added.content in END_OF_TURN}
    return frozenset(named | {token for token in known if token is not None})


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Raise `DataLoss` that begins with `what` for whatever the library raises inside.

    Its Rust code also panics over definitions that contradict themselves; that is no `Exception`, and its class has no
    name to import.
    """
    try:
        yield
    except MicrokernelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataLoss(f"{what}: {' '.join(str(error).split())[:300]}") from error
