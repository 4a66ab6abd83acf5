"""A stored volume does what a dict of whole trees would do, one for each version, whatever is asked of it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from microkernel.errors import AlreadyExists, Invalid, MicrokernelError, NotFound, PreconditionFailed
from services.filesystem.paths import ROOT, TreePath, twin_key
from services.filesystem.stored.settings import VolumeSettings
from services.filesystem.stored.upkeep import Upkeep
from services.filesystem.stored.usage import ROW
from services.filesystem.stored.versions import Versions
from services.filesystem.stored.volume import StoredVolume

Tree = dict[tuple[str, ...], bytes | None]
"""Paths with what is in the file; None is a folder."""

REFUSALS = (AlreadyExists, Invalid, NotFound, PreconditionFailed)
NAMES = st.sampled_from(["a", "A", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
PLACES = st.tuples(st.integers(0, 2), st.integers(0, 999), PATHS)
"""A path, two times of three one that is there: see `Volume.at`."""
CONTENTS = st.sampled_from([b"", b"1", b"22", bytes(20_000), bytes(70_000), b"x" * 300_000])


class Refused(Exception):
    """The model does not do that."""


class Model:
    """The tree as a dict; every operation is a few lines that are plainly right."""

    def __init__(self) -> None:
        self.tree: Tree = {}

    def folders_to(self, path: tuple[str, ...]) -> Tree:
        """The folders above a path that are not there yet; refuses where one is a file, or a twin is there."""
        missing: Tree = {}
        for end in range(1, len(path) + 1):
            at = path[:end]
            twins = [other for other in self.tree if other[:-1] == at[:-1] and twin_key(other[-1]) == twin_key(at[-1])]
            if at not in self.tree:
                if twins:
                    raise Refused
                if end < len(path):
                    missing[at] = None
            elif end < len(path) and self.tree[at] is not None:
                raise Refused
        return missing

    def below(self, path: tuple[str, ...]) -> Tree:
        return {other: content for other, content in self.tree.items() if other[: len(path)] == path}

    def write(self, path, content: bytes) -> None:
        missing = self.folders_to(path)
        if path in self.tree and self.tree[path] is None:
            raise Refused
        self.tree |= missing | {path: content}

    def make_folder(self, path) -> None:
        missing = self.folders_to(path)
        if path in self.tree:
            raise Refused
        self.tree |= missing | {path: None}

    def remove(self, path, *, recursive: bool) -> None:
        if path not in self.tree or (len(self.below(path)) > 1 and not recursive):
            raise Refused
        for other in self.below(path):
            del self.tree[other]

    def rename(self, path, to, *, replace: bool) -> None:
        if path not in self.tree:
            raise Refused
        if self.tree[path] is None and to[: len(path)] == path and to != path:
            raise Refused
        moved = self.below(path)
        same = path[:-1] == to[:-1] and twin_key(path[-1]) == twin_key(to[-1])
        without = Model()
        without.tree = {other: content for other, content in self.tree.items() if other not in moved}
        if not same:
            self.folders_to(to)  # what is moved is still in its place while the new one is looked for
            if to in self.tree and (self.tree[to] is None or not replace):
                raise Refused
        missing = without.folders_to(to)
        without.tree |= missing | {to + other[len(path) :]: content for other, content in moved.items()}
        self.tree = without.tree

    def copy(self, path, to) -> None:
        content = self.tree.get(path)
        if content is None:
            raise Refused
        self.write(to, content)

    def roll_back(self, path, then: Tree) -> None:
        old = {other: content for other, content in then.items() if other[: len(path)] == path}
        if path and path not in then:
            raise Refused
        twins = [
            other for other in self.tree
            if path and other[:-1] == path[:-1] and twin_key(other[-1]) == twin_key(path[-1]) and other != path
        ]  # fmt: skip
        if twins:
            raise Refused
        missing = self.folders_to(path)
        kept = {other: content for other, content in self.tree.items() if other[: len(path)] != path}
        self.tree = kept | missing | old


class Volume(RuleBasedStateMachine):
    """Random operations, each on both."""

    @initialize(on_disk=st.booleans())
    def open(self, on_disk: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(prefix="microkernel-") if on_disk else None
        self.time = 1000.0
        self.model = Model()
        self.snapshots: dict[str, int] = {}
        self.forgotten = 0  # versions up to here may have been collected
        self.mount()
        self.then: dict[int, Tree] = {self.newest(): {}}

    def mount(self) -> None:
        place = None if self.folder is None else Path(self.folder.name)
        self.volume = StoredVolume(ROOT, place, VolumeSettings(), now=lambda: self.time)
        self.run(self.volume.open())

    def run(self, work):
        return self.loop.run_until_complete(work)

    def newest(self) -> int:
        return self.run(self.volume.change(lambda changes: changes.version))

    def at(self, place, among=None) -> tuple[str, ...]:
        """A path that is there, or any one."""
        which, number, path = place
        there = sorted(self.model.tree) if among is None else [(), *among]
        return there[number % len(there)] if which and there else path

    def both(self, in_volume, in_model) -> None:
        """Do it in both; either both refuse, or both do it. A version is what both are then."""
        self.time += 1.0
        before = dict(self.model.tree)
        try:
            in_model()
            is_refused = False
        except Refused:
            is_refused, self.model.tree = True, before
        try:
            self.run(in_volume)
        except REFUSALS as error:
            assert is_refused, f"the model does it: {error!r}"
        else:
            assert not is_refused, "the model refuses it"
            self.then[self.newest()] = dict(self.model.tree)

    @rule(path=PLACES, content=CONTENTS)
    def write(self, path, content):
        path = self.at(path)
        self.both(self.volume.write(TreePath(path), content, None), lambda: self.model.write(path, content))

    @rule(path=PLACES)
    def make_folder(self, path):
        path = self.at(path)
        self.both(self.volume.make_folder(TreePath(path), None, exist_ok=False), lambda: self.model.make_folder(path))

    @rule(path=PLACES, recursive=st.booleans())
    def remove(self, path, recursive):
        path = self.at(path)
        self.both(
            self.volume.remove(TreePath(path), None, recursive=recursive),
            lambda: self.model.remove(path, recursive=recursive),
        )

    @rule(path=PLACES, to=PLACES, replace=st.booleans())
    def rename(self, path, to, replace):
        path, to = self.at(path), self.at(to)
        self.both(
            self.volume.rename(TreePath(path), TreePath(to), None, replace=replace),
            lambda: self.model.rename(path, to, replace=replace),
        )

    @rule(path=PLACES, to=PLACES)
    def copy(self, path, to):
        path, to = self.at(path), self.at(to)
        self.both(self.volume.copy(TreePath(path), TreePath(to), None), lambda: self.model.copy(path, to))

    @rule(path=PLACES, data=st.data())
    def roll_back(self, path, data):
        version = data.draw(st.sampled_from(sorted(self.then)))
        path = self.at(path, sorted(self.then[version]))
        if version < self.forgotten and version not in self.snapshots.values():
            return
        self.both(
            Versions(self.volume).roll_back(TreePath(path), version, None),
            lambda: self.model.roll_back(path, self.then[version]),
        )

    @rule(name=st.sampled_from(["s1", "s2", "s3"]))
    def snapshot(self, name):
        try:
            taken = self.run(Versions(self.volume).take(name, None))
        except AlreadyExists:
            assert name in self.snapshots
        else:
            assert name not in self.snapshots
            self.snapshots[name] = taken.version

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def forget_snapshot(self, data):
        name = data.draw(st.sampled_from(sorted(self.snapshots)))
        self.run(Versions(self.volume).forget(name))
        del self.snapshots[name]

    @rule(age=st.sampled_from([0.0, 5.0]), data=st.data())
    def collect(self, age, data):
        tried = self.run(Upkeep(self.volume).collect(age, dry_run=True))
        done = self.run(Upkeep(self.volume).collect(age))
        assert (done.versions, done.contents, done.bytes) == (tried.versions, tried.contents, tried.bytes)
        self.forgotten = self.run(self.volume.look(lambda sight: sight.names.count("horizon")))
        assert self.forgotten <= self.newest()

    @precondition(lambda self: self.folder is not None)
    @rule()
    def close_and_open(self):
        self.run(self.volume.close())
        self.mount()

    @rule(data=st.data())
    def an_old_version_is_what_it_was(self, data):
        version = data.draw(st.sampled_from(sorted(self.then)))
        try:
            found = self.run(self.tree(version))
        except NotFound:
            assert version < self.forgotten
            assert version not in self.snapshots.values()
        else:
            assert found == self.then[version]

    @rule(data=st.data())
    def a_difference_is_one_of_the_trees(self, data):
        since, until = (data.draw(st.sampled_from(sorted(self.then))) for _ in range(2))
        if min(since, until) < self.forgotten:
            return
        found = {each.path: each.how for each in self.run(self.differences(since, until))}
        old, new = self.then[since], self.then[until]
        expected = dict.fromkeys(old.keys() - new.keys(), "removed")
        expected |= dict.fromkeys(new.keys() - old.keys(), "added")
        expected |= {path: "changed" for path in old.keys() & new.keys() if old[path] != new[path]}
        by_key: dict[tuple[str, ...], list[str]] = {}  # a name that changes its case is one change, and not two
        for path, how in expected.items():
            by_key.setdefault(tuple(map(twin_key, path)), []).append(how)
        assert {tuple(map(twin_key, path.split("/")[1:])) for path in found} >= {
            key for key, hows in by_key.items() if len(hows) == 1
        }
        for path, how in found.items():
            assert how in by_key[tuple(map(twin_key, path.split("/")[1:]))] or how == "changed"

    async def differences(self, since, until):
        return [each async for each in Versions(self.volume).diff(ROOT, since, until, None)]

    @invariant()
    def the_tree_is_the_models(self):
        if hasattr(self, "volume"):
            assert self.run(self.tree(None)) == self.model.tree

    @invariant()
    def usage_is_what_the_rows_say(self):
        if not hasattr(self, "volume"):
            return

        def count(sight):
            db = sight.names.db
            rows = db.execute("SELECT content, size FROM entry UNION ALL SELECT content, size FROM past").fetchall()
            return len(rows), sum(dict(row for row in rows if row[0] is not None).values())

        rows, size = self.run(self.volume.look(count))
        kept = self.run(Upkeep(self.volume).usage())
        assert (sum(each.versions for each in kept), sum(each.bytes for each in kept)) == (rows, size + rows * ROW)

    async def tree(self, version: int | None) -> Tree:
        found: Tree = {}
        folders = [ROOT]
        while folders:
            folder = folders.pop()
            for each in await self.volume.list(folder, None, version):
                path = folder / each.path.rpartition("/")[2]
                if each.kind == "folder":
                    found[path.names] = None
                    folders.append(path)
                else:
                    pieces = self.volume.read(path, None, 0, None, version)
                    found[path.names] = b"".join([piece async for piece in pieces])
        return found

    def teardown(self):
        if hasattr(self, "volume"):
            try:
                damages = self.run(Upkeep(self.volume).scrub()).damages
                self.run(self.volume.close())
            except MicrokernelError:
                self.loop.close()
                raise
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            if self.folder is not None:
                self.folder.cleanup()
            assert damages == ()


TestVolume = Volume.TestCase
TestVolume.settings = settings(
    max_examples=100, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck)
)
