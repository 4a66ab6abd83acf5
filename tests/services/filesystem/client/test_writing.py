"""Writing the tree through fsspec: at once, in pieces, at the end, in transactions, from local files."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os

import blake3
import fsspec
import fsspec.asyn
import numpy as np
import pytest
from fsspec.callbacks import Callback
from quiet_script import run
from wire_node import break_link

CONTENT = os.urandom(3_000_000)


def test_what_is_written_is_there_once_the_file_is_closed(fs):
    fs.pipe_file("/data/t/x", b"before")
    with fs.open("/data/t/x", "wb", block_size=50_000) as file:
        for place in range(0, len(CONTENT), 77_777):
            file.write(memoryview(CONTENT)[place : place + 77_777])
        assert fs.cat_file("/data/t/x") == b"before"
        assert file.tell() == len(CONTENT)
    assert fs.info("/data/t/x")["digest"] == blake3.blake3(CONTENT).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_048_576, 3_000_000])
def test_any_length_is_written_at_once(fs, size):
    with fs.open("/data/t/x", "wb") as file:
        assert file.write(CONTENT[:size]) == size
    assert fs.cat_file("/data/t/x") == CONTENT[:size]
    fs.pipe_file("/tmp/t/x", memoryview(CONTENT)[:size])
    assert fs.cat_file("/tmp/t/x") == CONTENT[:size]


def test_memory_that_changes_after_a_write_does_not_change_the_file(fs):
    memory = bytearray(CONTENT)
    with fs.open("/data/t/x", "wb", block_size=1000) as file:
        file.write(memory)
        memory[:] = bytes(len(memory))
    assert fs.cat_file("/data/t/x") == CONTENT
    with fs.open("/data/t/x", "wb", block_size=1000) as file:
        file.write(np.arange(100_000))
    assert fs.cat_file("/data/t/x") == np.arange(100_000).tobytes()


def test_text_is_appended_where_the_file_ends(fs):
    with fs.open("/data/t/log", "a") as file:
        file.write("first\n")
    with fs.open("/data/t/log", "ab") as file:
        assert file.tell() == 6
        file.write(b"second\n")
        file.write(CONTENT)
    assert fs.cat_file("/data/t/log") == b"first\nsecond\n" + CONTENT


def test_an_append_to_what_has_changed_meanwhile_changes_nothing(fs):
    fs.pipe_file("/data/t/log", b"1")
    file = fs.open("/data/t/log", "ab")
    file.write(b"2")
    fs.pipe_file("/data/t/log", b"another")
    with pytest.raises(OSError, match="is at version") as refused:
        file.close()
    assert refused.value.errno == errno.ESTALE
    assert fs.cat_file("/data/t/log") == b"another"


def test_of_two_who_open_a_new_file_one_gets_it(fs):
    first, second = fs.open("/data/t/x", "xb"), fs.open("/data/t/x", "xb")
    first.write(b"first")
    second.write(b"second")
    first.close()
    with pytest.raises(FileExistsError):
        second.close()
    assert fs.cat_file("/data/t/x") == b"first"
    for create in (lambda: fs.open("/data/t/x", "xb"), lambda: fs.pipe_file("/data/t/x", CONTENT, mode="create")):
        with pytest.raises(FileExistsError):
            create()


def test_a_discarded_file_leaves_what_was_there(fs):
    fs.pipe_file("/data/t/x", b"before")
    file = fs.open("/data/t/x", "wb", block_size=1000)
    file.write(CONTENT)
    file.discard()
    assert file.closed
    file.close()
    with pytest.raises(OSError, match="was discarded"):
        file.commit()
    assert fs.cat_file("/data/t/x") == b"before"


def test_files_of_a_transaction_are_there_at_its_end_or_never(fs):
    with fs.transaction:
        for name, content in (("a", b"small"), ("b", CONTENT)):
            with fs.open(f"/data/t/{name}", "wb") as file:
                file.write(content)
        left_open = fs.open("/data/t/c", "wb")
        left_open.write(b"c")
        assert not fs.exists("/data/t")
    assert fs.cat("/data/t/*") == {"/data/t/a": b"small", "/data/t/b": CONTENT, "/data/t/c": b"c"}
    with pytest.raises(ZeroDivisionError), fs.transaction:  # noqa: PT012
        with fs.open("/data/t/a", "wb") as file:
            file.write(b"other")
        raise ZeroDivisionError
    assert fs.cat_file("/data/t/a") == b"small"


def test_a_file_that_nobody_has_closed_is_written_when_it_is_dropped(fs):
    fs.open("/data/t/x", "wb").write(b"1")
    gc.collect()
    assert fs.cat_file("/data/t/x") == b"1"


def test_a_file_that_is_dropped_on_the_loop_itself_is_told_of_and_not_waited_for(fs, caplog):
    files = [fs.open("/data/t/x", "wb", block_size=10)]
    files[0].write(CONTENT)

    async def drop() -> None:
        files.clear()
        gc.collect()

    with caplog.at_level(logging.WARNING, "microkernel.client"):
        fsspec.asyn.sync(fs.loop, drop)
    assert "nothing of what was written to it is kept" in caplog.text
    assert not fs.exists("/data/t/x")


def test_local_files_come_and_go_in_pieces_that_are_told_of(fs, tmp_path):
    class Told(Callback):
        def relative_update(self, inc=1):
            super().relative_update(inc)
            steps.append(inc)

    for size in (0, 100, 3_000_000):
        (tmp_path / "here").write_bytes(CONTENT[:size])
        for move in (
            lambda told: fs.put_file(tmp_path / "here", "/data/t/x", callback=told),
            lambda told: fs.get_file("/data/t/x", str(tmp_path / "new" / "back"), callback=told),
        ):
            steps: list[int] = []
            told = Told()
            move(told)
            assert (told.size, told.value, sum(steps)) == (size, size, size)
        assert (tmp_path / "new" / "back").read_bytes() == CONTENT[:size]
    with pytest.raises(FileExistsError):
        fs.put_file(tmp_path / "here", "/data/t/x", mode="create")
    memory = io.BytesIO()
    fs.get_file("/data/t/x", memory)
    assert memory.getvalue() == CONTENT


def test_a_large_file_takes_little_memory_here_wherever_it_goes(node, tmp_path):
    size = 64 << 20
    script = f"""
