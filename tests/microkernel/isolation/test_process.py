"""A service with a process of its own: whatever ends it ends nothing else, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from isolation_services import Count, DiesAtStart, Partner, Store

from microkernel.config import Config, Supervision
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.isolation.child_process import Child, ending
from microkernel.isolation.spare import Spare
from microkernel.testing import TestKernel

OFTEN = Supervision(intensity=1_000_000, period=0.001)  # killed as often as a test likes, without a growing delay


@asynccontextmanager
async def node(*kinds, supervision=OFTEN, limit=60):
    kinds = kinds or (Partner, Store)
    config = Config(isolation={kind.name: "process" for kind in kinds[1:]}, supervision=supervision)
    async with asyncio.timeout(limit), TestKernel(*kinds, config=config) as system:
        yield system


def children():
    """The processes that this one has started and that are not reaped yet."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in listed.split()}


def environment_of(pid):
    return Path(f"/proc/{pid}/environ").read_bytes()


def files():
    return len(list(Path("/proc/self/fd").iterdir()))


def memory_kib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024


async def pid_of(system):
    return (await system.call("store.self_description"))["pid"]


async def outcome(work):
    try:
        return await work
    except MicrokernelError as error:
        return error


async def hanging(system, count):
    """So many calls that have reached their handler."""
    async with system.subscribe("store.said") as events:
        tasks = [asyncio.create_task(outcome(system.call("store.hang"))) for _ in range(count)]
        heard = 0
        while heard < count:
            heard += (await anext(events)).body["what"] == "hangs"
    return tasks


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("SIGKILL", "was ended by SIGKILL"),
        ("SIGTERM", "was ended by SIGTERM"),
        ("segfault", "was ended by SIGSEGV"),
        ("exit", "ended with status 7"),
    ],
)
async def test_a_death_of_the_process_ends_its_calls_with_the_cause_and_it_is_restarted(how, words):
    async with node() as system:
        pid = await pid_of(system)
        calls = await hanging(system, 3)
        last = await outcome(system.call("store.die", how=how))
        for error in [last, *[await call for call in calls]]:
            assert isinstance(error, Unavailable)
            assert error.may_have_run
            assert error.causes[0] == f"process {pid} {words}"
        about = await system.call("store.self_description")
        assert about["incarnation"] == 2
        assert about["pid"] != pid


async def test_what_the_process_said_last_is_among_the_causes():
    async with node() as system:
        error = await outcome(system.call("store.die", how="segfault"))
        assert len(error.causes) == 2


async def test_streams_end_with_the_cause_when_the_process_dies():
    async with node() as system:
        pid = await pid_of(system)

        async def read():
            async for _ in system.stream("store.count", Count(to=100_000, wait=0.001)):
                os.kill(pid, signal.SIGKILL)

        error = await outcome(read())
        assert isinstance(error, Unavailable)
        assert error.may_have_run
        assert error.causes[0] == f"process {pid} was ended by SIGKILL"


async def test_what_a_dead_process_was_waiting_for_is_cancelled():
    async with node() as system, system.subscribe("partner.let_go") as events:
        pid = await pid_of(system)
        task = asyncio.create_task(outcome(system.call("store.ask_hang")))
        while not system.calls_in_flight().get("partner.hang"):
            await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        assert (await anext(events)).subject == "partner.let_go"
        assert isinstance(await task, Unavailable)


async def test_a_process_that_dies_in_start_is_a_failed_start_with_the_cause():
    async with node(Partner, DiesAtStart) as system:
        with pytest.raises(Unavailable, match="ended with status 9"):
            await system.call("dies.anything")


async def test_a_service_that_dies_too_often_is_quarantined_and_the_rest_goes_on():
    async with node(supervision=Supervision(intensity=1)) as system:
        for _ in range(2):
            await system.until("store", "ready")
            await outcome(system.call("store.die", how="SIGKILL"))
        await system.until("store", "quarantined")
        assert await system.call("partner.double", to=1)


async def test_the_deadline_holds_for_a_process_that_stands_still():
    async with node() as system:
        pid = await pid_of(system)
        os.kill(pid, signal.SIGSTOP)
        error = await outcome(system.call("store.who", deadline=0.05))
        assert error.code == "DEADLINE"
        error = await outcome(anext(system.stream("store.count", to=1, deadline=0.05)))
        assert error.code == "DEADLINE"
        os.kill(pid, signal.SIGKILL)


async def test_a_process_that_does_not_heed_its_stop_is_killed(monkeypatch):
    monkeypatch.setattr("microkernel.isolation.host.STOP_TIMEOUT", 0.05)
    monkeypatch.setattr("microkernel.isolation.host.KILL_TIMEOUT", 0.05)
    monkeypatch.setattr("microkernel.isolation.host.ROUND", 0.05)
    monkeypatch.setattr("microkernel.isolation.host.START_GRACE", 0.05)
    async with node() as system:
        pid = await pid_of(system)
        os.kill(pid, signal.SIGSTOP)  # it answers nothing, SIGTERM neither
        await system.restart("store")
        assert pid not in children()
        assert await pid_of(system) != pid


