"""The process of our engine without a model: what the interpreter and its libraries take."""

from __future__ import annotations

from pathlib import Path

from benchmarks.first_token.contender import Answer

__all__ = ["Engine"]


class Engine:
    """Answers without having computed anything."""

    def __init__(self, _model: Path, _cores: int) -> None:
        """There is nothing to load but what our engine imports."""
        import services.inference.service  # noqa: F401 - it is in memory then

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """As many tokens as asked, all at once."""
        return [Answer(len(prompt), tokens, 0.0, 0.0) for prompt in prompts]
