"""Who wants to know what changes: events by subject, and a stream for what a user may read."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from microkernel.errors import NotFound, Overloaded
from services.filesystem.messages import Change
from services.filesystem.watchers import LIMIT, Watchers, folders_of


@asynccontextmanager
async def watching(user, path: str, **fields):
    """What a user is told, in a queue."""
    told: asyncio.Queue = asyncio.Queue()

    async def read() -> None:
        async for change in user.all("watch", path=path, **fields):
            told.put_nowait(change)

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_watcher_is_told_what_changes_at_its_path_and_below(root):
    async with watching(root, "/data/f") as told:
        await root.write("/data/other", b"1")
        written = await root.write("/data/f/a", b"22")
        await root.ask("rename", "/data/f/a", to="/data/b")
        await root.ask("remove", "/data/f", recursive=True)
        first, second, third = [await told.get() for _ in range(3)]
    assert (first.path, first.action, first.version, first.size) == ("/data/f/a", "written", written.version, 2)
    assert (second.path, second.before, second.action) == ("/data/b", "/data/f/a", "renamed")
    assert (third.path, third.action) == ("/data/f", "removed")


async def test_a_watcher_sees_what_its_user_may_read(ann, bob):
    async with watching(bob, "/") as told:
        await ann.write("/home/ann/a", b"1")
        await ann.write("/data/a", b"1")
        assert (await told.get()).path == "/data/a"


async def test_a_watcher_that_comes_back_is_told_what_it_has_missed(root):
    seen = await root.write("/data/a", b"1")
    await root.write("/data/b", b"1")
    await root.ask("remove", "/data/a")
    async with watching(root, "/data", since=seen.version) as told:
        await root.write("/data/c", b"1")
        found = [await told.get() for _ in range(3)]
    assert [(each.path, each.action) for each in found] == [
        ("/data/b", "written"),
        ("/data/a", "removed"),
        ("/data/c", "written"),
    ]


async def test_a_watcher_that_was_away_for_too_long_is_told_so(root):
    seen = (await root.write("/data/a", b"1")).version
    await root.write("/data/a", b"2")
    await root.ask("remove", "/data/a")
    await root.ask("collect", "/", older_than=0.0)
    with pytest.raises(NotFound, match="is not kept any more"):
        await root.collect("watch", path="/data", since=seen - 1)


async def test_a_watcher_that_falls_behind_is_cut_off_with_where_to_go_on():
    watchers = Watchers()
    from services.filesystem.paths import ROOT

    changes = watchers.changes(ROOT)
    reading = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    for version in range(LIMIT + 10):
        watchers.tell(change("/data/a", version))
    assert (await reading).version == 0
    seen = []
    with pytest.raises(Overloaded) as refused:
        await read_into(seen, changes)
    assert f"since version {seen[-1]}" in refused.value.remedy


async def read_into(seen: list[int], changes) -> None:
    while True:
        seen.append((await anext(changes)).version)


async def test_each_change_is_an_event_by_the_folder_that_it_is_in(system, root):
    async with system.kernel.port.subscribe("filesystem.changed.data.>") as events:
        await root.write("/data/my reports/2024", b"1")
        await root.write("/tmp/x", b"1")
        await root.ask("remove", "/data/my reports/2024")
        written, removed = await anext(events), await anext(events)
    assert written.subject == "filesystem.changed.data.my:20reports"
    assert (written.body.path, removed.body.action) == ("/data/my reports/2024", "removed")


@pytest.mark.parametrize(
    ("path", "folders"),
    [
        ("/", ""),
        ("/a", ""),
        ("/data/a.txt", ".data"),
        ("/a.b/ä/x", ".a:2eb.:e4"),
        ("/" + "/".join("x" * 12), ".x" * 8),
        ("/" + "y" * 250 + "/a", ""),
    ],
)
def test_a_subject_has_the_names_of_folders_as_far_as_they_fit(path, folders):
    assert folders_of(change(path, 1)) == folders


def change(path: str, version: int) -> Change:
    return Change(path=path, action="written", version=version, by="ann", at=0.0)
