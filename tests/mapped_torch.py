"""Functions that tests map, which compute with torch."""

from __future__ import annotations

import torch


def multiply(item: int) -> float:
    matrix = torch.full((64, 64), float(item))
    return float((matrix @ matrix).sum())


def threads_of_torch(item: int) -> int:
    return torch.get_num_threads()
