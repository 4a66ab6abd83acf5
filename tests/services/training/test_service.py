"""Journeys of jobs through the service: a node with a tiny model, real processes, and chats beside them."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import pytest
from inference_node import SERVICES, answer
from tiny_model import write_tiny_model

from microkernel.capability import Rights
from microkernel.errors import Invalid, NotFound, Overloaded, PreconditionFailed
from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem
from services.training.messages import JobState
from services.training.service import Training

pytestmark = pytest.mark.timeout(150)

CHATS = [
    {"messages": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"it is {number}"}]}
    for number in range(40)
]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


def config(tiny: Path, *, name: str = "facts", steps: int = 6, more: str = "", schedule: str = "") -> str:
    return f"""
name = "{name}"
[model]
base = "{tiny}"
[method]
rank = 4
[data]
train = ["/data/chats.jsonl"]
length = 64
evaluation_part = 0.3
[schedule]
steps = {steps}
rows = 4
rate = 1e-3
{schedule}
[evaluation]
every = 0
{more}
"""


def kernel(tiny: Path, root: Path, **training):
    return TestKernel(
        *SERVICES,
        Filesystem,
        Training,
        root=root,
        settings={"inference": {"model": str(tiny)}, "training": {"stop_seconds": 10.0, **training}},
    )


async def put_chats(system, path: str = "/data/chats.jsonl") -> None:
    content = "".join(json.dumps(chat) + "\n" for chat in CHATS).encode()
    await system.call("filesystem.write", path=path, content=content)


async def until(system, job: str, state: JobState):
    """The job, once it is in that state."""
    async with aclosing(system.stream("training.watch", job=job)) as told:
        async for news in told:
            if news.job.state is state:
                return news.job
            assert not news.job.state.is_over, news.job
    return await system.call("training.show", job=job)


async def until_over(system, job: str):
    """The job, once it is over."""
    async with aclosing(system.stream("training.watch", job=job)) as told:
        async for news in told:
            if news.job.state.is_over:
                return news.job
    return await system.call("training.show", job=job)


async def test_what_a_job_has_learned_answers_at_once_and_tells_where_it_comes_from(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        started = await system.call("training.start", text=config(tiny))
        done = await until(system, started.job, JobState.DONE)
        assert (done.step, done.steps, done.result, done.why) == (6, 6, "facts-1", "")
        assert done.evaluation_loss is not None
        before, _ = await answer(system, max_tokens=8, temperature=0.0)
        after, _ = await answer(system, model="facts-1", max_tokens=8, temperature=0.0)
        assert before
        assert after
        [stored] = [each for each in await system.call("models.list") if each.name == "facts-1"]
        lineage = json.loads((Path(stored.path) / "training.json").read_text())
        assert lineage["base"]["name"] == "tiny"
        assert list(lineage["data"]["sources"]) == ["/data/chats.jsonl"]
        points = await system.call("training.curve", job="facts-1")
        assert [point.step for point in points if point.loss is not None] == [1, 2, 3, 4, 5, 6]
        assert (await system.call("training.list"))[0].job == "facts-1"


async def test_two_jobs_wait_for_each_other_and_keep_their_own_names(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root", waiting=1) as system:
        await put_chats(system)
        jobs = [await system.call("training.start", text=config(tiny, steps=2)) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 jobs run or wait"):
            await system.call("training.start", text=config(tiny))
        assert [job.job for job in jobs] == ["facts-1", "facts-2"]
        for job in jobs:
            await until(system, job.job, JobState.DONE)


async def test_a_job_is_a_process_that_is_paused_resumed_and_killed(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        job = await system.call("training.start", text=config(tiny, steps=100_000))
        running = await until(system, job.job, JobState.RUNNING)
        [process] = [each for each in await system.call("scheduler.list") if each.pid == running.pid]
        assert (process.kind, process.process_class) == ("training", "background")
        await system.call("scheduler.pause", pid=running.pid)
        async with asyncio.timeout(60):
            while (await system.call("training.show", job=job.job)).saved_step == 0:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        stands = (await system.call("training.show", job=job.job)).step
        await asyncio.sleep(0.3)
        assert (await system.call("training.show", job=job.job)).step == stands
        await system.call("scheduler.resume", pid=running.pid)
        async with asyncio.timeout(60):
            while (await system.call("training.show", job=job.job)).step == stands:
                await asyncio.sleep(0.05)
        await system.call("scheduler.kill", pid=running.pid)
        async with asyncio.timeout(60):
            while (await system.call("training.show", job=job.job)).state is not JobState.KILLED:
                await asyncio.sleep(0.05)


async def test_a_job_that_is_paused_can_be_stopped(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        job = await system.call("training.start", text=config(tiny, steps=100_000))
        running = await until(system, job.job, JobState.RUNNING)
        await system.call("scheduler.pause", pid=running.pid)
        paused = await until(system, job.job, JobState.PAUSED)
        await system.call("training.stop", job=job.job)
        stopped = await until(system, job.job, JobState.STOPPED)
        assert stopped.saved_step >= paused.step


async def test_chats_beside_a_job_say_what_they_say_without_one(tiny, tmp_path):
    ask = {"max_tokens": 40, "temperature": 0.0}
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        alone = [(await answer(system, messages=[{"role": "user", "content": f"{n}?"}], **ask))[0] for n in range(6)]
        job = await system.call("training.start", text=config(tiny, steps=100_000))
        await until(system, job.job, JobState.RUNNING)
        beside = [(await answer(system, messages=[{"role": "user", "content": f"{n}?"}], **ask))[0] for n in range(6)]
        assert beside == alone
        first = (await system.call("training.show", job=job.job)).step
        async with asyncio.timeout(60):
            while (await system.call("training.show", job=job.job)).step == first:
                await asyncio.sleep(0.05)
        await system.call("training.stop", job=job.job)
        await until(system, job.job, JobState.STOPPED)


async def test_a_job_that_was_stopped_goes_on_and_one_that_is_done_can_be_forgotten(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        job = await system.call("training.start", text=config(tiny, steps=60))
        await until(system, job.job, JobState.RUNNING)
        with pytest.raises(PreconditionFailed, match="is running"):
            await system.call("training.forget", job=job.job)
        await system.call("training.stop", job=job.job)
        stopped = await until(system, job.job, JobState.STOPPED)
        assert 0 < stopped.saved_step == stopped.step < 60
        await system.call("training.resume", job=job.job)
        done = await until(system, job.job, JobState.DONE)
        points = await system.call("training.curve", job=job.job)
        assert [point.step for point in points if point.loss is not None] == list(range(1, 61))
        await system.call("training.forget", job=done.job)
        with pytest.raises(NotFound):
            await system.call("training.show", job=job.job)
        assert any(each.name == done.result for each in await system.call("models.list"))


async def test_a_job_goes_on_when_its_node_is_booted_again(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        job = await system.call("training.start", text=config(tiny, steps=60))
        await until(system, job.job, JobState.RUNNING)
    async with kernel(tiny, tmp_path / "root") as system:
        shown = await system.call("training.show", job=job.job)
        assert shown.state not in {JobState.FAILED, JobState.STOPPED}
        done = await until(system, job.job, JobState.DONE)
        assert done.step == 60
        points = await system.call("training.curve", job=job.job)
        assert [point.step for point in points if point.loss is not None] == list(range(1, 61))


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        (
            "[model]\nbase = 'x'\n[data]\ntrain = ['/a']\n[schedule]\nrowz = 1",
            Invalid,
            "line 6: schedule.rowz: .*no such",
        ),
        ("[model\n", Invalid, "is not TOML"),
        ("[model]\nbase = 'x'\n[data]\ntrain = []", Invalid, "nothing to train on"),
        ("[model]\nbase = 'x'\n[data]\ntrain = ['/a']\n[schedule]\nrows = 7", Invalid, "7 rows cannot be cut into 4"),
        ("[model]\n[data]\ntrain = ['/a']", Invalid, "from scratch is trained in full"),
    ],
)
async def test_a_configuration_that_cannot_be_is_refused_with_its_place(tiny, tmp_path, text, error, why):
    async with kernel(tiny, tmp_path / "root") as system:
        with pytest.raises(error, match=why):
            await system.call("training.start", text=text)
        assert await system.call("training.list") == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"train": "/data/nothing.jsonl"}, "nothing.jsonl"),
        ({"base": "no-such-model"}, "no-such-model"),
        ({"length": "8"}, ""),
    ],
)
async def test_a_job_that_cannot_be_done_says_why(tiny, tmp_path, change, why):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system)
        text = config(tiny, steps=2)
        if "train" in change:
            text = text.replace("/data/chats.jsonl", change["train"])
        if "base" in change:
            text = text.replace(str(tiny), change["base"])
        if "length" in change:
            text = text.replace("length = 64", "length = 8").replace("/data/chats.jsonl", "/data/bad.jsonl")
            await system.call("filesystem.write", path="/data/bad.jsonl", content=b"{\n" * 200)
        job = await system.call("training.start", text=text)
        failed = await until_over(system, job.job)
        assert failed.state is JobState.FAILED
        assert why in failed.why


async def test_a_user_sees_and_reads_only_what_is_the_users_own(tiny, tmp_path):
    async with kernel(tiny, tmp_path / "root") as system:
        await put_chats(system, "/data/chats.jsonl")
        port = system.kernel.port
        ann, bob = (port.narrow(caller=f"session {name}", rights=Rights(), user=name) for name in ("ann", "bob"))
        local = config(tiny).replace("/data/chats.jsonl", f"file://{tmp_path}/tiny/config.json")
        job = await ann.call("training.start", text=local)
        failed = await until_over(system, job.job)
        assert "only root names files" in failed.why
        assert [each.job for each in await ann.call("training.list")] == [job.job]
        assert await bob.call("training.list") == []
        with pytest.raises(NotFound):
            await bob.call("training.show", job=job.job)
