"""Files are found by what they say: with vectors of words, so that a test knows what is near; and by patterns."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import time

import numpy as np
import pytest
from tree_user import TreeUser

from microkernel.buffers import Array
from microkernel.errors import Denied, Invalid, NotFound, PreconditionFailed
from microkernel.service import Service, handles
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.filesystem.search.pieces import LONGEST, pieces_of
from services.filesystem.service import Filesystem
from services.inference.messages import Embed, Embeddings
from services.memory.service import Memory

DIMENSIONS = 64


def vector_of(text: str) -> np.ndarray:
    """The sum of a random direction for each word."""
    found = np.full(DIMENSIONS, 1e-3, dtype=np.float32)
    for word in re.findall(r"\w+", text.lower()):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
        found += np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return found / np.linalg.norm(found)


class Words(Service):
    """Embeds texts by their words, in place of a model."""

    name = "inference"
    model = "words"
    texts: list[str]

    async def start(self) -> None:
        type(self).texts = []

    @handles
    async def embed(self, message: Embed) -> Embeddings:
        """Vectors of texts."""
        self.texts.extend(message.texts)
        vectors = np.stack([vector_of(text) for text in message.texts])
        return Embeddings(vectors=Array.from_(vectors), model=self.model, dimensions=DIMENSIONS, tokens=0)


SERVICES = (Devices, Memory, Words, Filesystem)


@pytest.fixture
async def system():
    async with TestKernel(*SERVICES) as system:
        yield system


async def indexed(root: TreeUser) -> None:
    """Return when nothing waits to be indexed."""
    while (await root.port.call("filesystem.index_state")).waiting:
        await asyncio.sleep(0.01)


async def found(user: TreeUser, query: str, path: str = "/", **fields) -> list[str]:
    return [each.path for each in await user.ask("search", path, query=query, **fields)]


async def test_what_says_the_same_is_found_first(root):
    await root.ask("index", "/data")
    await root.write("/data/birds.txt", b"the swallow flies over the river in spring")
    await root.write("/data/cars.txt", b"the engine of the old car does not start")
    await indexed(root)
    best, other = await root.ask("search", "/", query="does the engine start")
    assert (best.path, best.text) == ("/data/cars.txt", "the engine of the old car does not start")
    assert best.score > other.score
    assert (best.start, best.stop, best.owner) == (0, 40, "root")


async def test_what_is_removed_overwritten_or_moved_is_found_as_it_is_now(root):
    await root.ask("index", "/data")
    for name in ("removed", "overwritten", "moved", "out"):
        await root.write(f"/data/{name}", f"swallow {name}".encode())
    await indexed(root)
    assert len(await found(root, "swallow")) == 4
    await root.ask("remove", "/data/removed")
    await root.write("/data/overwritten", b"engine")
    await root.ask("rename", "/data/moved", to="/data/f/new")
    await root.ask("rename", "/data/out", to="/home/root/out")
    results = await root.ask("search", "/", query="swallow")
    assert sorted(each.path for each in results if "swallow" in each.text) == ["/data/f/new"]
    await root.ask("roll_back", "/data/removed", version=(await root.ask("history", "/data/removed"))[-1].version)
    assert "/data/removed" in await found(root, "swallow removed", limit=1)


async def test_a_removed_folder_takes_what_is_in_it_out_of_the_search(root):
    await root.ask("index", "/data")
    await root.write("/data/f/g/a", b"swallow")
    await indexed(root)
    assert await found(root, "swallow") == ["/data/f/g/a"]
    await root.ask("remove", "/data/f", recursive=True)
    assert await found(root, "swallow") == []


async def test_a_user_finds_what_it_may_read(root, ann, bob):
    await root.ask("index", "/home")
    await ann.write("/home/ann/a", b"swallow of ann")
    await bob.write("/home/bob/b", b"swallow of bob")
    await indexed(root)
    assert await found(ann, "swallow") == ["/home/ann/a"]
    assert await found(bob, "swallow of ann") == ["/home/bob/b"]
    assert sorted(await found(root, "swallow")) == ["/home/ann/a", "/home/bob/b"]


async def test_a_search_is_narrowed_by_path_owner_and_time(root, ann):
    await root.ask("index", "/data")
    await root.write("/data/a/1", b"swallow one")
    await ann.write("/data/b/2", b"swallow two")
    middle = time.time()
    await root.write("/data/b/3", b"swallow three")
    await indexed(root)
    assert sorted(await found(root, "swallow", "/data/b")) == ["/data/b/2", "/data/b/3"]
    assert await found(root, "swallow", owner="ann") == ["/data/b/2"]
    assert await found(root, "swallow", since=middle) == ["/data/b/3"]
    assert sorted(await found(root, "swallow", until=middle)) == ["/data/a/1", "/data/b/2"]
    assert len(await found(root, "swallow", limit=2)) == 2


async def test_a_narrow_search_looks_as_far_as_it_has_to(root):
    await root.ask("index", "/data")
    for number in range(300):
        await root.write(f"/data/many/{number}", b"swallow")
    await root.write("/data/few/far", b"engine and swallow")
    await indexed(root)
    assert await found(root, "swallow", "/data/few") == ["/data/few/far"]


async def test_equal_contents_are_found_under_each_of_their_names_and_only_where_it_is_indexed(root):
    await root.ask("make_folder", "/data/in")
    await root.ask("index", "/data/in")
    content = b"swallow " * 4000
    for path in ("/data/in/a", "/data/in/b", "/data/out"):
        await root.write(path, content)
    await indexed(root)
    assert set(await found(root, "swallow", limit=1000)) == {"/data/in/a", "/data/in/b"}
    assert len(Words.texts) - 1 == len(pieces_of(content.decode())), "they are embedded once, and the query"


async def test_an_index_outlives_the_node_and_goes_on_where_it_was(tmp_path):
    async with TestKernel(*SERVICES, root=tmp_path) as system:
        root = TreeUser(system)
        await root.ask("index", "/data")
        await root.write("/data/a", b"swallow")
        await indexed(root)
    async with TestKernel(Devices, Memory, Filesystem, root=tmp_path) as system:  # nobody embeds: it waits
        root = TreeUser(system)
        await root.write("/data/b", b"engine")
        while not (state := await root.port.call("filesystem.index_state")).why:
            await asyncio.sleep(0.01)
        assert state.waiting
    async with TestKernel(*SERVICES, root=tmp_path) as system:
        root = TreeUser(system)
        await indexed(root)
        assert Words.texts == ["engine"]
        assert await found(root, "swallow", limit=1) == ["/data/a"]
        state = await root.port.call("filesystem.index_state")
        assert (state.folders, state.pieces, state.model) == (("/data",), 2, "words")


async def test_another_model_makes_all_vectors_anew(tmp_path, monkeypatch):
    async with TestKernel(*SERVICES, root=tmp_path) as system:
        root = TreeUser(system)
        await root.ask("index", "/data")
        await root.write("/data/a", b"swallow")
        await indexed(root)
    monkeypatch.setattr(Words, "model", "better words")
    async with TestKernel(*SERVICES, root=tmp_path) as system:
        root = TreeUser(system)
        await root.write("/data/b", b"engine")
        await indexed(root)
        assert set(Words.texts) == {"engine", "swallow"}
        assert (await root.port.call("filesystem.index_state")).model == "better words"
        assert await found(root, "swallow", limit=1) == ["/data/a"]


async def test_collected_contents_leave_the_index_with_their_rows(root, system):
    await root.ask("index", "/data")
    await root.write("/data/a", b"swallow")
    await indexed(root)
    await root.ask("remove", "/data/a")
    await root.ask("collect", "/", older_than=0.0)
    assert await found(root, "swallow") == []
    await root.ask("index", "/data", indexed=False)
    with pytest.raises(PreconditionFailed, match="no folder is indexed"):
        await root.ask("search", "/", query="swallow")


async def test_what_is_no_text_is_not_indexed_and_not_searched_for_patterns(root):
    await root.ask("index", "/data")
    await root.write("/data/zeros", b"swallow\0" * 10)
    await root.write("/data/latin", "schwälbchen".encode("latin-1"))
    await root.write("/data/empty", b"")
    await root.write("/data/blank", b" \n \n")
    await indexed(root)
    assert Words.texts == []
    assert await root.collect("grep", pattern="sw", path="/data") == []


async def test_the_memory_of_the_index_is_counted(root, system):
    await root.ask("index", "/data")
    await root.write("/data/a", b"swallow")
    await indexed(root)
    accounts = await system.call("memory.usage")
    assert "search by meaning" in [each.purpose for account in accounts for each in account.reservations]


async def test_only_root_says_what_is_indexed_and_queries_have_limits(root, ann):
    with pytest.raises(Denied):
        await ann.ask("index", "/data")
    with pytest.raises(NotFound):
        await root.ask("index", "/data/nowhere")
    await root.ask("index", "/data")
    for fields in ({"query": " "}, {"query": "x" * 9000}, {"query": "a", "limit": 0}, {"query": "a", "limit": 5000}):
        with pytest.raises(Invalid):
            await root.ask("search", "/", **fields)
    with pytest.raises(Invalid, match="is not on the disk"):
        await root.ask("search", "/tmp", query="swallow")


async def test_a_pattern_is_found_line_by_line(root, ann, bob):
    await root.write("/data/a.txt", b"one\ntwo Swallows\nthree swallows\n")
    await ann.write("/home/ann/b.txt", b"my swallow\n")
    matches = await root.collect("grep", pattern="swallows?", path="/")
    assert [(each.path, each.line, each.text) for each in matches] == [
        ("/data/a.txt", 3, "three swallows"),
        ("/home/ann/b.txt", 1, "my swallow"),
    ]
    assert [each.line for each in await root.collect("grep", pattern="SWALLOW", path="/data", ignore_case=True)] == [
        2,
        3,
    ]
    assert [each.path for each in await bob.collect("grep", pattern="swallow")] == ["/data/a.txt"]
    assert await root.collect("grep", pattern="s.allow", path="/data", literal=True) == []
    assert len(await root.collect("grep", pattern="swallow", limit=1)) == 1
    assert len(await root.collect("grep", pattern="one", path="/data/a.txt")) == 1


async def test_a_pattern_that_is_none_or_takes_for_ever_is_refused(root):
    await root.write("/data/a", b"a" * 5000 + b"!")
    with pytest.raises(Invalid, match="is no pattern"):
        await root.collect("grep", pattern="(", path="/data")
    with pytest.raises(Invalid, match="takes more than"):
        await root.collect("grep", pattern="(a|a)*(a|a)*$b|(x+x+)+y|(a+)+$", path="/data")
    with pytest.raises(Invalid, match="allowed are"):
        await root.collect("grep", pattern="a" * 2000, path="/data")


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "word " * 1000,
        "Sentence one is here. " * 200,
        "x" * 5000,
        "ä" * 3000,
        "para\n\n" * 500,
        "中文句子。" * 600,
        "a" * (LONGEST - 1) + " b" * 600,
    ],
)
def test_pieces_have_all_of_a_text_and_say_where_they_are(text):
    body = text.encode()
    pieces = pieces_of(text)
    assert all(len(piece.text) <= LONGEST for piece in pieces)
    assert [body[piece.start : piece.stop].decode() for piece in pieces] == [piece.text for piece in pieces]
    assert pieces[0].start == 0
    assert pieces[-1].stop == len(body)
    assert all(
        after.start <= before.stop and after.start > before.start for before, after in itertools.pairwise(pieces)
    )
