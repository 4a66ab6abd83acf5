"""An answer that goes on at another node when its own dies: the same text, no token missing and none twice."""

from __future__ import annotations

import secrets

import msgspec

from microkernel.errors import Unavailable
from services.inference.messages import Chat, Complete, Piece

__all__ = ["ContinuedAnswer", "continued"]


class ContinuedAnswer:
    """What was asked, and the tokens that have come.

    The next node reads them as if it had made them, with the same seed, and takes it from there. Its stream begins with
    a piece without text, as any; of that the reader has had one already. Where text comes without its tokens, from a
    model that another device serves, there is nothing that a node could go on behind.
    """

    def __init__(self, message: Chat | Complete) -> None:
        seed = secrets.randbits(63) if message.seed is None else message.seed
        self._shows_ids = message.return_token_ids
        self._message = msgspec.structs.replace(message, seed=seed, return_token_ids=True)
        self._tokens = list(message.begun)
        self._has_begun = self._has_ended = self._is_blind = False

    def take(self, item: Piece) -> Piece | None:
        """Note the tokens of a piece; the reader sees their ids if it has asked for them."""
        self._tokens += item.token_ids
        self._is_blind = self._is_blind or bool((item.text or item.tool_calls) and not self._tokens)
        self._has_ended = item.finish_reason is not None
        if self._has_begun and not (item.text or item.token_ids or self._has_ended):
            return None
        self._has_begun = True
        return item if self._shows_ids else msgspec.structs.replace(item, token_ids=[])

    def message(self) -> Chat | Complete | None:
        """What is asked now; None where all has come. Raises `Unavailable` where it cannot go on."""
        if self._has_ended:
            return None
        if self._is_blind:
            raise Unavailable("the answer cannot go on elsewhere: its tokens are not told", may_have_run=True)
        return msgspec.structs.replace(self._message, begun=list(self._tokens))


def continued(message: Chat | Complete) -> ContinuedAnswer | None:
    """How an answer to `message` goes on; None for several answers, and where it is told how likely tokens were."""
    return None if message.n > 1 or message.logprobs is not None else ContinuedAnswer(message)
