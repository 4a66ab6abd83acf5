"""Errors of the tree as POSIX and Python have them."""

from __future__ import annotations

import errno

import pytest
from tree_user import TreeUser

from microkernel.errors import (
    AlreadyExists,
    DataLoss,
    Denied,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    Unavailable,
    from_report,
)
from microkernel.testing import TestKernel
from services.filesystem.posix import os_error, os_errors, posix
from services.filesystem.service import Filesystem


async def refusal(change) -> OSError:
    """What a call is refused with, after it has crossed a link."""
    with pytest.raises(MicrokernelError) as refused:
        await change
    return os_error(from_report(refused.value.report()), "/data/x")


@pytest.mark.parametrize("top", ["/data", "/tmp"])
async def test_what_is_in_the_way_is_told_by_the_name_that_posix_has_for_it(root, top):
    await root.write(f"{top}/folder/file", b"1")
    for change, number in (
        (root.write(f"{top}/folder", b""), errno.EISDIR),
        (root.read(f"{top}/folder"), errno.EISDIR),
        (root.ask("copy", f"{top}/folder", to=f"{top}/x"), errno.EISDIR),
        (root.write(top, b""), errno.EISDIR),
        (root.write(f"{top}/folder/file/x", b""), errno.ENOTDIR),
        (root.names(f"{top}/folder/file"), errno.ENOTDIR),
        (root.ask("remove", f"{top}/folder"), errno.ENOTEMPTY),
        (root.ask("remove", "/tmp", recursive=True), errno.EBUSY),
        (root.ask("rename", f"{top}/folder", to=f"{top}/folder/x"), errno.EINVAL),
        (root.write(f"{top}/folder/file", b"", if_version=99), errno.ESTALE),
        (root.write("/proc/x", b""), errno.EROFS),
        (root.read("/proc"), errno.EISDIR),
        (root.names("/proc/status"), errno.ENOTDIR),
    ):
        assert (await refusal(change)).errno == number
    elsewhere = "/tmp/y" if top == "/data" else "/data/y"
    assert (await refusal(root.ask("rename", f"{top}/folder", to=elsewhere))).errno == errno.EXDEV


async def test_a_quota_and_a_full_volume_have_names_of_their_own():
    settings = {"filesystem": {"default_quota": 20_000, "tmp_bytes": 20_000}}
    async with TestKernel(Filesystem, settings=settings) as system:
        ann = TreeUser(system, "ann")
        for pieces in (b"x" * 100_000,), (b"x" * 60_000,):
            assert (await refusal(ann.write_pieces("/data/a", pieces))).errno == errno.EDQUOT
        assert (await refusal(ann.write("/data/a", b"x" * 30_000))).errno == errno.EDQUOT
        assert (await refusal(ann.write("/tmp/a", b"x" * 30_000))).errno == errno.ENOSPC


async def test_the_top_of_a_volume_is_a_folder_that_is_there(root):
    for top in ("/", "/tmp"):
        assert (await root.ask("make_folder", top, exist_ok=True)).kind == "folder"
        with pytest.raises(AlreadyExists):
            await root.ask("make_folder", top)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFound("x"), FileNotFoundError),
        (AlreadyExists("x"), FileExistsError),
        (Denied("x"), PermissionError),
        (Invalid("x", causes=posix(errno.EISDIR)), IsADirectoryError),
        (Invalid("x", causes=posix(errno.ENOTDIR)), NotADirectoryError),
        (Unavailable("x", may_have_run=False), ConnectionRefusedError),
        (Unavailable("x"), ConnectionResetError),
        (DataLoss("x"), OSError),
        (Invalid("x", causes=("ESOMETHING: else", "OSError: [Errno 28] no such name")), OSError),
    ],
)
def test_python_raises_what_its_users_expect(error, kind):
    with pytest.raises(kind) as raised, os_errors("/data/x"):
        raise error
    assert raised.value.__cause__ is error
    assert raised.value.filename == "/data/x"


def test_what_the_node_says_is_kept_with_its_remedy():
    error = os_error(Overloaded("it is full", remedy="remove files", causes=posix(errno.EDQUOT)))
    assert (error.errno, error.strerror, error.filename) == (errno.EDQUOT, "it is full (remove files)", None)
