"""The section of the driver: what may stand there, and how what may not is named."""

from __future__ import annotations

import pytest

from drivers.upstream.driver import UpstreamDriver
from drivers.upstream.settings import UpstreamSettings
from microkernel.config import section_of
from microkernel.errors import Invalid
from microkernel.testing import TestKernel
from services.devices.service import Devices

SECTION = ("services", "devices", "drivers", "upstream")


def found(*servers: dict):
    driver = UpstreamDriver()
    driver.settings = section_of({"servers": list(servers)}, UpstreamSettings, SECTION)
    return driver.find()


def test_each_server_is_a_device_of_its_name():
    servers = found(
        {"name": "vllm0", "url": "http://127.0.0.1:8000/v1", "weight": 2.0, "queue": 5, "concurrency": 3},
        {"name": "cloud", "url": "https://api.example.com/v1/", "key_env": "CLOUD_KEY", "models": ["a", "b"]},
    )
    assert [server.facts.name for server in servers] == ["vllm0", "cloud"]
    assert {server.facts.kind for server in servers} == {"upstream"}
    assert (servers[0].weight, servers[0].queue, servers[0].places) == (2.0, 5, 3)
    assert [model.name for model in servers[1].models] == ["a", "b"]
    assert servers[1].facts.model == "a server with OpenAI's API at https://api.example.com/v1"


def test_without_a_server_there_is_no_device():
    assert found() == []


@pytest.mark.parametrize(
    ("server", "key", "why"),
    [
        ({"name": "a b"}, "servers[0].name", "no name for a device"),
        ({"name": "a.b"}, "servers[0].name", "no name for a device"),
        ({"name": "a/b"}, "servers[0].name", "no name for a device"),
        ({"name": ""}, "servers[0].name", "no name for a device"),
        ({"name": "upstream"}, "servers[0].name", "no name for a device"),
        ({"url": "ftp://host/v1"}, "servers[0].url", "no http or https address"),
        ({"url": "host:8000"}, "servers[0].url", "no http or https address"),
        ({"url": "http://"}, "servers[0].url", "no http or https address"),
        ({"url": "http://user:sk-secret@host/v1"}, "servers[0].url", "key_env"),
        ({"url": "http://host/v1?key=1"}, "servers[0].url", "address below which"),
        ({"url": "http://host/v 1"}, "servers[0].url", "address below which"),
        ({"url": "http://host:99999/v1"}, "servers[0].url", "no URL"),
        ({"key_env": "A", "key_file": "b"}, "servers[0].key_file", "give one of them"),
        ({"concurrency": 0}, "servers", ">= 1"),
        ({"weight": 0.0}, "servers", "> 0"),
        ({"idle_seconds": -1.0}, "servers", "> 0"),
        ({"dialect": "klingon"}, "servers", "klingon"),
        ({"key": "sk-secret"}, "servers", "unknown field `key`"),
    ],
)
def test_what_is_wrong_is_named_by_its_key_and_no_secret_is_repeated(server, key, why):
    with pytest.raises(Invalid) as caught:
        found({"name": "s0", "url": "http://127.0.0.1:8000/v1", **server})
    assert f"services.devices.drivers.upstream.{key}" in caught.value.message
    assert why in caught.value.message
    assert "sk-secret" not in caught.value.message


def test_two_servers_have_two_names():
    server = {"name": "a", "url": "http://127.0.0.1:1/v1"}
    with pytest.raises(Invalid, match=r"servers\[1\].name: there are two servers 'a'"):
        found(server, server)


async def test_a_driver_that_is_set_wrongly_is_broken_and_the_cpu_is_there_all_the_same():
    settings = {"devices": {"drivers": {"upstream": {"servers": [{"name": "a", "url": "nowhere"}]}}}}
    async with TestKernel(Devices, settings=settings) as system, system.subscribe("devices.broken") as broken:
        assert [device.name for device in await system.call("devices.list")] == ["cpu0"]
        await system.restart("devices")
        event = await anext(broken)
        assert event.body["driver"] == "upstream"
        assert "servers[0].url" in event.body["why"]
