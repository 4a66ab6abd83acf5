"""A state folder has its name once it is whole, and never before."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from microkernel.errors import PreconditionFailed
from microkernel.fresh_root import MARK, FreshRoot, check_place
from microkernel.root import Root


def filled(fresh: FreshRoot) -> FreshRoot:
    (fresh.path / "kv").mkdir()
    (fresh.path / "kv" / "pairs").write_text("new")
    (fresh.path / "lock").touch()
    (fresh.path / "link").symlink_to("kv/pairs")
    return fresh


def beside(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir() if path.name != place.name)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "nothing, in a folder that is not there either"])
def test_it_is_put_where_nothing_is(tmp_path, there):
    place = tmp_path / "a" / "root" if "either" in there else tmp_path / "root"
    if there == "an empty folder":
        place.mkdir()
    check_place(place, replace=False)
    fresh = filled(FreshRoot(place))
    assert not place.exists() or not any(place.iterdir())
    assert fresh.put_in_place(replace=False) is None
    fresh.discard()
    assert sorted(path.name for path in place.iterdir()) == ["kv", "link"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert beside(place) == []


def test_what_is_there_is_not_touched_unless_that_is_asked_for_and_then_it_is_put_aside(tmp_path):
    place = tmp_path / "root"
    place.mkdir()
    (place / "old").write_text("old")
    with pytest.raises(PreconditionFailed, match="not empty"):
        check_place(place, replace=False)
    check_place(place, replace=True)
    fresh = filled(FreshRoot(place))
    with pytest.raises(PreconditionFailed, match="not empty"):
        fresh.put_in_place(replace=False)
    assert (place / "old").read_text() == "old"
    aside = fresh.put_in_place(replace=True)
    assert aside is not None
    assert (aside / "old").read_text() == "old"
    assert (place / "kv" / "pairs").read_text() == "new"


def test_a_folder_on_which_a_node_runs_stays(tmp_path):
    root = Root(tmp_path / "root")
    root.acquire()
    for replace in (False, True):
        with pytest.raises(PreconditionFailed, match="a node runs"):
            check_place(root.path, replace=replace)
    fresh = filled(FreshRoot(root.path))
    with pytest.raises(PreconditionFailed, match="a node runs"):
        fresh.put_in_place(replace=True)
    fresh.discard()
    root.release()
    assert beside(root.path) == []


def test_a_file_is_no_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PreconditionFailed, match="is a file"):
        check_place(tmp_path / "file", replace=True)


# A mount point, which cannot be replaced


@pytest.fixture
def mounted(tmp_path):
    """A folder that takes for a mount point."""
    place = tmp_path / "volume"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "is_mount", lambda path: path == place)
        yield place


def test_what_is_in_it_is_moved_up_within_a_mount_point(mounted):
    (mounted / "lost+found").mkdir()
    fresh = filled(FreshRoot(mounted))
    assert fresh.path.parent == mounted
    assert fresh.put_in_place(replace=False) is None
    fresh.discard()
    assert sorted(path.name for path in mounted.iterdir()) == ["kv", "link", "lock", "lost+found"]
    assert (mounted / "kv" / "pairs").read_text() == "new"
    Root(mounted).acquire()


def test_what_was_in_a_mount_point_is_put_aside_within_it(mounted):
    (mounted / "old").write_text("old")
    with pytest.raises(PreconditionFailed, match="not empty"):
        check_place(mounted, replace=False)
    for turn in range(2):
        fresh = filled(FreshRoot(mounted))
        aside = fresh.put_in_place(replace=True)
        assert aside.parent == mounted
        assert sorted(path.name for path in aside.iterdir()) == [["old"], ["kv", "link"]][turn]


def test_a_kill_while_a_mount_point_is_filled_leaves_no_folder_that_boots(tmp_path):
    code = "import sys, os, signal, pathlib, microkernel.fresh_root as f\n"
    code += "place, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
    code += "pathlib.Path.is_mount = lambda path: path == place\n"
    code += "real = {n: getattr(os, n) for n in ('rename', 'fsync', 'open', 'unlink', 'rmdir', 'mkdir')}\n"
    code += "def counted(name):\n    def call(*a, **k):\n        global count\n        count -= 1\n"
    code += "        if count == 0: os.kill(os.getpid(), signal.SIGKILL)\n        return real[name](*a, **k)\n"
    code += "    return call\n"
    code += "fresh = f.FreshRoot(place)\n"
    code += "for n in range(3): (fresh.path / str(n)).write_text('new')\n"
    code += "for name in real: setattr(os, name, counted(name))\n"
    code += "fresh.put_in_place(replace=True)\n"
    news, olds = {"0", "1", "2"}, {"old0", "old1"}
    ends = set()
    for count in range(1, 80):
        place = tmp_path / str(count)
        place.mkdir()
        for name in olds:
            (place / name).touch()
        done = subprocess.run([sys.executable, "-c", code, place, str(count)], check=False)
        root = Root(place)
        try:
            root.acquire()
        except PreconditionFailed as error:
            assert "a restore was cut off" in error.message
            ends.add("cut off")
            again = subprocess.run([sys.executable, "-c", code, place, "-1"], check=False)
            assert again.returncode == 0
            assert news < {path.name for path in place.iterdir()}
            assert olds <= {path.name for path in place.rglob("old*")}, "nothing is lost"
        else:
            root.release()
            found = {path.name for path in place.iterdir() if path.name in news | olds}
            assert found in (news, olds)
            ends.add("new" if found == news else "old")
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert ends == {"old", "cut off", "new"}


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk" / "node")
    fresh = filled(FreshRoot(tmp_path / "root"))
    fresh.put_in_place(replace=False)
    assert (tmp_path / "root").is_symlink()
    assert (tmp_path / "disk" / "node" / "kv" / "pairs").read_text() == "new"


def test_what_is_discarded_leaves_nothing(tmp_path):
    fresh = filled(FreshRoot(tmp_path / "root"))
    fresh.discard()
    fresh.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_goes_with_the_next_and_what_another_is_at_stays(tmp_path):
    code = "import sys, pathlib, microkernel.fresh_root as f\n"
    code += "fresh = f.FreshRoot(pathlib.Path(sys.argv[1]))\n(fresh.path / 'half').touch()\nprint(1, flush=True)\n"
    code += "sys.stdin.read()\n"
    place = tmp_path / "root [1]*"
    with subprocess.Popen(
        [sys.executable, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        (first,) = tmp_path.iterdir()
        with making(place) as second:
            assert first.exists()
            assert second.path != first
        process.kill()
        process.wait()
    assert (first / "half").exists()
    (tmp_path / f"other{MARK}12345678").mkdir()
    with making(place):
        assert not first.exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"other{MARK}12345678"]


@contextmanager
def making(place: Path):
    """A folder that is discarded at the end."""
    fresh = FreshRoot(place)
    try:
        yield fresh
    finally:
        fresh.discard()


def test_a_kill_at_any_moment_of_the_last_step_leaves_the_old_folder_or_the_new_one(tmp_path):
    """Or neither under that name, while both are whole beside it."""
    code = "import sys, os, signal, pathlib, microkernel.fresh_root as f\n"
    code += "count = int(sys.argv[2])\nreal = {n: getattr(os, n) for n in ('rename', 'fsync', 'open')}\n"
    code += "def counted(name):\n    def call(*a, **k):\n        global count\n        count -= 1\n"
    code += "        if count == 0: os.kill(os.getpid(), signal.SIGKILL)\n        return real[name](*a, **k)\n"
    code += "    return call\n"
    code += "fresh = f.FreshRoot(pathlib.Path(sys.argv[1]))\n"
    code += "for n in range(5): (fresh.path / str(n)).write_text('new')\n"
    code += "for name in real: setattr(os, name, counted(name))\n"
    code += "fresh.put_in_place(replace=True)\n"
    ends = set()
    for count in range(1, 60):
        folder = tmp_path / str(count)
        place = folder / "root"
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"old{number}").write_text("old")
        done = subprocess.run([sys.executable, "-c", code, place, str(count)], check=False)
        news = {str(number) for number in range(5)}
        olds = {f"old{number}" for number in range(3)}
        found = {path: {file.name for file in path.iterdir()} - {"lock"} for path in folder.iterdir()}
        assert found.get(place, olds) in (news, olds)
        assert olds in found.values()
        if place not in found:
            assert news in found.values()
            ends.add("neither")
        else:
            ends.add("new" if found[place] == news else "old")
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert {"old", "new"} <= ends


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    fresh = filled(FreshRoot(tmp_path / "root"))
    told = []
    sync, rename = os.fsync, Path.rename

    def synced(handle):
        told.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    def renamed(path, to):
        told.append("renamed")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    fresh.put_in_place(replace=False)
    before = {Path(each).name for each in told[: told.index("renamed")]}
    assert before == {"pairs", "kv", fresh.path.name}
    assert told[-1] == str(tmp_path)
    with closing(os.scandir(tmp_path / "root")) as found:
        assert {each.name for each in found} == {"kv", "link"}