async def test_nothing_is_left_of_a_node_with_processes():
    before = children()
    async with node() as system:
        assert len(children() - before) == 2  # the service's, and the spare
        await outcome(system.call("store.die", how="SIGKILL"))
        await pid_of(system)
    assert children() == before


async def test_what_the_process_has_started_ends_with_it():
    async with node() as system:
        pid = await pid_of(system)
        assert os.getpgid(pid) == pid != os.getpgid(0)


async def test_the_process_does_not_get_the_nodes_token(monkeypatch):
    monkeypatch.setenv("MICROKERNEL_TOKEN", "a-token-that-is-long-enough")
    async with node() as system:
        assert b"MICROKERNEL_TOKEN" not in environment_of(await pid_of(system))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the children of a process that was killed")
async def test_the_process_dies_with_its_node():
    program = (
        "import asyncio, sys\n"
        "from isolation_services import Partner, Store\n"
        "from microkernel.config import Config\n"
        "from microkernel.testing import TestKernel\n"
        "async def main():\n"
        "    async with TestKernel(Partner, Store, config=Config(isolation={'store': 'process'})) as system:\n"
        "        print((await system.call('store.self_description'))['pid'], flush=True)\n"
        "        await system.call('store.block', seconds=3600)\n"
        "asyncio.run(main())\n"
    )
    tests = str(Path(__file__).parents[2])
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": tests}
    )
    async with asyncio.timeout(60):
        pid = int(await parent.stdout.readline())
        handle = os.pidfd_open(pid)
        try:
            parent.kill()
            await parent.wait()
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(handle, gone.set)
            await gone.wait()  # though its loop is blocked
        finally:
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)


# The spare


async def test_a_spare_that_has_died_is_not_given_to_anybody():
    spare = Spare()
    first = await spare.take()
    waiting = spare._child
    waiting.kill()
    await waiting.exited
    second = await spare.take()
    assert second.pid != waiting.pid
    assert not second.exited.done()
    await spare.close()
    for child in (first, second):
        await child.end()


async def test_a_spare_is_ended_with_its_node_and_none_follows():
    before = children()
    spare = Spare()
    child = await spare.take()
    await spare.close()
    other = await spare.take()
    await child.end()
    await other.end()
    assert children() == before


async def test_the_end_of_a_child_is_heard_where_the_system_has_no_pidfd(monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    child = Child()
    child.kill()
    async with asyncio.timeout(10):
        assert await child.exited == -signal.SIGKILL
    await child.end()
    assert child.pid not in children()


async def test_a_child_ends_by_itself_when_its_link_is_closed():
    child = Child()
    await child.end()
    assert child.exited.result() in {3, -signal.SIGTERM, -signal.SIGKILL}
    assert child.pid not in children()


def test_an_ending_is_told_in_words():
    assert ending(7, 0) == "process 7 ended with status 0"
    assert ending(7, -9) == "process 7 was ended by SIGKILL"
    assert ending(7, -250) == "process 7 was ended by signal 250"


# Killed again and again


async def kill_and_recover(system, calls):
    """Kill the process with so many calls in flight; the seconds until the next call succeeds."""
    pid = await pid_of(system)
    running = await hanging(system, calls)
    os.kill(pid, signal.SIGKILL)
    began = time.perf_counter()
    while isinstance(await outcome(system.call("store.who")), MicrokernelError):
        pass  # it was sent before the death was known
    took = time.perf_counter() - began
    for error in await asyncio.gather(*running):
        assert isinstance(error, Unavailable)
        assert error.may_have_run
        assert error.causes[0] == f"process {pid} was ended by SIGKILL"
    return took


async def kill_often(times, calls):
    async with node(limit=3600) as system:
        await kill_and_recover(system, calls)
        gc.collect()
        tasks, open_files, memory, processes = len(asyncio.all_tasks()), files(), memory_kib(), len(children())
        threads = threading.active_count()
        took = [await kill_and_recover(system, calls) for _ in range(times)]
        gc.collect()
        await pid_of(system)
        while len(asyncio.all_tasks()) > tasks:  # those that end the last incarnation
            await asyncio.sleep(0.001)
        assert files() == open_files
        assert threading.active_count() == threads
        assert len(children()) == processes
        grown = memory_kib() - memory
        assert system.kernel.instance("store").in_flight == 0
    ordered = sorted(took)
    print(  # noqa: T201 - figures, for those who run it with -s
        f"\nkilled {times} times with {calls} calls in flight: next call after {statistics.median(took) * 1e3:.0f} ms "
        f"(p50), {ordered[round((len(took) - 1) * 0.99)] * 1e3:.0f} ms (p99), {ordered[-1] * 1e3:.0f} ms (worst); "
        f"memory grew by {grown} KiB"
    )
    return grown


async def test_killed_30_times_with_64_calls_in_flight_every_call_ends_with_the_cause_and_nothing_is_left():
    assert await kill_often(30, 64) < 16 * 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_killed_1000_times_with_64_calls_in_flight_every_call_ends_with_the_cause_and_nothing_is_left():
    assert await kill_often(1000, 64) < 32 * 1024
