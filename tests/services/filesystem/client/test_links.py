"""Links of fsspec's file systems: other processes, forks, pickles, tokens, loops, ends."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import fsspec
import fsspec.asyn
import pytest
from quiet_script import REGISTER, run

from services.filesystem.client.filesystem import TreeFileSystem

CONTENT = os.urandom(3_000_000)


def test_the_entry_point_is_what_fsspec_is_told():
    told = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]["entry-points"]
    point = EntryPoint("mk", told["fsspec.specs"]["mk"], "fsspec.specs")
    assert point.load() is TreeFileSystem is fsspec.get_filesystem_class("mk")


def test_another_process_reads_and_writes_and_leaves_without_a_word(fs, node):
    fs.pipe_file("/data/t/x", b"from here")
    script = (
        REGISTER
        + """
with fsspec.open("mk:///data/t/x", "r") as file:
    print(file.read())
with fsspec.open("mk:///data/t/y", "w") as file:
    file.write("from there")
"""
    )
    assert run(script, MICROKERNEL_URL=node.url, MICROKERNEL_TOKEN=node.token) == "from here\n"
    assert fs.cat_file("/data/t/y") == b"from there"


def test_a_process_that_ends_with_a_file_open_leaves_what_was_there(fs, node):
    fs.pipe_file("/data/t/x", b"before")
    script = (
        REGISTER
        + """
file = fsspec.filesystem("mk").open("/data/t/x", "wb", block_size=10)
file.write(b"half of it, and more than a block")
kept = fsspec.filesystem("mk").open("/data/t/x")
kept.read(1)
import logging
logging.getLogger("microkernel.client").addHandler(logging.StreamHandler(sys.stdout))
"""
    )
    said = run(script, MICROKERNEL_URL=node.url, MICROKERNEL_TOKEN=node.token)
    assert said == "/data/t/x was not closed: nothing of what was written to it is kept\n"
    assert fs.cat_file("/data/t/x") == b"before"


def test_a_forked_process_has_a_link_of_its_own(fs, node):
    fs.pipe_file("/data/t/x", CONTENT)
    script = (
        REGISTER
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
fs = fsspec.filesystem("mk")
file = fs.open("/data/t/x", block_size=1000)
writing = fs.open("/data/t/mine", "wb", block_size=10)
writing.write(b"of the parent, and more than a block")
file.read(10), file.read(2000)
child = os.fork()
if child == 0:
    try:
        assert len(fs.cat_file("/data/t/x")) == 3_000_000
        assert len(file.read()) == 3_000_000 - 2010
        fs.pipe_file("/data/t/y", b"from the child")
        try:
            writing.write(b"this is the child, which has no business here")
        except OSError as error:
            assert "in another process" in str(error)
        else:
            raise AssertionError("it was written")
        fs.close()
        code = 0
    except BaseException as error:
        print(repr(error), flush=True)
        code = 1
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
writing.close()
print(len(file.read()), fs.cat_file("/data/t/y"), fs.cat_file("/data/t/mine"))
"""
    )
    said = run(script, MICROKERNEL_URL=node.url, MICROKERNEL_TOKEN=node.token)
    assert said == "2997990 b'from the child' b'of the parent, and more than a block'\n"


def test_a_pickled_file_system_and_an_open_file_go_on_elsewhere(fs, node):
    fs.pipe_file("/data/t/x", b"0123456789")
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("/data/t/x") == b"0123456789"
    with fs.open("/data/t/x") as file:
        file.read(3)
        fs.pipe_file("/data/t/x", b"other")
        assert pickle.loads(pickle.dumps(file)).read() == b"3456789", "of the version that was opened"
        again_open = pickle.loads(pickle.dumps(file))
        assert hash(again_open) == hash(file)
        assert again_open == file
    with pytest.raises(RuntimeError, match="writeable"):
        pickle.dumps(fs.open("/data/t/y", "wb"))
    again.close()


def test_the_token_is_in_no_text(fs, node):
    opened = fs.open("/data/t/new", "wb")
    opened.discard()
    told = [repr(fs), str(fs), repr(fs.link), repr(opened), fs.unstrip_protocol("/data"),
            str(fs.to_dict(include_password=False)), fs.to_json(include_password=False)]  # fmt: skip
    with pytest.raises(FileNotFoundError) as lost:
        fs.cat_file("/data/t/no")
    told += [str(lost.value), repr(lost.value.__cause__)]
    assert not [text for text in told if node.token in text]
    assert json.loads(fs.to_json())["token"] == node.token


def test_a_token_that_is_refused_is_permission_denied(node):
    fs = fsspec.filesystem("mk", address=node.url, token="wrong", skip_instance_cache=True)
    with pytest.raises(PermissionError, match="does not let this client in"):
        fs.ls("/")


def test_a_closed_file_system_opens_another_link(fs):
    fs.close()
    fs.close()
    assert fs.exists("/data")


def test_a_dropped_file_system_closes_its_link(node):
    fs = fsspec.filesystem("mk", **node.options, skip_instance_cache=True)
    fs.exists("/")
    link = fs.link
    del fs
    gc.collect()

    async def until_closed() -> None:
        while link._system is not None:
            await asyncio.sleep(0.01)

    fsspec.asyn.sync(fsspec.asyn.get_loop(), until_closed)


def test_a_link_that_has_ended_for_good_is_replaced(fs, node):
    made = node.call("kernel.token_create", user="bob", allow=["filesystem.*"])
    other = fsspec.filesystem("mk", address=node.url, token=made.token, skip_instance_cache=True)
    assert other.exists("/data")
    first = other.link._system
    fsspec.asyn.sync(other.loop, first.aclose)
    assert other.exists("/data")
    assert other.link._system is not first
    other.close()


async def test_it_is_awaited_where_a_loop_runs(fs, node):
    async def use() -> None:
        there = fsspec.filesystem("mk", **node.options, asynchronous=True, skip_instance_cache=True)
        await there._pipe_file("/data/t/x", CONTENT)
        assert await asyncio.gather(*[there._cat_file("/data/t/x", place, place + 9) for place in range(100)]) == [
            CONTENT[place : place + 9] for place in range(100)
        ]
        async with await there.open_async("/data/t/y", "wb") as file:
            for place in range(0, len(CONTENT), 500_000):
                await file.write(CONTENT[place : place + 500_000])
        async with await there.open_async("/data/t/y", "ab") as file:
            await file.write(b"end")
        async with await there.open_async("/data/t/y") as file:
            assert await file.read(10) == CONTENT[:10]
            assert await file.read() == CONTENT[10:] + b"end"
        left = await there.open_async("/data/t/y", "wb")
        await left.write(CONTENT)
        await left.discard()
        with pytest.raises(ValueError, match="rb, wb and ab"):
            await there.open_async("/data/t/y", "r")
        assert (await there._info("/data/t/y"))["size"] == len(CONTENT) + 3
        await there.aclose()

    await asyncio.to_thread(lambda: [asyncio.run(use()) for _ in range(2)])
