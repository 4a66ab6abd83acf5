"""Jobs by real processes: what is done when they are killed, stopped, paused, and begun again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from training_jobs import Running, fork_server, learned, plan_fault, write_job

from microkernel.errors import DataLoss, MicrokernelError, PreconditionFailed, Unavailable
from services.training.orders import Broken, Evaluated, Finished, Formed, LeftOut, Noted, Rested, Saved, Stepped

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

SHARDS = {"steps": 12, "rows": 6, "shards": 6}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    async with fork_server() as made:
        yield made


def job(folder: Path, workers: int = 1, **sections) -> Path:
    strategy = "local" if workers == 1 else "ddp"
    sections.setdefault("schedule", SHARDS)
    sections["devices"] = {"workers": workers, "strategy": strategy, "threads": 1}
    return write_job(folder, **sections)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(server, tmp_path_factory):
    """What one worker comes to."""
    path = job(tmp_path_factory.mktemp("undisturbed"))
    await Running(server, path).task
    return learned(path)


async def ended(running: Running) -> None:
    """The job's processes have ended."""
    running.task.cancel()
    await asyncio.gather(running.task, return_exceptions=True)


@pytest.mark.parametrize("workers", [2, 3])
async def test_several_workers_come_to_the_bits_of_one(server, undisturbed, tmp_path, workers):
    path = job(tmp_path, workers)
    running = Running(server, path)
    assert await running.task == path.parent / "result"
    assert learned(path) == undisturbed
    assert running.steps == list(range(1, 13))


PHASES = ["forming", "joining", "forward", "backward", "summing", "applying", "evaluating", "saving", "finishing"]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("workers", "rank"), [(1, 0), (2, 0), (2, 1), (3, 1)])
async def test_a_worker_that_is_killed_costs_no_step_and_no_bit(server, undisturbed, tmp_path, phase, workers, rank):
    path = job(tmp_path, workers, checkpoints={"every": 2})
    if phase in {"saving", "finishing"} and rank > 0:
        pytest.skip("the first worker does that")
    hit = plan_fault(path, phase, rank=rank, step=0 if phase in {"forming", "joining"} else 3)
    running = Running(server, path)
    await running.task
    assert hit.exists() or (workers == 1 and phase == "joining"), "it came to that"
    assert learned(path) == undisturbed
    if workers > 1:
        assert running.steps == list(range(1, 13))
    else:  # alone it goes back to the last checkpoint that is safe
        assert sorted(set(running.steps)) == list(range(1, 13))


async def test_three_kills_cost_no_step_and_no_bit(server, undisturbed, tmp_path):
    path = job(tmp_path, 2)
    for number, phase in enumerate(("backward", "summing", "forward")):
        plan_fault(path, phase, rank=number % 2, step=2 + 3 * number)
    running = Running(server, path)
    await running.task
    assert len(running.lost) == 3
    assert running.steps == list(range(1, 13))
    assert learned(path) == undisturbed


async def test_workers_that_are_killed_while_they_form_are_not_waited_for(server, undisturbed, tmp_path):
    path = job(tmp_path, 2)
    plan_fault(path, "forward", rank=1, step=2)
    plan_fault(path, "joining", rank=0, step=2)
    plan_fault(path, "joining", rank=1, step=0)
    running = Running(server, path)
    await running.task
    assert len(running.lost) == 3
    assert learned(path) == undisturbed


async def test_all_workers_killed_at_once_go_on_from_the_last_checkpoint(server, undisturbed, tmp_path):
    path = job(tmp_path, 2, checkpoints={"every": 2})
    running = Running(server, path)
    await running.until(Saved, step=4)
    for rank in (0, 1):
        running.worker(rank).forked.kill()
    await running.task
    assert learned(path) == undisturbed
    again = [step for step in running.steps if running.steps.count(step) > 1]
    assert 1 not in again, "it did not begin anew"


async def test_a_stopped_worker_is_replaced_and_does_not_come_back(server, undisturbed, tmp_path):
    path = job(tmp_path, 2)
    plan_fault(path, "backward", rank=1, step=2, by=signal.SIGSTOP)
    running = Running(server, path)
    await running.until(Stepped, step=2)
    stopped = running.worker(1)
    note = await running.until(Noted)
    assert "is dead" in note.text
    assert await asyncio.wait_for(asyncio.shield(stopped.forked.ended), 30) == -signal.SIGKILL
    await running.task
    assert learned(path) == undisturbed


