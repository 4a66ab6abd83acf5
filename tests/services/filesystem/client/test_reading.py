"""Reading the tree through fsspec: parts, blocks, lines, and a version that stays."""

from __future__ import annotations

import os

import pytest

CONTENT = os.urandom(3_000_000)


@pytest.mark.parametrize("top", ["/data/t", "/tmp/t"])
@pytest.mark.parametrize(
    ("start", "end"),
    [(None, None), (0, 5), (5, 5), (7, 3), (262_143, 262_145), (-5, None), (-10, -3), (10, -10), (2_999_999, 9**9),
     (9**9, None), (-(9**9), 4)],
)  # fmt: skip
def test_a_part_is_what_a_slice_is(fs, top, start, end):
    fs.pipe_file(f"{top}/x", CONTENT)
    assert fs.cat_file(f"{top}/x", start=start, end=end) == CONTENT[start:end]


def test_many_parts_are_read_at_once_each_in_its_place(fs):
    fs.pipe({"/data/t/a": CONTENT, "/data/t/b": b"0123456789"})
    asked = [("a", 0, 10), ("b", 2, 4), ("a", 20, 30), ("a", 2_000_000, None), ("a", -4, None), ("c", 0, 1),
             ("b", 5, 3), ("a", 5, 25)]  # fmt: skip
    found = fs.cat_ranges([f"/data/t/{name}" for name, _, _ in asked], [part[1] for part in asked],
                          [part[2] for part in asked])  # fmt: skip
    files = {"a": CONTENT, "b": b"0123456789"}
    assert isinstance(found.pop(5), FileNotFoundError)
    assert found == [files[name][start:end] for name, start, end in asked if name in files]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["/data/t/b", "/data/t/c"], 0, 3, on_error="raise")
    assert fs.cat_ranges(["/data/t/b", "/data/t/a"], 0, [3, -2_999_999]) == [b"012", CONTENT[:1]]


def test_parts_that_are_near_each_other_are_one_read(fs, monkeypatch):
    fs.pipe_file("/data/t/a", CONTENT)
    asked, read = [], fs._cat_file

    async def cat_file(path, start=None, end=None, **more):
        asked.append((start, end))
        return await read(path, start, end, **more)

    monkeypatch.setattr(fs, "_cat_file", cat_file)
    found = fs.cat_ranges(["/data/t/a"] * 3, [2_000_000, 100, 0], [2_000_001, 110, 10])
    assert found == [CONTENT[2_000_000:2_000_001], CONTENT[100:110], CONTENT[:10]]
    assert sorted(asked) == [(0, 110), (2_000_000, 2_000_001)]
    asked.clear()
    fs.cat_ranges(["/data/t/a"] * 2, [100, 0], [110, 10], max_gap=0)
    assert sorted(asked) == [(0, 10), (100, 110)]


def test_a_file_is_sought_in_and_read_in_blocks_and_lines(fs):
    lines = [f"line {number}\n".encode() for number in range(5000)]
    fs.pipe_file("/data/t/x", b"".join(lines) + b"end")
    with fs.open("/data/t/x", block_size=10_000) as file:
        assert file.readline() == lines[0]
        assert file.readline(3) == b"lin"
        assert file.readline() == lines[1][3:]
        file.seek(-3, 2)
        assert file.read() == b"end"
        file.seek(0)
        assert list(file) == [*lines, b"end"]
    with fs.open("/data/t/x", "r", encoding="ascii") as text:
        assert text.read() == b"".join(lines).decode() + "end"
    with fs.open("/data/t/x") as file:
        buffer = bytearray(7)
        assert (file.readinto(buffer), buffer) == (7, b"line 0\n")


def test_parts_that_follow_each_other_come_over_one_stream(fs, monkeypatch):
    fs.pipe_file("/data/t/x", CONTENT)
    opened, stream = [], fs.link.stream

    async def counted(what, path, **fields):
        opened.append(fields.get("start"))
        return await stream(what, path, **fields)

    monkeypatch.setattr(fs.link, "stream", counted)
    with fs.open("/data/t/x", block_size=100_000) as file:
        assert b"".join(iter(lambda: file.read(50_000), b"")) == CONTENT
        assert opened == [0, 150_000], "the first part alone, and all that is behind it"
        file.seek(1_000_000)
        assert file.read(5) == CONTENT[1_000_000:1_000_005]
        assert len(opened) == 3


def test_a_file_that_is_open_stays_what_it_was_when_it_was_opened(fs):
    fs.pipe_file("/data/t/x", CONTENT)
    with fs.open("/data/t/x", block_size=1000) as file:
        assert file.read(10) == CONTENT[:10]
        fs.pipe_file("/data/t/x", b"short")
        assert file.read() == CONTENT[10:]
        assert file.info()["size"] == len(CONTENT)
    with fs.open("/data/t/x", version=fs.info("/data/t/x")["version"]) as file:
        assert file.read() == b"short"


def test_what_the_node_is_now_is_read_as_files(fs):
    assert "filesystem" in fs.cat_file("/proc/services").decode()
    with fs.open("/proc/services", "r") as file:
        assert "filesystem" in file.read()
    assert fs.cat_file("/proc/services", start=-3)[-1:] == b"\n"
    assert fs.info("/proc/services")["size"] is None
    assert fs.isfile("/proc/services")
    assert fs.isdir("/proc")
