"""Mounts come from settings and live; where they may be, what they tell, and what they never tell."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from tree_user import TreeUser

from microkernel.errors import AlreadyExists, Denied, Invalid, MicrokernelError, NotFound, PreconditionFailed
from microkernel.testing import TestKernel
from services.filesystem.remote.address import parse_address
from services.filesystem.remote.faults import error_of
from services.filesystem.remote.secrets import Secrets
from services.filesystem.service import Filesystem

PASSWORD = "hunter2-of-the-test"


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def mounts(system) -> dict:
    return {each.path: each for each in await system.call("filesystem.mounts")}


async def test_what_the_settings_say_is_mounted_at_boot(server):
    server.files["/a"] = b"1"
    said = {
        "/mnt/w": {"url": server.url, "cache_bytes": 5000},
        "/mnt/gone": {"url": "http://127.0.0.1:1/x"},
        "/mnt/none": {"url": "file:///is/not/there"},
        "/mnt/missing": {"url": "s3://bucket/x", "options": {"anon": True}},
    }
    async with TestKernel(Filesystem, settings={"filesystem": {"mounts": said}}) as system:
        root = TreeUser(system)
        assert await root.read("/mnt/w/a") == b"1"
        told = await mounts(system)
        assert list(told) == sorted(said)
        assert (told["/mnt/w"].kind, told["/mnt/w"].url, told["/mnt/w"].cache_bytes) == ("http", server.url, 5000)
        assert all(each.configured and each.problem is None and not each.writable for each in told.values())
        for path in ("/mnt/gone/a", "/mnt/none/a", "/mnt/missing/a"):
            with pytest.raises(MicrokernelError) as refused:
                await root.read(path)
            assert refused.value.remedy


async def test_a_back_end_that_is_not_installed_is_named(root):
    for kind, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("sftp", "paramiko")):
        await root.ask("mount", f"/mnt/{kind}", url=f"{kind}://bucket/x")
        with pytest.raises(PreconditionFailed, match=f"the back end of {kind}:// is not installed") as refused:
            await root.read(f"/mnt/{kind}/a")
        assert package in refused.value.remedy


@pytest.mark.parametrize(
    "said",
    [
        {"/mnt/w": {"url": "https://ann:pw@host/x"}},
        {"mnt": {"url": "memory://x"}},
        {"/mnt/w": {"url": "memory://x", "options": {"password": "pw"}}},
        {"/mnt/w": {"url": "memory://x", "cache_bytes": -1}},
    ],
)
async def test_settings_that_mean_nothing_end_the_boot(said):
    with pytest.raises(MicrokernelError):
        async with TestKernel(Filesystem, settings={"filesystem": {"mounts": said}}):
            pass


async def test_a_configured_mount_that_would_hide_files_is_shown_with_the_reason(tmp_path):
    async with TestKernel(Filesystem, root=tmp_path) as system:
        await TreeUser(system).write("/mnt/x/a", b"here")
    said = {"mounts": {"/mnt/x": {"url": "memory://x"}}}
    async with TestKernel(Filesystem, root=tmp_path, settings={"filesystem": said}) as system:
        assert await TreeUser(system).read("/mnt/x/a") == b"here"
        assert "is not empty" in (await mounts(system))["/mnt/x"].problem


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "stays what it is"),
        ("/data", "stays what it is"),
        ("/Home", "stays what it is"),
        ("/proc", "is another volume"),
        ("/proc/x", "is another volume"),
        ("/dev/x", "is another volume"),
        ("/tmp/x", "is another volume"),
        ("/models/x", "is another volume"),
        ("/TMP", "taken for the same name"),
        ("/data/full", "is not empty"),
        ("/data/full/file", "is a file"),
        ("/data/FULL/x", "taken for the same name"),
        ("/mnt/x/below", "is another volume"),
        ("/mnt", "is mounted below it"),
        ("/mnt/X", "taken for the same name"),
    ],
)
async def test_nothing_is_mounted_where_it_would_hide_something(root, path, why):
    await root.write("/data/full/file", b"1")
    await root.ask("mount", "/mnt/x", url="memory://x")
    with pytest.raises(PreconditionFailed, match=why) as refused:
        await root.ask("mount", path, url="memory://x")
    assert refused.value.remedy
    assert await root.read("/data/full/file") == b"1"


async def test_a_path_is_mounted_once_and_below_folders_of_users_too(root, memory):
    memory.pipe({"/x/a": b"1"})
    await root.ask("make_folder", "/home/ann/hub")
    await root.ask("mount", "/home/ann/hub", url="memory://x")
    with pytest.raises(AlreadyExists, match="is a mount already"):
        await root.ask("mount", "/home/ann/hub", url="memory://x")
    assert await root.read("/home/ann/hub/a") == b"1"
    for change in (
        root.ask("remove", "/home/ann/hub", recursive=True),
        root.ask("remove", "/home/ann", recursive=True),
        root.ask("rename", "/home/ann", to="/home/bob"),
    ):
        with pytest.raises(PreconditionFailed, match="mounted"):
            await change
    await root.ask("unmount", "/home/ann/hub")
    assert await root.names("/home/ann/hub") == []
    with pytest.raises(NotFound, match="is no mount"):
        await root.ask("unmount", "/home/ann/hub")


async def test_only_root_mounts(root, ann):
    with pytest.raises(Denied):
        await ann.ask("mount", "/home/ann/x", url="memory://x")
    await root.ask("mount", "/mnt/x", url="memory://x")
    with pytest.raises(Denied):
        await ann.ask("unmount", "/mnt/x")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/data",
        "nothing://x",
        "zip://x",
        "simplecache::https://host/x",
        "reference://x",
        "dir::memory://x",
        "file://relative",
        f"https://ann:{PASSWORD}@host/x",
        f"https://{PASSWORD}@host/x",
        f"sftp://ann:{PASSWORD}@host/x",
        f"zip://x::https://ann:{PASSWORD}@host/x",
        f"https://host/x?token={PASSWORD}",
        f"https://host/x#{PASSWORD}",
        f"s3://bucket/\x00{PASSWORD}",
    ],
)
async def test_a_url_that_is_no_place_is_refused_and_not_repeated(root, url):
    with pytest.raises(Invalid) as refused:
        await root.ask("mount", "/mnt/x", url=url)
    assert refused.value.field == "url"
    assert PASSWORD not in str(refused.value.report())


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/org/name@main",
        "github://org:repo@main/folder",
        "sftp://ann@host/x",
        "s3://bucket/prefix",
        "zip://::https://host/a.zip",
        "zip://folder::memory://a.zip",
    ],
)
def test_places_of_many_kinds_are_taken(url):
    assert parse_address(url).kind == url.partition("://")[0]


@pytest.mark.parametrize(
    "options",
    [
        {"password": PASSWORD},
        {"secret": PASSWORD},
        {"secret_access_key": PASSWORD},
        {"apiKey": PASSWORD},
        {"token": PASSWORD},
        {"headers": {"Authorization": PASSWORD}},
        {"endpoint_url": f"https://ann:{PASSWORD}@host"},
        {"client_kwargs": {"headers": {"X-Auth-Token": PASSWORD}}},
    ],
)
async def test_a_credential_among_the_options_is_refused_with_where_it_belongs(root, options):
    with pytest.raises(Invalid, match="would be kept where others read it|a password in the URL") as refused:
        await root.ask("mount", "/mnt/x", url="memory://x", options=options)
    assert "options_env" in refused.value.remedy
    assert PASSWORD not in str(refused.value.report())


async def test_credentials_from_the_environment_reach_the_store_and_nothing_else(
    tmp_path, server, monkeypatch, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_SECRET", PASSWORD)
    server.files["/a"] = b"1"
    server.keep_alive = False
    variables = {"headers.Authorization": "MY_SECRET"}
    outputs = []
    async with TestKernel(Filesystem, root=tmp_path) as system:
        root = TreeUser(system)
        outputs.append(await root.ask("mount", "/mnt/w", url=server.url, options_env=variables))
        assert await root.read("/mnt/w/a") == b"1"
        assert server.headers[-1]["Authorization"] == PASSWORD
        outputs += [await root.ask("stat", "/mnt/w"), await mounts(system)]
        for status in (401, 403, 404, 429, 500, 502):
            server.status = status
            with pytest.raises(MicrokernelError) as refused:
                await root.read(f"/mnt/w/{status}")
            outputs += [refused.value.report(), repr(refused.value.__cause__)]
        outputs += [vars(each) for each in system.kernel.__dict__.values() if hasattr(each, "__dict__")]
    server.status = 0
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    async with TestKernel(Filesystem, root=tmp_path) as system:
        assert await TreeUser(system).read("/mnt/w/a") == b"1"
    told = capfd.readouterr()
    assert PASSWORD not in "".join([str(outputs), caplog.text, told.out, told.err])
    kept = json.loads((tmp_path / "filesystem" / "remote" / "mounts.json").read_text())
    assert kept["/mnt/w"]["options_env"] == variables


async def test_a_variable_that_is_not_there_is_named(root, monkeypatch):
    monkeypatch.delenv("MY_SECRET", raising=False)
    await root.ask("mount", "/mnt/w", url="memory://x", options_env={"secret": "MY_SECRET"})
    with pytest.raises(PreconditionFailed, match="the variable MY_SECRET") as refused:
        await root.read("/mnt/w/a")
    assert "booted" in refused.value.remedy


def test_texts_of_libraries_are_told_without_credentials(monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", "from-the-environment")
    secrets = Secrets([PASSWORD])
    error = RuntimeError(
        f"{PASSWORD} GET https://ann:pw123@host/x?X-Amz-Signature=abcdef&y=1 Authorization: Bearer abcdefgh123 "
        "from-the-environment\nnext\x1b[31m"
    )
    address = parse_address("https://host/x")
    told = str(error_of(error, "/mnt/w/a", address, secrets).report()) + repr(secrets)
    for secret in (PASSWORD, "pw123", "abcdef", "from-the-environment", "\x1b", "\n"):
        assert secret not in told
    assert "/mnt/w/a" in told
    assert "host/x" in told


async def test_the_loop_is_free_while_a_store_does_not_answer(root, server, folder):
    server.files["/a"] = b"1"
    server.hold = asyncio.Event()
    (folder / "a").write_bytes(b"1")
    await root.ask("mount", "/mnt/w", url=server.url)
    await root.ask("mount", "/mnt/f", url=folder.as_uri())
    waiting = [asyncio.create_task(root.read("/mnt/w/a")) for _ in range(50)]
    await server.begun.wait()
    assert await root.read("/mnt/f/a") == b"1"
    await root.write("/data/a", b"2")
    server.hold.set()
    assert [await each for each in waiting] == [b"1"] * 50


async def test_mounts_that_come_and_go_leave_no_open_file(root, server, folder):
    (folder / "a").write_bytes(b"1")
    for _ in range(3):
        await root.ask("mount", "/mnt/f", url=folder.as_uri())
        await root.read("/mnt/f/a")
        await root.ask("unmount", "/mnt/f")
    before = open_files()
    for _ in range(20):
        await root.ask("mount", "/mnt/f", url=folder.as_uri())
        await root.read("/mnt/f/a")
        await root.ask("unmount", "/mnt/f")
    assert open_files() <= before + 2
