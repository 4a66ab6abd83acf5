"""Boot, crash, restart, shutdown: services fail alone, and every call ends with a cause."""

from __future__ import annotations

import asyncio
import textwrap

import pytest

from microkernel import Service, every, handles, streams
from microkernel.config import Config
from microkernel.errors import DeadlineExceeded, Internal, Invalid, PreconditionFailed, Unavailable
from microkernel.plugins import Plugin, load_file
from microkernel.testing import TestKernel


class Echo(Service):
    name = "echo"
    drain_timeout = 0.05

    @handles
    async def say(self, message: dict) -> dict:
        return message

    @handles
    async def wait(self) -> None:
        await asyncio.sleep(3600)

    @streams
    async def tick(self):
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0.001)

    @handles
    async def crash(self) -> None:
        self.spawn(self._crash(), name="crash")

    async def _crash(self) -> None:
        raise OSError("the disk is on fire")


async def plugin_of(tmp_path, text, name="plugin"):
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(text))
    return await load_file(path)


async def test_a_call_in_flight_of_a_crashed_service_ends_with_the_reason_and_the_next_one_works():
    async with TestKernel(Echo) as system:
        waiting = asyncio.create_task(system.call("echo.wait"))
        await asyncio.sleep(0)
        await system.call("echo.crash")
        with pytest.raises(Unavailable, match="disk is on fire") as caught:
            await waiting
        assert caught.value.may_have_run is True
        assert await system.call("echo.say", x=1) == {"x": 1}, "a call waits while its service restarts"
        [status] = [status for status in await system.call("kernel.services") if status.name == "echo"]
        assert status.incarnation == 2


async def test_a_restart_ends_running_streams_with_a_named_error_and_serves_again():
    async with TestKernel(Echo) as system:
        ended = []

        async def read():
            try:
                async for _ in system.stream("echo.tick"):
                    pass
            except Unavailable as error:
                ended.append(str(error))

        readers = [asyncio.create_task(read()) for _ in range(2)]
        await asyncio.sleep(0.02)
        await system.call("kernel.restart", name="echo")
        await asyncio.gather(*readers)
        assert ended == ["service 'echo' is being restarted"] * 2
        assert await system.call("echo.say", y=2) == {"y": 2}


async def test_a_service_that_asks_for_its_own_restart_is_restarted():
    class Phoenix(Service):
        name = "phoenix"
        uses = ("*",)
        drain_timeout = 0.05

        @handles
        async def burn(self) -> None:
            await self.call("kernel.restart", name="phoenix")

        @handles
        async def alive(self) -> bool:
            return True

    async with TestKernel(Phoenix) as system:
        with pytest.raises(Unavailable, match="restarted"):
            await system.call("phoenix.burn")
        assert await system.call("phoenix.alive")


async def test_what_needs_a_service_is_restarted_with_it_and_what_uses_it_is_not():
    class Needs(Service):
        name = "needs"
        needs = ("echo",)

    class Uses(Service):
        name = "uses"
        uses = ("echo",)

    async with TestKernel(Echo, Needs, Uses) as system:
        await system.restart("echo")
        incarnations = {status.name: status.incarnation for status in await system.call("kernel.services")}
        assert incarnations == {"kernel": 1, "echo": 2, "needs": 2, "uses": 1}


async def test_a_service_that_keeps_crashing_is_quarantined_with_those_that_need_it():
    class Doomed(Service):
        name = "doomed"

        @every(0.001)
        async def fall(self) -> None:
            raise ValueError("again")

        @handles
        async def say(self) -> None: ...

    class Needs(Service):
        name = "needs"
        needs = ("doomed",)

    async with TestKernel(Doomed, Needs, Echo, wait_ready=False) as system:
        await asyncio.wait_for(system.until("needs", "quarantined"), 30)
        await asyncio.wait_for(system.until("doomed", "quarantined"), 30)
        with pytest.raises(Unavailable, match="quarantined.*again"):
            await system.call("doomed.say")
        assert await system.call("echo.say", x=1) == {"x": 1}


async def test_a_temporary_service_that_crashes_stays_stopped():
    class Once(Echo):
        name = "once"
        restart_policy = "temporary"

    async with TestKernel(Once) as system:
        await system.call("once.crash")
        await asyncio.wait_for(system.until("once", "stopped"), 10)
        with pytest.raises(Unavailable, match="once' is stopped.*disk is on fire"):
            await system.call("once.say", x=1)


