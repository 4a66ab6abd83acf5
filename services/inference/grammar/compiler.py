"""Compiles the grammars of one model's requests, each once, on a thread of its own, and keeps the last ones.

The library is https://github.com/guidance-ai/llguidance: an Earley parser over a lexer of derivatives, which computes
masks as it goes. Compiling takes a millisecond, the trial before it 10 to 50; no table over the vocabulary is made.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from formats.text.tokenizer import Tokenizer
from microkernel.errors import Invalid
from services.inference.grammar.matcher import CompiledGrammar, in_one_line
from services.inference.grammar.source import FIELD, write_grammar
from services.inference.grammar.trial import LIMITS, Trial
from services.inference.grammar.vocabulary import open_vocabulary
from services.inference.messages import Grammar

__all__ = ["GrammarCompiler"]

KEPT = 64  # grammars, and refusals of grammars


class GrammarCompiler:
    """`compile` from the loop, `compile_now` from any one thread at a time.

    What is kept is kept by owner: nobody learns by the clock which grammars others use.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size` is the width of the model's logits, which may be more than the tokenizer has tokens."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[tuple[str, str], CompiledGrammar | Invalid] = OrderedDict()
        self._trial = Trial()
        self._thread = ThreadPoolExecutor(1)
        self._closed = False

    async def compile(self, grammar: Grammar, owner: str) -> CompiledGrammar:
        """What `grammar` lets an answer be. Raises `Invalid` that says what is wrong; `Unavailable` if closed."""
        self._trial.check_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.compile_now, grammar, owner)

    def compile_now(self, grammar: Grammar, owner: str = "local") -> CompiledGrammar:
        """As `compile`, here and now: milliseconds, and at first the time to start a process."""
        text = write_grammar(grammar)
        key = (owner, text)
        found = self._kept.get(key)
        if found is None:
            try:
                found = self._compile(text)
            except Invalid as error:
                found = error
            self._kept[key] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        if isinstance(found, Invalid):
            raise Invalid(found.message, field=found.field, remedy=found.remedy)
        return found

    def close(self) -> None:
        """End the child, and the thread with it; nothing can be compiled afterwards. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._trial.close()
        self._thread.submit(self._trial.bury)
        self._thread.shutdown(wait=False)

    def _compile(self, text: str) -> CompiledGrammar:
        wrong = self._trial.run(text)
        if wrong is None:
            if self._vocabulary is None:
                self._vocabulary = open_vocabulary(self._tokenizer, self._vocab_size)
            matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=LLParserLimits(**LIMITS))
            wrong = matcher.get_error()
            if not wrong:
                return CompiledGrammar(matcher, self._vocab_size)
        raise Invalid(
            f"the grammar cannot be used: {in_one_line(wrong)}", field=FIELD, remedy="mend or simplify the grammar"
        )
