"""The whole way in a simulation: HTTP and a websocket through the real gateway."""

from __future__ import annotations

import aiohttp
from simulation.cast import Blob, Steady
from simulation.ledger import Done, Work

from microkernel.testing.simulation import Simulation, explore
from microkernel.wire.client import connect
from services.gateway.service import Gateway


async def visits(simulation: Simulation) -> None:
    async with simulation.boot(Gateway, Steady, settings={"gateway": {"port": 0}}) as system:
        address = await system.call("gateway.address")
        url = address.urls[0]
        async with aiohttp.ClientSession() as http, http.get(f"{url}/livez") as response:
            assert response.status == 200
        async with connect(url, system.token) as client:
            assert (await client.call("steady.echo", Work(7), result_type=Done)).id == 7
            raw = simulation.chance.randbytes(50_000)
            assert (await client.call("steady.weigh", Blob(raw), result_type=Blob)).raw == raw


def test_the_gateway_answers_over_a_simulated_network_without_knowing():
    assert explore(visits, range(10)) == 10
