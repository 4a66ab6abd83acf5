"""Nothing leads out of a mount: no path, no link, no link that is put there while one looks."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

from microkernel.errors import Invalid, MicrokernelError, NotFound
from services.filesystem.paths import parse
from services.filesystem.remote.address import parse_address
from services.filesystem.remote.local import LocalStore
from services.filesystem.remote.web import WebStore

PARTS = ("..", ".", "%2e", "%2E%2e", "%252e", "%c0%ae", "\uff0e", "\u2024", "/", "\\", "%2f", "%5C", "%252f", "\uff0f",
         "\u2215", "\0", "%00", "\n", "\r", "\u202e", "\u200b", "\u00ad", " ", "secret", "link", "*", "?", "[s]", "~",
         "C:", "file://", "::", "a", ";", "|")  # fmt: skip


def hostile_paths():
    chosen = itertools.islice(itertools.product(PARTS, repeat=3), 0, None, 8)
    for parts in chosen:
        yield "/mnt/f/" + "".join(parts)
        yield "/mnt/f/" + "/".join(parts)


async def test_of_ten_thousand_hostile_paths_none_reaches_what_is_beside_the_root(folder, tmp_path):
    (folder / "a").write_bytes(b"inside")
    (folder / "link").symlink_to(tmp_path)
    (folder / "linked").symlink_to(tmp_path / "secret")
    store = LocalStore("/mnt/f", parse_address(folder.as_uri()), 30.0)
    count = looked = 0
    for text in hostile_paths():
        count += 1
        try:
            names = parse(text).below(parse("/mnt/f")).names
        except Invalid:
            continue
        looked += 1
        try:
            found = await store.find(names)
            content = b"" if found.folder else await store.fetch(names, found, 0, 100)
        except MicrokernelError:
            continue
        assert content in {b"", b"inside"}, text
    await store.close()
    assert count > 10_000
    assert looked > 500


async def test_hostile_paths_stay_below_the_url_of_a_server(server):
    server.files = {"/top/a": b"inside", "/secret": b"the secret", "/topsecret": b"the secret"}
    store = WebStore("/mnt/f", parse_address(f"{server.url}/top"), {}, {}, 30.0)
    for text in itertools.islice(hostile_paths(), 0, None, 25):
        try:
            names = parse(text).below(parse("/mnt/f")).names
            found = await store.find(names)
            assert found.folder or await store.fetch(names, found, 0, 100) == b"inside", text
        except MicrokernelError:
            continue
    await store.close()


async def test_a_link_that_leads_out_is_as_if_it_were_not_there(root, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("outside")
    (folder / "in").mkdir()
    (folder / "in" / "x").write_text("inside")
    (folder / "to_in").symlink_to("in")
    (folder / "to_x").symlink_to(folder / "in" / "x")
    (folder / "to_secret").symlink_to("../secret")
    (folder / "to_outside").symlink_to(outside)
    (folder / "in" / "up").symlink_to("../..")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    await root.ask("mount", "/mnt/f", url=folder.as_uri(), writable=True)
    assert await root.names("/mnt/f") == ["in", "to_in", "to_x"]
    assert await root.names("/mnt/f/in") == ["x"]
    assert await root.read("/mnt/f/to_in/x") == await root.read("/mnt/f/to_x") == b"inside"
    for path in ("to_secret", "to_outside/x", "in/up/secret", "to_in/up/secret", "loop", "pipe"):
        with pytest.raises((NotFound, Invalid, MicrokernelError)):
            await root.read(f"/mnt/f/{path}")
    for path in ("to_secret", "to_outside/y", "to_outside/x", "in/up/y"):
        with pytest.raises(MicrokernelError):
            await root.write(f"/mnt/f/{path}", b"changed")
    assert (tmp_path / "secret").read_text() == "the secret"
    assert sorted(path.name for path in outside.iterdir()) == ["x"]


async def test_a_removed_link_leaves_what_it_leads_to(root, folder):
    (folder / "in").mkdir()
    (folder / "in" / "x").write_text("inside")
    (folder / "other").mkdir()
    (folder / "other" / "to_in").symlink_to("../in")
    (folder / "to_in").symlink_to("in")
    await root.ask("mount", "/mnt/f", url=folder.as_uri(), writable=True)
    await root.ask("remove", "/mnt/f/to_in", recursive=True)
    await root.ask("remove", "/mnt/f/other", recursive=True)
    assert await root.names("/mnt/f") == ["in"]
    assert await root.read("/mnt/f/in/x") == b"inside"


async def test_a_folder_that_becomes_a_link_while_one_looks_leads_nowhere(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"outside")
    (folder / "real").mkdir()
    (folder / "real" / "x").write_bytes(b"inside")
    store = LocalStore("/mnt/f", parse_address(folder.as_uri()), 30.0)
    ended = threading.Event()

    def flip() -> None:
        while not ended.is_set():
            (folder / "real").rename(folder / "kept")
            (folder / "real").symlink_to(tmp_path / "outside")
            (folder / "real").unlink()
            (folder / "kept").rename(folder / "real")

    flipping = threading.Thread(target=flip)
    flipping.start()
    try:
        seen = set()
        for _ in range(2000):
            try:
                found = await store.find(("real", "x"))
                seen.add(await store.fetch(("real", "x"), found, 0, 10))
            except MicrokernelError:
                continue
    finally:
        ended.set()
        flipping.join()
        await store.close()
    assert seen <= {b"inside"}
