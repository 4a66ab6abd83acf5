from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from kept_states import KeptJob, same, state_of

from microkernel.errors import PreconditionFailed
from services.training.checkpoints import disk, writing
from services.training.checkpoints.manifest import file_name, manifest_name

LARGE = {"weights": 250_000}  # 1 MB


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3.5 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root may mount a small file system")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=3500k", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def job(small_disk):
    job = KeptJob(small_disk, keep=9, sizes=LARGE)
    yield job
    job.close()


def test_a_full_disk_is_named_and_what_was_there_stays(job):
    job.write(*(state_of(step, sizes=LARGE) for step in (1, 2, 3)))
    with pytest.raises(PreconditionFailed, match="disk full: a checkpoint needs 1.0 MB more"):
        job.write(state_of(4, sizes=LARGE))
    assert same(job.folder.newest()[1], state_of(3, sizes=LARGE))


def test_the_space_of_a_failed_attempt_is_given_back(small_disk, job, monkeypatch):
    monkeypatch.setattr(writing, "require_room", lambda *_: None)  # as where others fill the disk meanwhile
    job.write(*(state_of(step, sizes=LARGE) for step in (1, 2, 3)))
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(PreconditionFailed, match="disk full"):
        job.write(state_of(4, sizes=LARGE))
    assert shutil.disk_usage(small_disk).free == free
    assert job.names()[-1] == manifest_name(3)


def test_there_is_a_checkpoint_again_once_there_is_room(small_disk, job):
    (small_disk / "others").write_bytes(bytes(3_000_000))
    with pytest.raises(PreconditionFailed):
        job.write(state_of(1, sizes=LARGE))
    (small_disk / "others").unlink()
    assert job.write(state_of(2, sizes=LARGE)) == 1


def test_a_limit_on_the_size_of_files_is_named_and_nothing_is_left(tmp_path):
    program = f"""
        import resource, sys
        sys.path[:] = {sys.path!r}
        from pathlib import Path
        from kept_states import KeptJob, state_of
        from microkernel.errors import PreconditionFailed
        job = KeptJob(Path({str(tmp_path)!r}), sizes={LARGE})
        state = state_of(1, sizes={LARGE})
        job.write(state)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            job.write(state)
        except PreconditionFailed as error:
            print(error.message)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "may not take 1.0 MB" in done.stdout
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        ".lock", file_name(1, 0), manifest_name(1),
    ]  # fmt: skip


def test_a_manifest_that_cannot_be_written_takes_its_files_with_it(tmp_path, monkeypatch):
    job = KeptJob(tmp_path)
    job.write(state_of(1))

    def refuse(path, _content):
        with disk.writing(path.parent, 1):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_durably", refuse)
        with pytest.raises(PreconditionFailed, match="disk full"):
            job.write(state_of(2))
    assert job.names() == [file_name(1, 0), manifest_name(1)]
    assert job.write(state_of(3)) == 2