async def test_a_handler_that_raises_ends_its_call_and_not_its_service():
    class Raising(Service):
        name = "raising"

        @handles
        async def bad(self) -> None:
            raise ZeroDivisionError("division by zero")

        @handles
        async def good(self) -> int:
            return 1

    async with TestKernel(Raising) as system:
        with pytest.raises(Internal, match="raising raised ZeroDivisionError"):
            await system.call("raising.bad")
        assert await system.call("raising.good") == 1
        assert system.state("raising") == "ready"


async def test_broken_plugins_are_named_and_stop_nothing(tmp_path):
    plugins = [
        *await plugin_of(tmp_path, "import nothing_of_that_name", "missing_import"),
        *await plugin_of(tmp_path, "def broken(:", "no_syntax"),
        *await plugin_of(tmp_path, "x = 1", "no_service"),
        *await plugin_of(tmp_path, "import sys\nsys.exit(3)", "exits"),
    ]
    async with TestKernel(Echo, *plugins) as system:
        assert await system.call("echo.say", x=1) == {"x": 1}
        why = {status.name: status.why for status in await system.call("kernel.services") if status.state == "broken"}
        assert "nothing_of_that_name" in why["missing_import"]
        assert "SyntaxError" in why["no_syntax"]
        assert "line 1" in why["no_syntax"]
        assert "defines no service" in why["no_service"]
        assert "SystemExit" in why["exits"]
        with pytest.raises(Unavailable, match="broken.*nothing_of_that_name"):
            await system.call("missing_import.anything")


async def test_a_plugin_that_hangs_in_start_is_named_while_the_others_serve():
    class Hangs(Service):
        name = "hangs"
        start_timeout = 0.05

        async def start(self) -> None:
            await asyncio.sleep(3600)

    async with TestKernel(Hangs, Echo, wait_ready=False) as system:
        assert await system.call("echo.say", x=1) == {"x": 1}
        await asyncio.wait_for(system.until("hangs", "quarantined"), 30)
        with pytest.raises(Unavailable, match=r"did not start within 0\.05 s"):
            await system.call("hangs.anything")


async def test_an_essential_service_that_cannot_start_ends_the_boot_with_its_reason():
    class Essential(Service):
        name = "essential"
        essential = True

        async def start(self) -> None:
            raise PreconditionFailed("port 7070 is taken")

    with pytest.raises(PreconditionFailed, match="port 7070 is taken"):
        async with TestKernel(Essential, Echo):
            raise AssertionError("it must not come up")


async def test_an_essential_service_that_never_gets_ready_ends_the_boot_with_its_reason():
    class Essential(Service):
        name = "essential"
        essential = True

        async def ready(self) -> None:
            raise Invalid("the model file is truncated")

    with pytest.raises(Invalid, match="truncated"):
        async with TestKernel(Essential, Echo):
            raise AssertionError("it must not come up")


async def test_needs_that_are_missing_or_circular_are_named_before_anything_starts():
    class Orphan(Service):
        name = "orphan"
        needs = ("nobody",)

    class Hen(Service):
        name = "hen"
        needs = ("egg",)

    class Egg(Service):
        name = "egg"
        needs = ("hen",)

    async with TestKernel(Orphan, Hen, Egg, Echo) as system:
        why = {status.name: status.why for status in await system.call("kernel.services")}
        assert why["orphan"] == "needs 'nobody', which is not installed"
        assert "egg → hen → egg" in why["egg"]
        assert await system.call("echo.say", x=1) == {"x": 1}


async def test_services_start_after_what_they_need_and_stop_before_it():
    events = []

    def service(service_name, needed=(), used=()):
        class Recorded(Service):
            name = service_name
            needs = needed
            uses = used

            async def start(self) -> None:
                await asyncio.sleep(0)
                events.append(f"+{self.name}")

            async def stop(self) -> None:
                events.append(f"-{self.name}")

        return Recorded

    async with TestKernel(service("c", ("b",)), service("b", ("a",)), service("a"), service("d", used=("c",))):
        pass
    assert events == ["+a", "+b", "+c", "+d", "-d", "-c", "-b", "-a"]


