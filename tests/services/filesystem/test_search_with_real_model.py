"""Planted facts are found among real text by the system's own embedding model, and removed ones are not."""

from __future__ import annotations

import asyncio
import sysconfig
from pathlib import Path

import pytest
from inference_node import SERVICES
from tiny_model import write_tiny_model
from tree_user import TreeUser

from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem

FACTS = {
    "Our office in Lisbon closes at four on Fridays.": "when does the Portuguese branch shut at the end of the week?",
    "The spare key to the boat is under the third flower pot.": "where can I find a way to start the vessel?",
    "Grandmother's soup needs two bay leaves and a lot of patience.": "what goes into the family broth recipe?",
    "The swallows came back on the second of April this year.": "what day did the birds return in spring?",
    "Invoice 4711 was paid twice, and the bank sent the money back.": "which bill was settled two times?",
    "The red bicycle in the cellar has a flat front tyre.": "what is wrong with the bike downstairs?",
    "Doctor Almeida has moved her practice to the old post office.": "what is the physician's new address?",
    "The meeting with the mayor was put off until May.": "was the talk with the head of the town delayed?",
    "Our server in the basement was flooded in the storm of November.": "which computer was damaged by water?",
    "The cat is called Schrödinger, and nobody knows where it is.": "what is the name of the pet?",
}  # fmt: skip


def real_texts() -> list[str]:
    """The sources of Python's own library, which every machine has."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return [file.read_text("utf-8", errors="replace") for file in files if "site-packages" not in file.parts]


@pytest.mark.model
@pytest.mark.parametrize(
    "pieces", [pytest.param(150), pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
async def test_planted_facts_are_found_by_what_they_mean_and_never_once_they_are_removed(
    tmp_path, embedding_model, pieces
):
    tiny = write_tiny_model(tmp_path / "tiny")
    settings = {"inference": {"model": str(tiny), "embedding_model": str(embedding_model)}}
    async with TestKernel(*SERVICES, Filesystem, settings=settings) as system:
        root = TreeUser(system)
        await root.ask("index", "/data")
        for number, fact in enumerate(FACTS):
            await root.write(f"/data/facts/{number}", fact.encode())
        planned = 0
        for number, text in enumerate(real_texts()):
            if planned >= pieces:
                break
            part = text[: (pieces - planned) * 800]
            await root.write(f"/data/python/{number}", part.encode())
            planned += len(part) // 800 + 1
        while (state := await system.call("filesystem.index_state")).waiting:
            assert not state.why
            await asyncio.sleep(0.1)
        assert state.pieces >= pieces
        first = nearby = 0
        for number, query in enumerate(FACTS.values()):
            found = [each.path for each in await root.ask("search", "/", query=query, limit=3)]
            first += found[0] == f"/data/facts/{number}"
            nearby += f"/data/facts/{number}" in found
        assert (first >= 8, nearby) == (True, len(FACTS))
        removed = [f"/data/facts/{number}" for number in range(0, len(FACTS), 2)]
        for path in removed:
            await root.ask("remove", path)
        for query in FACTS.values():
            found = [each.path for each in await root.ask("search", "/", query=query, limit=500)]
            assert not set(found) & set(removed)
            assert found
