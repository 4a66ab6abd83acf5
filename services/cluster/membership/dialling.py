"""Which addresses are tried although no member answers there: a part of the cluster may be behind them. Sans-IO.

After Serf's reconnecting: who is dead is tried again, at a rate that does not grow with the number of those who try.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from services.cluster.membership.beliefs import Beliefs
from services.cluster.membership.rules import Rules

__all__ = ["Dialling"]

MOST_DIALS = 4  # at a time


class Dialling:
    """Draws from the dead and the seeds. Asked once every `dial` seconds."""

    def __init__(self, beliefs: Beliefs, rules: Rules, chance: random.Random, seeds: Sequence[str], now: float) -> None:
        self._beliefs = beliefs
        self._rules = rules
        self._chance = chance
        self._seeds = tuple(seeds)
        self._since = now

    def draw(self, own: str, now: float) -> list[tuple[str, str]]:
        """Names ("" where it is not known) and addresses to try now, for a node at the address `own`.

        All members together try each of the dead once in `dial` seconds, or in an eighth of the time since its death;
        so they do with a seed and the time since this node began, but at least once in `exchange` seconds.
        """
        rates = self._rates(own, now)
        expected = self._rules.dial * sum(rates.values()) / self._beliefs.living
        count = min(int(expected + self._chance.random()), MOST_DIALS)
        return list(dict.fromkeys(self._chance.choices(list(rates), list(rates.values()), k=count))) if count else []

    def _rates(self, own: str, now: float) -> dict[tuple[str, str], float]:
        """How often a second each is to be tried."""
        rules = self._rules
        rates = {
            (node, lost.address): 1 / max(rules.dial, (now - lost.since) / 8)
            for node, lost in self._beliefs.lost.nodes(now)
        }
        if self._seeds:
            taken = {own, *(peer.member.address for peer in self._beliefs.peers.values())}
            pause = min(max(rules.dial, (now - self._since) / 8), rules.exchange)
            if self._beliefs.living == 1:
                pause = rules.dial
            rates |= {("", seed): 1 / pause for seed in self._seeds if seed not in taken}
        return rates