async def test_services_are_added_and_removed_while_others_run(tmp_path):
    path = tmp_path / "greeter.py"
    path.write_text(
        textwrap.dedent("""
            from microkernel import Service, handles

            class Greeter(Service):
                name = "greeter"

                @handles
                async def greet(self) -> str:
                    return "hello"
        """)
    )
    async with TestKernel(Echo) as system:
        await system.call("kernel.add", path=str(path))
        assert await system.call("greeter.greet") == "hello"
        await system.call("kernel.remove", name="greeter")
        assert {status.name for status in await system.call("kernel.services")} == {"kernel", "echo"}


async def test_a_service_that_others_need_is_not_removed():
    class Needs(Service):
        name = "needs"
        needs = ("echo",)

    async with TestKernel(Echo, Needs) as system:
        with pytest.raises(PreconditionFailed, match="needed by needs"):
            await system.call("kernel.remove", name="echo")
        assert await system.call("echo.say", x=1) == {"x": 1}


async def test_a_call_waits_for_a_service_that_is_coming_and_not_longer_than_its_deadline():
    class Slow(Service):
        name = "slow"
        delay = 0.0

        async def start(self) -> None:
            await asyncio.sleep(Slow.delay)

        @handles
        async def say(self) -> str:
            return "here"

    async with TestKernel(Slow) as system:
        Slow.delay = 0.2
        restart = asyncio.create_task(system.restart("slow"))
        await system.until("slow", "starting")
        with pytest.raises(DeadlineExceeded, match="still starting"):
            await system.call("slow.say", deadline=0.01)
        assert await system.call("slow.say") == "here"
        await restart


async def test_a_second_node_on_one_state_folder_is_refused(tmp_path):
    async with TestKernel(Echo, root=tmp_path):
        with pytest.raises(PreconditionFailed, match="already runs on the state folder"):
            async with TestKernel(Echo, root=tmp_path):
                raise AssertionError("it must not come up")


async def test_the_token_is_made_once_and_only_its_user_can_read_it(tmp_path):
    async with TestKernel(Echo, root=tmp_path) as system:
        token = system.token
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
        assert (await system.call("kernel.authenticate", token=token)).user == "root"
        assert await system.call("kernel.authenticate", token=token + "x") is None
        for odd in ("", "ü", "\ud800", token[:-1], token.swapcase()):
            assert system.kernel.token.authenticate(odd) is None
    async with TestKernel(Echo, root=tmp_path) as system:
        assert system.token == token


async def test_settings_reach_their_service_and_wrong_ones_end_the_boot():
    from microkernel import Message

    class Settings(Message):
        size: int = 1

    class Sized(Service):
        name = "sized"

        @handles
        async def size(self) -> int:
            return self.settings.size

    Sized.Settings = Settings
    async with TestKernel(Sized, settings={"sized": {"size": 3}}) as system:
        assert await system.call("sized.size") == 3
    for settings, why in [
        ({"sized": {"size": "big"}}, r"services\.sized\.size: Expected `int`"),
        ({"sized": {"sise": 3}}, "did you mean 'size'"),
        ({"seized": {}}, "no service is named 'seized'"),
    ]:
        with pytest.raises(Invalid, match=why):
            async with TestKernel(Sized, settings=settings):
                raise AssertionError("it must not come up")


async def test_a_disabled_service_may_keep_its_section():
    async with TestKernel(Echo, config=Config(disable=("gateway",), services={"gateway": {"port": 1}})) as system:
        assert system.state("echo") == "ready"


async def test_two_plugins_of_one_name_are_told_apart_and_the_first_has_it():
    class Other(Service):
        name = "echo"

        @handles
        async def say(self, message: dict) -> str:
            return "other"

    async with TestKernel(Echo, Plugin("echo", "elsewhere", kind=Other)) as system:
        assert await system.call("echo.say", x=1) == {"x": 1}


async def test_a_restart_reads_a_services_file_anew_and_leaves_it_running_while_the_file_is_broken(tmp_path):
    path = tmp_path / "adder.py"
    text = """
from microkernel import Service, handles

class Adder(Service):
    name = "adder"

    @handles
    async def one(self) -> int:
        return 1
"""
    path.write_text(text)
    async with TestKernel(Echo) as system:
        await system.call("kernel.add", path=str(path))
        assert await system.call("adder.one") == 1
        path.write_text(text.replace("return 1", "return 1001  # edited"))
        await system.call("kernel.restart", name="adder")
        assert await system.call("adder.one") == 1001
        path.write_text("def broken(:")
        with pytest.raises(PreconditionFailed, match="SyntaxError"):
            await system.call("kernel.restart", name="adder")
        assert await system.call("adder.one") == 1001
