"""Names and folders of the tree through fsspec."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import blake3
import fsspec
import fsspec.asyn
import pytest

from services.filesystem.client.filesystem import TreeFileSystem

CONTENT = os.urandom(3_000_000)


def test_folders_are_made_listed_and_removed(fs):
    fs.mkdir("/data/t/a/b")
    with pytest.raises(FileExistsError):
        fs.mkdir("/data/t/a")
    with pytest.raises(FileExistsError):
        fs.makedirs("/data/t/a/b")
    with pytest.raises(FileNotFoundError):
        fs.mkdir("/data/t/c/d", create_parents=False)
    for path in ("/data/t/a/b", "/", "/tmp", "/proc"):
        fs.makedirs(path, exist_ok=True)
    fs.touch("/data/t/a/x")
    assert fs.ls("/data/t/a", detail=False) == ["/data/t/a/b", "/data/t/a/x"]
    assert [(each["name"], each["type"], each["size"]) for each in fs.ls("mk:///data/t/a/")] == [
        ("/data/t/a/b", "directory", 0),
        ("/data/t/a/x", "file", 0),
    ]
    assert fs.ls("/data/t/a/x", detail=False) == ["/data/t/a/x"]
    with pytest.raises(NotADirectoryError):
        fs.rmdir("/data/t/a/x")
    with pytest.raises(OSError, match="is not empty"):
        fs.rmdir("/data/t/a")
    fs.rmdir("/data/t/a/b")
    fs.rm("/data/t/a", recursive=True)
    assert not fs.exists("/data/t/a")


def test_a_folder_of_more_names_than_a_page_is_listed(fs, monkeypatch):
    monkeypatch.setattr("services.filesystem.client.reading.PAGE", 3)
    fs.pipe({f"/data/t/{number}": b"" for number in range(9)})
    assert fs.ls("/data/t", detail=False) == [f"/data/t/{number}" for number in range(9)]


def test_much_is_removed_by_one_call_each(fs, monkeypatch):
    fs.pipe({f"/data/t/{folder}/{name}": b"" for folder in "ab" for name in "xyz"})
    asked, call = [], fs.link.call

    async def counted(what, path, **fields):
        asked.append((what, path))
        return await call(what, path, **fields)

    monkeypatch.setattr(fs.link, "call", counted)
    fs.rm(["/data/t/a", "/data/t/a/x", "/data/t/b/z"], recursive=True)
    assert sorted(asked) == [("remove", "/data/t/a"), ("remove", "/data/t/b/z")]
    assert fs.find("/data/t") == ["/data/t/b/x", "/data/t/b/y"]
    fs.rm("/data/t/*", recursive=True, maxdepth=2)
    assert fs.ls("/data/t") == []


def test_a_name_changes_on_the_node_and_takes_along_what_is_in_it(fs, monkeypatch):
    monkeypatch.setattr(fs, "_cat_file", None)
    monkeypatch.setattr(fs, "_cp_file", None)
    fs.pipe({"/data/t/a/x": b"1", "/data/t/b": b"2"})
    fs.mv("/data/t/a", "/data/t/new", recursive=True)
    fs.mv("/data/t/b", "/data/t/new/x")
    fs.mv("/data/t/new/x", "/data/t/")
    assert fs.find("/data/t", withdirs=True) == ["/data/t", "/data/t/new", "/data/t/x"]
    fs.mv("/data/t/x", "/data/t/new")
    assert fs.find("/data/t") == ["/data/t/new/x"]
    fs.mv("/data/t/new/x", "/data/t/new/x")
    with pytest.raises(FileNotFoundError):
        fs.mv("/data/t/nothing", "/data/t/y")


def test_several_names_and_folders_to_another_volume_are_moved(fs):
    fs.pipe({"/data/t/a/x": b"1", "/data/t/a/y": b"2"})
    fs.mv("/data/t/a/*", "/data/t/b/")
    assert fs.cat("/data/t/b/*") == {"/data/t/b/x": b"1", "/data/t/b/y": b"2"}
    fs.mv("/data/t/b", "/tmp/t/b")
    assert fs.find("/tmp/t") == ["/tmp/t/b/x", "/tmp/t/b/y"]
    assert not fs.exists("/data/t/b")


def test_a_copy_is_made_on_the_node(fs, monkeypatch):
    fs.pipe_file("/data/t/x", CONTENT)
    monkeypatch.setattr(fs, "_cat_file", None)
    fs.cp_file("/data/t/x", "/tmp/t/x")
    fs.cp("/data/t", "/data/t2", recursive=True)
    assert fs.ukey("/tmp/t/x") == fs.ukey("/data/t2/x") == blake3.blake3(CONTENT).hexdigest()
    with pytest.raises(IsADirectoryError):
        fs.cp_file("/data/t/x", "/data/t2")
    fs.rm("/data/t2", recursive=True)


@pytest.mark.parametrize(
    "name", ["a b", "100 %", "ä", "naïve", "a#b?c", "[x]", "a*b", "日本", "👩‍👩‍👧", "xx:y", "mk::x", "-", "~"]
)
def test_odd_names_are_names(fs, name):
    path = f"/data/t/{name}"
    fs.pipe_file(path, b"1")
    with fs.open(f"mk://{path}", "ab") as file:
        file.write(b"2")
    assert fs.ls("/data/t", detail=False) == fs.find("/data/t") == [path]
    assert fs.cat_file(path) == b"12"
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
    assert fs.glob(literal) == fs.glob("/data/t/*") == fs.glob("/data/**/" + literal.rpartition("/")[2]) == [path]


def test_a_name_is_the_same_in_either_form_of_its_letters(fs):
    fs.pipe_file("/data/t/a\u0308", b"1")
    assert fs.ls("/data/t", detail=False) == ["/data/t/\u00e4"]
    assert fs.find("/data/t/a\u0308") == ["/data/t/\u00e4"]


def test_when_and_what_a_file_was_is_told(fs):
    fs.pipe_file("/data/t/x", b"1")
    created, first = fs.created("/data/t/x"), fs.ukey("/data/t/x")
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)
    fs.pipe_file("/data/t/x", b"2")
    assert fs.created("/data/t/x") == created < fs.modified("/data/t/x")
    assert fs.ukey("/data/t/x") != first
    fs.pipe_file("/data/t/x", b"1")
    assert fs.checksum("/data/t/x") == int(first, 16)
    before = fs.modified("/data/t/x")
    fs.touch("/data/t/x", truncate=False)
    assert fs.modified("/data/t/x") > before
    assert fs.cat_file("/data/t/x") == b"1"
    fs.touch("/data/t/x")
    assert fs.size("/data/t/x") == 0
    assert fs.created("/proc/services").tzinfo is UTC


@pytest.mark.parametrize("url", ["mk:///data/t/x", "mk://data/t//x/", "/data/t/x", "data/t/x"])
def test_a_path_begins_at_the_root(url):
    assert TreeFileSystem._strip_protocol(url) == "/data/t/x"


def test_an_address_in_a_path_is_refused():
    with pytest.raises(ValueError, match="address=…"):
        fsspec.filesystem("mk", skip_instance_cache=True).exists("mk://127.0.0.1:7070/data/x")
