"""Sockets and addresses: which ports can be had, and what is said of those that cannot."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from microkernel.errors import Invalid, PreconditionFailed
from microkernel.testing import TestKernel
from microkernel.wire.listening import is_loopback, open_sockets
from services.gateway.listen import address_of
from services.gateway.service import Gateway


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


async def test_port_0_takes_a_free_one():
    sockets = await open_sockets("127.0.0.1", 0)
    try:
        address = address_of("127.0.0.1", sockets)
        assert address.port > 0
        assert address.url == f"http://127.0.0.1:{address.port}"
        assert is_loopback(sockets)
    finally:
        for each in sockets:
            each.close()


async def test_all_addresses_of_a_host_share_one_port():
    sockets = await open_sockets("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in sockets}) == 1
        assert address_of("localhost", sockets).url.startswith("http://127.0.0.1:")
    finally:
        for each in sockets:
            each.close()


async def test_an_address_of_all_is_shown_as_one_that_works():
    sockets = await open_sockets("0.0.0.0", 0)
    try:
        assert not is_loopback(sockets)
        assert address_of("0.0.0.0", sockets).url.startswith("http://127.0.0.1:")
    finally:
        for each in sockets:
            each.close()


async def test_a_taken_port_fails_the_boot_with_one_clear_line(taken):
    line = f"port {taken} on 127.0.0.1 is taken (choose another with --port, or stop what listens there)"
    with pytest.raises(PreconditionFailed) as failure:
        async with TestKernel(Gateway, settings={"gateway": {"port": taken}}):
            raise AssertionError("it booted")
    assert str(failure.value) == line


async def test_a_host_that_is_not_here_is_named():
    with pytest.raises(Invalid, match="192.0.2.1 is not an address of this machine"):
        await open_sockets("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["no host", "a" * 300, "nowhere.invalid"])
async def test_a_host_that_is_not_known_is_named(host):
    with pytest.raises(Invalid, match="is not known here"):
        await open_sockets(host, 0)


async def test_a_gateway_says_where_it_listens_and_publishes_it():
    async with TestKernel(Gateway, settings={"gateway": {"port": 0}}) as system:
        first = await system.call("gateway.address")
        async with system.subscribe("gateway.listening") as listening:
            await system.restart("gateway")
            event = await anext(listening)
        assert event.body == await system.call("gateway.address")
        assert event.body.url.startswith("http://127.0.0.1:")
        assert first.urls == (first.url,)


async def test_a_restarted_gateway_has_its_port_again():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with TestKernel(Gateway, settings={"gateway": {"port": port}}) as system:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await system.restart("gateway")
        assert (await system.call("gateway.address")).port == port
        writer.close()


async def test_listening_beyond_this_machine_warns_that_nothing_is_encrypted(caplog):
    async with TestKernel(Gateway, settings={"gateway": {"port": 0, "host": "0.0.0.0"}}) as system:
        assert "is not encrypted" in caplog.text
        url = (await system.call("gateway.address")).url
        import aiohttp

        # Which names lead here is not known then: the token alone decides.
        async with aiohttp.ClientSession(url) as client:
            response = await client.get("/livez", headers={"Host": "lab.example"})
            assert response.status == 200


async def test_a_loopback_gateway_does_not_warn(caplog):
    async with TestKernel(Gateway, settings={"gateway": {"port": 0}}):
        assert "encrypted" not in caplog.text


async def test_after_a_stop_nothing_listens():
    async with TestKernel(Gateway, settings={"gateway": {"port": 0}}) as system:
        port = (await system.call("gateway.address")).port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.skipif(sys.platform == "win32", reason="every port is everybody's there")
async def test_a_port_that_is_not_ours_to_take_is_named(monkeypatch):
    def refuse(self, address) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(PreconditionFailed, match=r"port 80 on 127.0.0.1 is not ours to take \(choose one above 1023"):
        await open_sockets("127.0.0.1", 80)
