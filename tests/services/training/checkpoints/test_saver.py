from __future__ import annotations

import os
import select
import signal
import time

import psutil
import pytest
import torch
from kept_states import JOB, KeptJob, holding, same, state_of

from microkernel.errors import DeadlineExceeded, Invalid
from services.training.checkpoints.channel import Failed, Opened, Written
from services.training.checkpoints.facts import Facts
from services.training.checkpoints.saver import CheckpointSaver, LeftOut, Restarted, Taken
from services.training.checkpoints.state import TrainingState

WAIT = 90.0  # seconds: the writer is served last, and other tests run beside


@pytest.fixture
def job(tmp_path):
    return KeptJob(tmp_path)


@pytest.fixture
def saver(job):
    saver = CheckpointSaver(state_of(0), folder=job.path, job=JOB, key=job.key_path, threads=1)
    yield saver
    saver.close(WAIT)


@pytest.fixture
def ready(saver):
    """One whose writer has begun."""
    opened(saver)
    return saver


def opened(saver: CheckpointSaver) -> None:
    while not any(isinstance(event, Opened) for event in saver.poll()):
        select.select([saver._channel], [], [], WAIT)


def stop(saver: CheckpointSaver) -> None:
    os.kill(saver.pid, signal.SIGSTOP)
    while psutil.Process(saver.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def go_on(saver: CheckpointSaver) -> None:
    os.kill(saver.pid, signal.SIGCONT)


def written(events) -> list[int]:
    return [event.step for event in events if isinstance(event, Written)]


def test_what_is_saved_is_there_once_it_is_told(saver, job):
    saver.save(state_of(50, loss=0.5))
    assert written(saver.wait(WAIT)) == [50]
    assert same(job.folder.newest()[1], state_of(50, loss=0.5))


def test_training_goes_on_with_its_tensors_while_they_are_written(ready, job):
    state = state_of(1)
    stop(ready)
    ready.save(state)
    state.tensors["weights"].zero_()
    go_on(ready)
    ready.wait(WAIT)
    assert same(job.folder.newest()[1], state_of(1))


def test_with_both_slots_waiting_the_newest_state_takes_the_place_of_one_and_tells(ready, job):
    stop(ready)
    taken = [ready.save(state_of(step)) for step in (1, 2, 3)]
    assert [each.replaced for each in taken] == [None, None, 1]
    go_on(ready)
    assert written(ready.wait(WAIT)) == [2, 3]
    assert same(job.folder.newest()[1], state_of(3))


def test_a_slot_that_is_being_written_is_not_touched(ready):
    stop(ready)  # it would take the other one meanwhile
    with holding(ready.segment, 0), ready.segment.bytes_of(0) as memory:
        before = bytes(memory)
        for step in (1, 2, 3):
            assert isinstance(ready.save(state_of(step)), Taken)
        assert bytes(memory) == before
    go_on(ready)


def test_a_state_is_left_out_and_told_where_no_slot_can_be_had(ready):
    with holding(ready.segment, 0), holding(ready.segment, 1):
        assert ready.save(state_of(1)) == LeftOut(1, "both slots are being written")


def test_a_writer_that_is_killed_is_replaced_and_what_waited_is_written(ready, job):
    stop(ready)
    ready.save(state_of(1))
    ready.save(state_of(2))
    os.kill(ready.pid, signal.SIGKILL)
    events = ready.wait(WAIT)
    assert Restarted(-signal.SIGKILL) in events
    assert written(events) == [1, 2]
    assert same(job.folder.newest()[1], state_of(2))


def test_writers_that_die_without_end_are_not_started_for_ever(ready):
    stop(ready)
    ready.save(state_of(1))
    for _ in range(4):
        os.kill(ready.pid, signal.SIGKILL)
        select.select([ready._channel], [], [], WAIT)
        events = ready.poll()
    assert [event.error.code for event in events] == ["UNAVAILABLE"]
    assert "died 4 times in a row" in ready.save(state_of(2)).why
    assert ready.waiting == ()


def test_a_folder_that_cannot_be_made_is_told(job):
    job.path.parent.joinpath("file").write_text("")
    saver = CheckpointSaver(
        state_of(0), folder=job.path.parent / "file" / "below", job=JOB, key=job.key_path, threads=1
    )
    saver.save(state_of(1))
    events = saver.wait(WAIT)
    saver.close()
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.turn for event in failed] == [0, 1]
    assert "below" in failed[0].error.message


def test_a_state_of_other_sizes_is_refused(saver):
    with pytest.raises(Invalid, match="not those that memory was prepared for"):
        saver.save(state_of(1, sizes={"weights": 5}))


def test_facts_without_end_are_refused_and_the_slots_stay_as_they_were(ready):
    with pytest.raises(Invalid, match="too many"):
        ready.save(state_of(1, left_out=tuple(range(1 << 18))))
    assert isinstance(ready.save(state_of(2)), Taken)


def test_waiting_ends_in_time(ready):
    stop(ready)
    ready.save(state_of(1))
    with pytest.raises(DeadlineExceeded, match=r"the steps \(1,\)"):
        ready.wait(0.01)
    go_on(ready)


def test_closing_lets_the_writer_finish(job):
    saver = CheckpointSaver(state_of(0), folder=job.path, job=JOB, key=job.key_path, threads=1)
    saver.save(state_of(1))
    assert written(saver.close(WAIT)) == [1]
    assert same(job.folder.newest()[1], state_of(1))


def test_a_job_goes_on_from_a_checkpoint_as_its_child(job):
    job.write(state_of(1))
    job.close()
    first = job.folder.newest()[0]
    saver = CheckpointSaver(
        state_of(0), folder=job.path, job=JOB, key=job.key_path, threads=1, parent=(first.number, first.digest)
    )
    saver.save(state_of(2))
    saver.close(WAIT)
    assert job.folder.newest()[0].manifest.parent.digest == first.digest


def test_the_writer_is_served_last_and_in_a_group_of_its_own(ready):
    assert os.sched_getscheduler(ready.pid) == os.SCHED_IDLE
    assert os.getpriority(os.PRIO_PROCESS, ready.pid) == 19
    assert os.getpgid(ready.pid) == ready.pid


def test_several_threads_copy_what_one_does(job):
    sizes = {"weights": 5_000_000, "bias": 7}
    saver = CheckpointSaver(state_of(0, sizes=sizes), folder=job.path, job=JOB, key=job.key_path, threads=3)
    saver.save(state_of(1, sizes=sizes))
    saver.close(WAIT)
    assert same(job.folder.newest()[1], state_of(1, sizes=sizes))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_state_on_an_accelerator_is_copied_too(saver, job):
    state = state_of(1)
    saver.save(TrainingState({name: tensor.cuda() for name, tensor in state.tensors.items()}, Facts(step=1)))
    saver.wait(WAIT)
    assert same(job.folder.newest()[1], state)