import fsspec, resource, sys
from services.filesystem.client.filesystem import TreeFileSystem
fs = TreeFileSystem(**{node.options!r})
fs.exists("/")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fs.put_file({str(tmp_path / "large")!r}, "/data/t/large")
fs.get_file("/data/t/large", {str(tmp_path / "back")!r})
with fs.open("/data/t/large") as source, fs.open("/data/t/copy", "wb") as target:
    while piece := source.read(1 << 20):
        target.write(piece)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""
    with (tmp_path / "large").open("wb") as file:
        for number in range(64):
            file.write(bytes([number]) * (1 << 20))
    assert int(run(script)) < size // 2 + (16 << 20)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()


def test_a_file_that_is_open_while_its_link_is_closed_is_not_written(fs):
    fs.pipe_file("/data/t/x", b"before")
    file = fs.open("/data/t/x", "wb", block_size=1000)
    file.write(CONTENT[:3000])
    fs.exists("/data/t")  # all has left
    fs.close()
    with pytest.raises(OSError, match="connection was closed") as refused:
        file.close()
    assert refused.value.errno == errno.ECANCELED
    assert fs.cat_file("/data/t/x") == b"before"


def test_what_is_written_while_a_link_breaks_is_written_once(fs):
    with fs.open("/data/t/x", "wb", block_size=1000) as file:
        for place in range(0, len(CONTENT), 100_000):
            file.write(CONTENT[place : place + 100_000])
            if place in {300_000, 2_000_000}:
                fsspec.asyn.sync(fs.loop, broken, fs)
    assert fs.cat_file("/data/t/x") == CONTENT
    with fs.open("/data/t/x", block_size=1000) as file:
        parts = [file.read(5000), file.read(5000)]
        fsspec.asyn.sync(fs.loop, broken, fs)
        assert b"".join([*parts, file.read()]) == CONTENT


async def broken(fs) -> None:
    break_link(fs.link._system)