async def test_a_job_that_rests_ten_times_comes_to_the_same_bits(server, tmp_path):
    long = {**SHARDS, "steps": 100}
    path = job(tmp_path, 2, schedule=long)
    running = Running(server, path)
    await running.until(Stepped, step=1)
    for number in range(1, 11):
        running.paused = True
        await running.until(Rested, count=2 * number)
        rested = running.steps[-1]
        assert any(isinstance(report, Saved) and report.step == rested for report in running.told)
        running.paused = False
        await running.until(Stepped, step=rested + 1)
    await running.task
    assert running.steps == list(range(1, 101))
    other = tmp_path / "other"
    other.mkdir()
    undisturbed = job(other, schedule=long)
    await Running(server, undisturbed).task
    assert learned(path) == learned(undisturbed)


@pytest.mark.parametrize("workers", [(2, 1, 2), (1, 3, 2)])
async def test_another_number_of_workers_goes_on_where_the_last_one_was(server, undisturbed, tmp_path, workers):
    for number, count in enumerate(workers):
        path = job(tmp_path, count)
        running = Running(server, path)
        if number < 2:
            await running.until(Stepped, step=4 * number + 3)
            running.run.stop()
            with pytest.raises(Unavailable, match="was stopped"):
                await running.task
            assert not (path.parent / "result").exists()
        else:
            await running.task
    assert learned(path) == undisturbed


async def test_a_job_whose_agent_is_gone_leaves_no_process_and_can_be_begun_again(server, tmp_path):
    long = {**SHARDS, "steps": 100}
    path = job(tmp_path, 2, checkpoints={"every": 1}, schedule=long)
    running = Running(server, path)
    await running.until(Stepped, step=6)
    while not any(isinstance(report, Saved) and report.step >= 3 for report in running.told):
        await asyncio.sleep(0.01)
    pids = [running.worker(rank).forked.pid for rank in (0, 1)]
    await ended(running)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
    running = Running(server, path)
    await running.task
    assert running.steps[0] >= 4
    assert running.steps[-1] == 100


async def test_what_is_held_out_is_measured_alike_by_any_number_of_workers(server, tmp_path):
    losses = set()
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        path = job(folder, workers, evaluation={"every": 6})
        running = Running(server, path)
        await running.task
        found = [(report.step, report.loss) for report in running.told if isinstance(report, Evaluated)]
        assert [step for step, _ in found] == [0, 6, 12]
        losses.add(tuple(found))
    assert len(losses) == 1


async def test_a_loss_that_diverges_ends_the_job_with_what_to_do(server, tmp_path):
    path = job(tmp_path, 2, schedule={**SHARDS, "rate": 1e9, "clip": 0.0, "warmup": 0.0, "steps": 60})
    with pytest.raises(PreconditionFailed, match="loss of step|gradient") as caught:
        await Running(server, path).task
    assert caught.value.remedy is None or "rate" in caught.value.remedy


async def test_a_loss_that_diverges_is_rolled_back_where_that_is_wanted(server, tmp_path):
    faults = {"diverged": "rollback", "spike": 1.0001}
    path = job(tmp_path, 2, schedule={**SHARDS, "steps": 40, "rate": 1e-5}, faults=faults)
    running = Running(server, path)
    found = await running.until(LeftOut)
    assert found.step <= found.diverged
    await ended(running)


async def test_workers_that_end_too_often_end_the_job(server, tmp_path):
    path = job(tmp_path, 1, faults={"restarts": 1})
    plan_fault(path, "backward")
    plan_fault(path, "backward")
    with pytest.raises(Unavailable, match="2 workers of 'tiny' ended within an hour"):
        await Running(server, path).task


async def test_a_job_file_that_is_damaged_is_named(server, tmp_path):
    path = job(tmp_path)
    running_path = path.with_name("damaged.json")
    running_path.write_bytes(path.read_bytes())
    running = Running(server, running_path)
    running_path.write_bytes(b"{")
    with pytest.raises(DataLoss, match="damaged.json"):
        await running.task


async def test_a_model_that_is_gone_is_named(server, tmp_path):
    path = job(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(MicrokernelError, match="safetensors"):
        await Running(server, path).task


async def test_every_worker_tells_what_it_forms_and_who_has_broken_it(server, tmp_path):
    running = Running(server, job(tmp_path, 3))
    await running.until(Stepped, step=2)
    running.worker(2).forked.kill()
    await running.task
    assert len([report for report in running.told if isinstance(report, Formed)]) == 6
    assert {report.step for report in running.told if isinstance(report, Broken)} <= {1, 2, 3, 4}
    assert [type(report) for report in running.told][-1] is Finished
