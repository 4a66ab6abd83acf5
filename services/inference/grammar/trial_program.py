"""The program that tries strangers' grammars: compiles each, walks some steps, and may be lost over it.

Run as a file of its own by `trial.py`: it imports the library and nothing of ours. Lines of JSON come in, first the
limits and then grammars, and a line goes out for each: null, or what is wrong. A grammar that takes too much time or
memory, or that makes the library crash, takes this process with it and nothing else.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import threading
import time
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Ours in the node have 8 MiB: what fits in here fits there.
STACK = 1 << 20
STOP = 256
SPACES = b" \t\r\n"  # JSON has them everywhere, and they lead nowhere


class Bytes:
    """A vocabulary of all bytes: how much a grammar costs depends on it by a factor only."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = STOP
    tokens = (*(bytes([byte]) for byte in range(256)), b"<stop>")
    special_token_ids = (STOP,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK)
    tokenizer = LLTokenizer(Bytes(), n_vocab=257, eos_token=STOP)  # type: ignore[arg-type] # takes any such object
    limits = LLParserLimits(**asked["limits"])
    print("null", flush=True)  # noqa: T201 - the protocol
    for line in sys.stdin:
        # Processor time of this process, however busy the machine is. The signal ends it.
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        answer: list[str | None] = [None]
        thread = threading.Thread(target=_try, args=(tokenizer, limits, json.loads(line), asked, answer))
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer[0]), flush=True)  # noqa: T201 - the protocol


def _try(
    tokenizer: LLTokenizer, limits: LLParserLimits, grammar: str, asked: dict[str, Any], answer: list[str | None]
) -> None:
    beginning = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    for walk in range(asked["walks"]):
        answer[0] = _walk(beginning.deep_copy(), random.Random(walk), asked)  # noqa: S311 - the same walks every time
        if answer[0] is not None:
            return


def _walk(matcher: LLMatcher, chance: random.Random, asked: dict[str, Any]) -> str | None:
    """What is wrong on one way through the grammar."""
    for step in range(asked["steps"]):
        began = time.thread_time()
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            return _verdict(matcher.get_error(), step)
        if time.thread_time() - began > asked["slowest"]:
            return "a step takes too long"
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not allowed:
            return None
        matcher.consume_token(chance.choice([byte for byte in allowed if byte not in SPACES] or allowed))
    return None


def _verdict(error: str, step: int) -> str | None:
    if error.startswith("NoExtension"):
        # Where it begins so, it is a defect; where a walk met a dead end, an answer may well go another way.
        return "nothing fits it" if step == 0 else None
    return error


if __name__ == "__main__":
    main()
