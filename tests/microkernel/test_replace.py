"""Another version of a service takes over while calls run."""

from __future__ import annotations

import asyncio
import textwrap

import pytest

from microkernel.errors import Invalid, MicrokernelError, NotFound, PreconditionFailed
from microkernel.service import Service, handles
from microkernel.testing import TestKernel


class Greeter(Service):
    name = "greeter"

    async def start(self) -> None:
        self.release = asyncio.Event()

    @handles
    async def greet(self) -> str:
        return "version 1"

    @handles
    async def hold(self) -> str:
        await self.release.wait()
        return "version 1"

    async def stop(self) -> None:
        self.release.set()


@pytest.fixture
def version(tmp_path):
    def write(start="pass", settings="", answer="version 2"):
        path = tmp_path / "greeter.py"
        path.write_text(
            textwrap.dedent(f"""
            from microkernel import Message, Service, handles

            class Greeter(Service):
                name = "greeter"
                {settings or "pass"}

                async def start(self) -> None:
                    {start}

                @handles
                async def greet(self) -> str:
                    return "{answer}"
            """)
        )
        return str(path)

    return write


async def test_a_new_version_takes_over_and_calls_that_come_meanwhile_wait_for_it(version):
    async with TestKernel(Greeter) as system:
        greet = system.kernel.port.method("greeter.greet")
        assert await greet() == "version 1"
        held = asyncio.create_task(system.call("greeter.hold"))
        await asyncio.sleep(0)
        replacing = asyncio.create_task(system.call("kernel.replace", path=version()))
        while system.state("greeter") != "draining":
            await asyncio.sleep(0)
        waiting = asyncio.create_task(system.call("greeter.greet"))
        await asyncio.sleep(0)
        assert not waiting.done()
        held.cancel()
        status = (await replacing)[0]
        assert (status.name, status.incarnation) == ("greeter", 2)
        assert await waiting == "version 2"
        assert await greet() == "version 2"


async def test_a_version_that_does_not_start_gives_way_to_the_old_one(version):
    async with TestKernel(Greeter) as system:
        with pytest.raises(MicrokernelError, match="not today"):
            await system.call("kernel.replace", path=version(start="raise RuntimeError('not today')"))
        assert await system.call("greeter.greet") == "version 1"


async def test_a_version_that_cannot_be_used_is_refused_and_the_old_one_never_stops(version):
    async with TestKernel(Greeter) as system:
        with pytest.raises(Invalid, match="balance is"):
            await system.call("kernel.replace", path=version(settings="balance = 'by feeling'"))
        with pytest.raises(Invalid, match="instances is a number"):
            await system.call("kernel.replace", path=version(settings="instances = 0"))
        assert (await system.call("kernel.services"))[1].incarnation == 1


async def test_only_what_is_there_can_be_replaced_and_never_the_kernels_own_service(version, tmp_path):
    async with TestKernel() as system:
        with pytest.raises(NotFound, match="greeter"):
            await system.call("kernel.replace", path=version())
        path = tmp_path / "kernel.py"
        path.write_text("from microkernel import Service\nclass Mine(Service):\n    name = 'kernel'\n")
        with pytest.raises(PreconditionFailed):
            await system.call("kernel.replace", path=str(path))
