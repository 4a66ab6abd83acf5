"""Devices that give whole answers, through the kernel."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from model_servers import Parrot, parrots

import services.devices.service as module
from microkernel.errors import Denied, Internal, Invalid, NotFound, Overloaded, PreconditionFailed, Unavailable
from microkernel.model_server import Generated
from microkernel.service import Service, streams
from microkernel.testing import TestKernel
from services.devices.messages import AskModel
from services.devices.service import Devices

HELLO = [{"role": "user", "content": "Hello"}]


class Asker(Service):
    """Asks devices as inference does: users may not."""

    name = "asker"
    needs = ("devices",)

    @streams
    async def ask(self, message: AskModel):
        async with self.stream("devices.generate", message) as items:
            async for item in items:
                yield item


@pytest.fixture
def node(monkeypatch):
    @asynccontextmanager
    async def made(*birds: Parrot, **settings):
        parrots(module, monkeypatch, *birds)
        async with TestKernel(Devices, Asker, settings={"devices": settings}) as system:
            yield system

    return made


async def answer(system, **fields) -> list[Generated]:
    fields = {"model": "m", "messages": HELLO, **fields}
    return [piece async for piece in system.stream("asker.ask", **fields)]


def text_of(pieces: list[Generated]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_a_device_that_answers_is_listed_with_its_models_and_has_no_threads(node):
    bird = Parrot("a", "m", "n")
    async with node(bird) as system:
        shown = await system.call("devices.show", name="a")
        assert (shown.kind, shown.driver, shown.state, shown.answers) == ("parrot", "parrot", "healthy", True)
        assert shown.models == ("m", "n")
        assert shown in await system.call("devices.list")
        with pytest.raises(NotFound):
            system.kernel.executors.get("a")
        with pytest.raises(PreconditionFailed, match="runs no work of ours"):
            await system.call("devices.tune", name="a")
        assert bird.is_open
    assert not bird.is_open


async def test_an_answer_comes_in_pieces_that_name_their_device(node):
    async with node(Parrot("a", "m")) as system:
        pieces = await answer(system)
        assert pieces[0] == Generated(device="a")
        assert text_of(pieces) == "Hello, world"
        assert pieces[-1].spent.completion_tokens == 3
        assert (await system.call("devices.show", name="a")).quanta == 1


async def test_users_ask_inference_and_not_devices(node):
    async with node(Parrot("a", "m")) as system:
        with pytest.raises(Denied):
            await anext(system.kernel.port.narrow(caller="session 1", rights=_all(), user="ana").stream(
                "devices.generate", model="m", messages=HELLO
            ))  # fmt: skip


def _all():
    from microkernel.capability import Rights

    return Rights()


async def test_a_server_that_fails_before_it_has_said_anything_is_followed_by_the_next(node):
    first, second = Parrot("a", "m"), Parrot("b", "m")
    first.words, first.error = [], Unavailable("connection reset", may_have_run=True)
    async with node(first, second) as system:
        pieces = await answer(system)
        assert [piece.device for piece in pieces if not piece.text] == ["a", "b", "b"]
        assert text_of(pieces) == "Hello, world"
        assert len(first.asked) == len(second.asked) == 1


async def test_half_a_sampled_answer_ends_with_its_cause(node):
    first, second = Parrot("a", "m"), Parrot("b", "m")
    first.words, first.error = ["Hel", "lo"], Unavailable("connection reset")
    async with node(first, second) as system:
        with pytest.raises(Unavailable, match="a broke off after 2 tokens: connection reset") as caught:
            await answer(system, temperature=0.7)
        assert caught.value.may_have_run is True
        assert second.asked == []


async def test_half_a_greedy_answer_goes_on_where_another_says_the_same(node):
    first, second = Parrot("a", "m"), Parrot("b", "m")
    first.words, first.error = ["Hello", ", wo"], Unavailable("connection reset")
    async with node(first, second) as system:
        pieces = await answer(system, temperature=0.0)
        assert text_of(pieces) == "Hello, world"
        assert [piece.device for piece in pieces if piece.text] == ["a", "a", "b"]
        assert pieces[-1].finish_reason == "stop"


async def test_half_a_greedy_answer_is_not_mixed_with_another(node):
    first, second = Parrot("a", "m"), Parrot("b", "m")
    first.words, first.error = ["Hello", " there"], Unavailable("connection reset")
    async with node(first, second) as system:
        with pytest.raises(Unavailable, match="a broke off after 2 tokens: connection reset; b: .* something else"):
            await answer(system, temperature=0.0)


async def test_a_request_that_is_wrong_itself_is_asked_once(node):
    first, second = Parrot("a", "m"), Parrot("b", "m")
    first.words, first.error = [], Invalid("temperature is 9", field="temperature")
    async with node(first, second) as system:
        with pytest.raises(Invalid, match="a: temperature is 9"):
            await answer(system)
        assert second.asked == []


async def test_where_all_fail_each_is_named(node):
    birds = [Parrot("a", "m"), Parrot("b", "m")]
    for bird in birds:
        bird.words, bird.error = [], Unavailable(f"{bird.facts.name} is down")
    async with node(*birds) as system:
        with pytest.raises(Unavailable, match="a: a is down; b: b is down"):
            await answer(system)


async def test_a_defect_of_a_driver_ends_the_call_and_not_the_service(node):
    bird = Parrot("a", "m")
    bird.words, bird.error = [], ZeroDivisionError("oops")
    async with node(bird) as system:
        with pytest.raises(Internal, match="ZeroDivisionError: oops"):
            await answer(system)
        bird.words, bird.error = ["well"], None
        assert text_of(await answer(system)) == "well"


async def test_no_more_requests_than_places_run_and_the_rest_waits(node):
    bird = Parrot("a", "m", places=2)
    async with node(bird) as system:
        answers = await asyncio.gather(*(answer(system) for _ in range(7)))
        assert {text_of(pieces) for pieces in answers} == {"Hello, world"}
        assert bird.most <= 2


async def test_a_reader_that_leaves_frees_its_place_and_ends_the_work(node):
    bird = Parrot("a", "m", places=1)
    bird.hold = asyncio.Event()
    async with node(bird) as system:
        async with system.stream("asker.ask", model="m", messages=HELLO) as pieces:
            await anext(pieces)
            waiting = asyncio.create_task(answer(system))
            while not (await system.call("devices.show", name="a")).queued:
                await asyncio.sleep(0)
        bird.hold.set()
        assert text_of(await waiting) == "Hello, world"
        assert bird.running == 0


async def test_a_full_queue_is_told_to_come_back(node):
    bird = Parrot("a", "m", places=1, queue=1)
    bird.hold = asyncio.Event()
    async with node(bird) as system, system.stream("asker.ask", model="m", messages=HELLO) as pieces:
        await anext(pieces)
        waiting = asyncio.create_task(answer(system))
        while not (await system.call("devices.show", name="a")).queued:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await answer(system)
        assert caught.value.retry_after > 0
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_failure_has_the_server_looked_at_and_its_state_is_told(node):
    bird = Parrot("a", "m")
    bird.words, bird.error = [], Unavailable("connection refused")
    async with node(bird) as system, system.subscribe("devices.a.*") as events:
        await system.call("devices.served")
        bird.away = "it does not answer"
        with pytest.raises(Unavailable, match="it does not answer"):
            await answer(system)
        bird.away, bird.ill = None, "it was down"
        with pytest.raises(Unavailable):
            await answer(system)
        event = await anext(events)
        assert (event.subject, event.body["why"]) == ("devices.a.suspect", "it was down")
        while bird.looks < 2:
            await asyncio.sleep(0.01)


async def test_what_is_served_where_is_listed_with_the_state_of_the_device(node):
    first, second = Parrot("a", "m"), Parrot("b", "m", "n")
    second.away = "no route"
    async with node(first, second) as system:
        rows = await system.call("devices.served")
        assert [(row.model, row.device, row.state, row.why) for row in rows] == [
            ("m", "a", "healthy", ""),
            ("m", "b", "quarantined", "no route"),
            ("n", "b", "quarantined", "no route"),
        ]
        (row,) = await system.call("devices.served", name="b/n")
        assert (row.model, row.context_length, row.created) == ("n", 512, 7)


async def test_a_list_is_not_kept_waiting_by_a_server_that_does_not_answer(node):
    class Mute(Parrot):
        async def look(self):
            await asyncio.Event().wait()

    async with node(Parrot("a", "m"), Mute("b", "n")) as system:
        assert {row.device for row in await system.call("devices.served")} == {"a", "b"}


async def test_settings_of_a_driver_that_is_not_installed_are_told(node):
    async with (
        node(Parrot("a", "m"), drivers={"warp": {"core": 1}}) as system,
        system.subscribe("devices.broken") as it,
    ):
        await system.restart("devices")
        assert "no driver of that name" in (await anext(it)).body["why"]


async def test_a_setting_that_a_driver_does_not_know_is_named(node):
    async with (
        node(Parrot("a", "m"), drivers={"parrot": {"colour": "green"}}) as system,
        system.subscribe("devices.broken") as it,
    ):
        await system.restart("devices")
        assert "services.devices.drivers.parrot.colour" in (await anext(it)).body["why"]
