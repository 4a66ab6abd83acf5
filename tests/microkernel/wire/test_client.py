"""How a client finds its node, what results look like, and the client for scripts."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from wire_node import ALL, node

import microkernel as mk
from microkernel.errors import Invalid, NotFound, Unauthenticated, Unavailable
from microkernel.root import Root
from microkernel.wire.client import find_node
from microkernel.wire.record import Record


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MICROKERNEL_URL", "MICROKERNEL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MICROKERNEL_ROOT", str(tmp_path))


Running = Callable[..., None]


@pytest.fixture
def running() -> Iterator[Running]:
    """What a node leaves in its state folder while it runs."""
    roots: list[Root] = []

    def start(folder: Path, url: str = "http://127.0.0.1:7070", token: str = "stored") -> None:
        roots.append(Root(folder))
        roots[-1].acquire()
        roots[-1].write_node(url)
        (folder / "token").write_text(token + "\n")

    yield start
    for root in roots:
        root.release()


def test_a_node_is_found_by_its_state_folder(tmp_path: Path, running: Running) -> None:
    running(tmp_path)
    assert find_node() == ("ws://127.0.0.1:7070/mk", "stored")


def test_arguments_win_over_the_environment_and_that_over_the_folder(
    tmp_path: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(tmp_path)
    monkeypatch.setenv("MICROKERNEL_URL", "https://there:1")
    monkeypatch.setenv("MICROKERNEL_TOKEN", "from-env")
    assert find_node() == ("wss://there:1/mk", "from-env")
    assert find_node("ws://here:2/x/mk", "given") == ("ws://here:2/x/mk", "given")


@pytest.mark.parametrize("address", ["localhost:7070", "http://localhost:7070/", "ws://localhost:7070/mk"])
def test_an_address_may_be_written_in_many_ways(address: str) -> None:
    assert find_node(address, "t") == ("ws://localhost:7070/mk", "t")


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://x:port", "http://user:pw@x", "http://[::1"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(Invalid, match="is no address of a node"):
        find_node(address, "t")


def test_the_stored_token_never_leaves_this_machine(tmp_path: Path, running: Running) -> None:
    running(tmp_path)
    with pytest.raises(Unauthenticated, match="a token is needed for ws://elsewhere"):
        find_node("http://elsewhere:7070")


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:7070", "ws://localhost:7070/mk"])
def test_the_stored_token_is_not_sent_once_the_node_is_gone(tmp_path: Path, address: str | None) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"url": "http://127.0.0.1:7070", "pid": 1}))  # it was killed
    (tmp_path / "token").write_text("stored\n")
    with pytest.raises(Unavailable, match=f"no node is running at {tmp_path}"):
        find_node(address)
    assert find_node("http://127.0.0.1:7070", "given")[1] == "given"


def test_a_token_of_the_environment_is_sent_without_the_blanks_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROKERNEL_TOKEN", " from-env\n")
    assert find_node("http://there:1")[1] == "from-env"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_refused_and_the_token_stays_here(tmp_path: Path, running: Running, status: int) -> None:
    visits: list[str] = []

    async def elsewhere(request: web.Request) -> web.WebSocketResponse:
        visits.append(request.path)
        socket = web.WebSocketResponse(protocols=("mk.v1",))
        await socket.prepare(request)
        visits.append((await socket.receive()).data)
        return socket

    async def mk_path(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": str(thief.make_url("/elsewhere"))})

    there, here = web.Application(), web.Application()
    there.router.add_get("/elsewhere", elsewhere)
    here.router.add_get("/mk", mk_path)
    async with TestServer(there, host="127.0.0.2") as thief, TestServer(here, host="127.0.0.1") as server:
        running(tmp_path, str(server.make_url("/")), "the-stored-token")
        with pytest.raises(Unavailable, match=r"is no node \(HTTP status 30\d\)"):
            async with mk.connect():
                pass
    assert visits == []


def test_a_folder_where_nothing_runs_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        find_node()
    assert str(caught.value) == f"no node is running at {tmp_path} (start one with: python -m microkernel boot)"
    with pytest.raises(Unauthenticated, match="no token is stored"):
        find_node("http://127.0.0.1:7070")


async def test_an_address_where_nobody_listens_says_how_to_start_one(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match=r"no node is running at .* \(start one with: python -m microkernel boot\)"):
        async with mk.connect(f"http://127.0.0.1:{unused_tcp_port}", "t"):
            pass


async def test_what_answers_but_is_no_node_is_named() -> None:
    async with node() as here:
        with pytest.raises(Unavailable, match=r"is no node \(HTTP status 404\)"):
            async with mk.connect(here.url + "elsewhere", ALL):
                pass


async def test_connect_without_arguments_finds_the_node_that_runs(tmp_path: Path, running: Running) -> None:
    async with node() as here:
        running(tmp_path, here.url, ALL)
        async with mk.connect() as system:
            assert (await system.call("maths.add", a=1, b=2)).total == 3


async def test_scripts_without_a_loop_call_stream_and_listen() -> None:
    def script(url: str) -> list[object]:
        with mk.connect_sync(url, ALL) as system:
            seen: list[object] = [system.call("maths.add", a=1, b=2).total]
            seen += [item.number for item in system.stream("maths.count", to=3)]
            with system.stream("maths.count", to=10_000, credit=2) as items:
                seen.append(next(items).number)
            with system.subscribe("maths.noted") as events:
                system.send("maths.note", a=7, b=0)
                seen.append(next(events).body.a)
            system.publish("script.said", n=1)
            with pytest.raises(NotFound):
                system.call("maths.fail")
            with pytest.raises(NotFound):
                list(system.stream("maths.break_off"))
        system.close()
        return seen

    async with node() as here:
        assert await asyncio.to_thread(script, here.url) == [3, 0, 1, 2, 0, 7]
        await here.maths.until(lambda: here.maths.closed == 2)


async def test_a_script_that_cannot_connect_leaves_no_thread(unused_tcp_port: int) -> None:
    def script() -> None:
        with pytest.raises(Unavailable):
            mk.connect_sync(f"http://127.0.0.1:{unused_tcp_port}", "t")

    async with node():  # it asserts that no thread is left
        await asyncio.to_thread(script)


def test_a_record_is_read_by_attribute_and_by_name() -> None:
    record = Record({"text": "hi", "usage": {"tokens": 3}, "choices": [{"n": 1}, 2], "items": 4, "keys": 5})
    assert (record.text, record["text"], record.usage.tokens, record.choices[0].n, record.items) == (
        "hi",
        "hi",
        3,
        1,
        4,
    )
    assert record["keys"] == 5
    assert dict(record) == record
    assert "usage" in record
    assert "x" not in record
    assert list(record) == ["text", "usage", "choices", "items", "keys"]
    assert copy.deepcopy(record) == record
    assert pickle.loads(pickle.dumps(record)) == record
    assert repr(Record({"a": 1})) == "Record(a=1)"
    assert "text" in dir(record)


def test_a_record_is_read_only_and_names_what_it_has() -> None:
    record = Record({"text": "hi"})
    with pytest.raises(AttributeError, match="read-only"):
        record.text = "ho"
    with pytest.raises(AttributeError, match="no field 'txt' among text"):
        _ = record.txt
    with pytest.raises(KeyError):
        record["txt"]


def test_the_client_brings_nothing_heavy_along() -> None:
    code = "import sys, microkernel; microkernel.connect; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "aiohttp" in loaded
    for heavy in ("torch", "numpy", "services", "drivers", "rich"):
        assert heavy not in loaded


async def test_calls_go_to_the_node_of_the_cluster_that_is_meant() -> None:
    async with node() as served, mk.connect(served.url, ALL) as system:
        system.at = "node0"
        assert (await system.call("maths.add", a=1, b=2)).total == 3
        assert [item.number async for item in system.stream("maths.count", to=2)] == [0, 1]
        system.at = "n9"
        with pytest.raises(NotFound, match="no node is named 'n9'"):
            await system.call("maths.add", a=1, b=2)
        assert (await system.call("maths.add@node0", a=1, b=2)).total == 3
