"""Errors of the tree through fsspec: those of Python."""

from __future__ import annotations

import errno
import os

import fsspec
import fsspec.asyn
import pytest

from microkernel.errors import DataLoss, NotFound, Unavailable

CONTENT = os.urandom(3_000_000)


def test_errors_are_those_that_python_has_and_say_what_the_node_says(fs, ann):
    fs.pipe({"/data/t/file": b"1", "/data/t/folder/x": b"1"})
    for change, kind, number in (
        (lambda: fs.cat_file("/data/t/no"), FileNotFoundError, errno.ENOENT),
        (lambda: fs.open("/data/t/no"), FileNotFoundError, errno.ENOENT),
        (lambda: fs.ls("/data/t/no"), FileNotFoundError, errno.ENOENT),
        (lambda: fs.cat_file("/data/t/folder"), IsADirectoryError, errno.EISDIR),
        (lambda: fs.open("/data/t/folder"), IsADirectoryError, errno.EISDIR),
        (lambda: fs.pipe_file("/data/t/folder", b""), IsADirectoryError, errno.EISDIR),
        (lambda: fs.pipe_file("/data/t/folder", CONTENT), IsADirectoryError, errno.EISDIR),
        (lambda: fs.pipe_file("/data/t/file/x", b""), NotADirectoryError, errno.ENOTDIR),
        (lambda: fs.rm("/data/t/folder"), OSError, errno.ENOTEMPTY),
        (lambda: fs.pipe_file("/proc/x", b""), OSError, errno.EROFS),
        (lambda: fs.rm("/tmp", recursive=True), OSError, errno.EBUSY),
        (lambda: fs.pipe_file("/data/t/..", b""), OSError, errno.EINVAL),
        (lambda: ann.pipe_file("/data/t/file", b""), PermissionError, errno.EACCES),
        (lambda: ann.rm("/data/t/file"), PermissionError, errno.EACCES),
        (lambda: ann.pipe_file("/home/ann/x", CONTENT), OSError, errno.EDQUOT),
    ):
        with pytest.raises(kind) as refused:
            change()
        assert refused.value.errno == number
    with pytest.raises(FileNotFoundError, match=r"there is no /data/t/no \(see what is in /data/t: mk fs ls\)") as lost:
        fs.info("/data/t/no")
    assert isinstance(lost.value.__cause__, NotFound)
    assert lost.value.filename == "/data/t/no"


def test_where_nothing_can_be_is_nothing(fs):
    for path in ("/data/t/no", "/data/..", "/data/a\0b"):
        assert not fs.exists(path)
        assert not fs.isdir(path)
        assert not fs.isfile(path)


def test_where_no_node_is_nobody_knows_what_is_there(unused_tcp_port):
    fs = fsspec.filesystem("mk", address=f"http://127.0.0.1:{unused_tcp_port}", token="t", skip_instance_cache=True)
    with pytest.raises(ConnectionRefusedError, match="no node is running") as refused:
        fs.exists("/data/x")
    assert isinstance(refused.value.__cause__, Unavailable)


def test_a_damaged_file_is_an_error_and_not_a_short_file(fs, node):
    fs.pipe_file("/data/t/x", CONTENT)
    [file] = [path for path in (node.root / "filesystem" / "contents").rglob("*") if path.is_file()
              and path.read_bytes() == CONTENT]  # fmt: skip
    file.chmod(0o600)
    file.write_bytes(CONTENT[:2_000_000] + b"!" + CONTENT[2_000_001:])
    for read in (lambda: fs.cat_file("/data/t/x"), lambda: fs.open("/data/t/x").read()):
        with pytest.raises(OSError, match="are damaged") as refused:
            read()
        assert isinstance(refused.value.__cause__, DataLoss)
    file.write_bytes(CONTENT)
