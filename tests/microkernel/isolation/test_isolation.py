"""The same service, the same tests, wherever it runs: inline, in tasks, in a thread, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from contextlib import asynccontextmanager

import pytest
from isolation_services import (
    VARIABLE,
    Count,
    Entry,
    FailsToStart,
    NeverStarts,
    Partner,
    Put,
    Secret,
    Store,
    Weights,
)

from microkernel import Service, handles
from microkernel.buffers import Array
from microkernel.config import Config, Supervision, isolation_of, read_config
from microkernel.errors import (
    DeadlineExceeded,
    Deadlock,
    Denied,
    Internal,
    Invalid,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from microkernel.executor import Executor
from microkernel.plugins import Plugin, load_file
from microkernel.service import Isolation
from microkernel.testing import TestKernel
from microkernel.trace import new_trace

EVERYWHERE = [isolation.value for isolation in Isolation]
AWAY = ["thread", "process"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Restarts come soon."""
    monkeypatch.setattr("microkernel.supervisor.FIRST_DELAY", 0.01)


@pytest.fixture(params=EVERYWHERE)
def isolation(request):
    return request.param


@asynccontextmanager
async def node(isolation, *kinds, settings=None, **supervision):
    kinds = kinds or (Partner, Secret, Store)
    config = Config(
        isolation={kind.name: isolation for kind in kinds if kind not in {Partner, Secret}},
        supervision=Supervision(**supervision),
    )
    async with asyncio.timeout(60), TestKernel(*kinds, config=config, settings=settings) as system:
        yield system


@asynccontextmanager
async def said(system, what):
    """At the end of the block, wait until the store has said so since its beginning."""
    async with system.subscribe("store.said") as events:
        yield
        async for event in events:
            if event.body["what"] == what:
                return


async def ended(task):
    with contextlib.suppress(asyncio.CancelledError):
        await task


# Calls


async def test_a_result_is_of_the_type_that_the_handler_declares(isolation):
    async with node(isolation) as system:
        assert await system.call("store.put", key="a", value=b"\x00\xff") is None
        entry = await system.call("store.get", Put(key="a"))
        assert entry == Entry(key="a", value=b"\x00\xff", score=float("-inf"))
        assert await system.call("store.entries") == [Entry(key="a", value=b"\x00\xff")]


async def test_plain_values_come_back_as_they_are(isolation):
    async with node(isolation) as system:
        given = {"text": "ä", "list": [1, None, {"deep": True}], "raw": b"\xff"}
        assert await system.call("store.plain", given) == {"given": given, "bytes": b"\x00\xff", "number": 1.5}


async def test_arrays_pass_both_ways_with_a_type_and_without(isolation):
    async with node(isolation) as system:
        sent = Weights("w", Array(bytes(range(12)), "uint8", (3, 4)))
        back = await system.call("store.weights", sent)
        assert back == Weights("w", Array(bytes(range(12))[::-1], "uint8", (3, 4)))
        assert await system.call("store.array") == [Array(b"abcd", "int16", (2,))]


async def test_a_message_that_does_not_fit_is_refused_before_it_is_sent(isolation):
    async with node(isolation) as system:
        with pytest.raises(Invalid, match=r"store\.put.*value"):
            await system.call("store.put", key="a", value=1)


async def test_an_error_keeps_all_that_it_says(isolation):
    async with node(isolation) as system:
        with pytest.raises(NotFound) as failure:
            await system.call("store.get", key="nowhere")
        error = failure.value
        assert (error.message, error.remedy, error.field) == ("no entry 'nowhere'", "put it first", "key")
        assert error.service == "store"


async def test_what_a_handler_did_not_mean_to_raise_is_internal_and_has_its_cause(isolation):
    async with node(isolation) as system:
        with pytest.raises(Internal, match="store raised ZeroDivisionError: by zero") as failure:
            await system.call("store.fail")
        assert failure.value.causes == ("ZeroDivisionError: by zero",)
        with pytest.raises(Internal):
            await system.call("store.exit")
        assert (await system.call("store.self_description"))["incarnation"] == 1


async def test_a_handler_knows_who_calls_how_urgent_it_is_and_how_long_it_has(isolation):
    async with node(isolation) as system:
        trace = new_trace()
        who = await system.call("store.who", deadline=30.0, priority=2, trace=trace)
        assert 0.0 < who.pop("left") <= 30.0
        assert who == {"caller": "kernel", "priority": 2, "chain": ["store.who"], "trace": trace.trace_id}


async def test_many_calls_at_once_come_back_to_those_who_made_them(isolation):
    async with node(isolation) as system:
        answers = await asyncio.gather(*(system.call("store.plain", number=number) for number in range(200)))
        assert [answer["given"]["number"] for answer in answers] == list(range(200))


async def test_a_handler_changes_nothing_of_its_callers_context_or_task(isolation):
    if isolation == "inline":
        pytest.skip("an inline handler runs in its caller's task, context and all")
    async with node(isolation) as system:
        name = asyncio.current_task().get_name()
        assert await system.call("store.set_variable") == "of the handler"
        assert VARIABLE.get() == "unset"
        assert asyncio.current_task().get_name() == name


async def test_describe_and_accounting_are_the_same(isolation):
    async with node(isolation) as system:
        await system.call("store.who")
        [described] = await system.call("kernel.describe", name="store")
        handlers = {handler.address: handler for handler in described.handlers}
        assert handlers["store.who"].calls == 1
        assert handlers["store.get"].message["$ref"].endswith("Put")
        assert handlers["store.get"].idempotent


# Time and number


async def test_a_call_ends_at_its_deadline_and_its_handler_is_ended(isolation):
    async with node(isolation) as system, said(system, "let go"):
        with pytest.raises(DeadlineExceeded) as failure:
            await system.call("store.hang", deadline=0.05)
        assert failure.value.may_have_run


async def test_cancelling_the_caller_cancels_the_handler_and_waits_for_its_end(isolation):
    async with node(isolation) as system:
        async with said(system, "hangs"):
            task = asyncio.create_task(system.call("store.hang"))
        task.cancel()
        await ended(task)
        assert task.cancelled()
        assert (await system.call("store.counters"))["closed"] == 1


async def test_no_more_calls_run_at_a_time_than_the_handler_allows(isolation):
    async with node(isolation) as system:
        tasks = [asyncio.create_task(system.call("store.alone", seconds=0.01)) for _ in range(6)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert max(await asyncio.gather(*tasks[1:])) == 1


async def test_a_full_queue_is_told(isolation):
    async with node(isolation) as system:
        tasks = [asyncio.create_task(system.call("store.alone", seconds=5.0)) for _ in range(9)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await system.call("store.alone", seconds=0.0)
        for task in tasks:
            task.cancel()
            await ended(task)


# Streams


async def test_a_stream_comes_in_order_and_ends(isolation):
    async with node(isolation) as system:
        entries = [entry async for entry in system.stream("store.count", Count(to=100))]
        assert entries == [Entry(key=str(number), value=b"\xff") for number in range(100)]


async def test_a_stream_runs_no_further_ahead_than_its_credit(isolation):
    async with node(isolation) as system, system.stream("store.count", to=1000) as entries:
        await anext(entries)
        for _ in range(20):
            await system.call("store.counters")
        assert (await system.call("store.counters"))["made"] <= 1 + 4


async def test_a_stream_that_is_left_is_closed_when_aclose_returns(isolation):
    async with node(isolation) as system:
        async with system.stream("store.count", to=1000) as entries:
            await anext(entries)
        assert (await system.call("store.counters"))["closed"] == 1


async def test_a_reader_sends_items_into_a_stream(isolation):
    async with node(isolation) as system, system.stream("store.add_up", to=1000) as totals:

        async def send():
            for number in range(50):
                await totals.send(Count(to=number))
            await totals.finish()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            last = [total async for total in totals][-1]
        assert last == 1000 + sum(range(50))


async def test_a_service_sends_items_into_the_stream_of_another(isolation):
    async with node(isolation) as system:
        totals = await system.call("store.add_up_at_partner", to=50)
        assert totals[-1] == sum(range(50))


async def test_a_stream_that_fails_gives_what_it_had_and_then_its_error(isolation):
    async with node(isolation) as system:
        items = system.stream("store.break_off")
        assert await anext(items) == 1
        with pytest.raises(NotFound, match="the second one is gone"):
            await anext(items)


async def test_a_streams_deadline_ends_it(isolation):
    async with node(isolation) as system:
        with pytest.raises(DeadlineExceeded):
            async for _ in system.stream("store.count", to=10_000, wait=0.01, deadline=0.1):
                pass


async def test_a_reader_that_is_cancelled_closes_the_stream(isolation):
    async with node(isolation) as system, said(system, "stream closed"):
        first = asyncio.Event()

        async def read():
            async for _ in system.stream("store.count", to=10_000, wait=0.001):
                first.set()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        await ended(task)


# What a service does itself


async def test_a_service_calls_what_it_needs_and_gets_values_with_their_fields(isolation):
    async with node(isolation) as system:
        assert await system.call("store.ask_partner", to=4) == "8 inf"


async def test_a_call_goes_on_in_the_name_of_the_one_that_is_answered(isolation):
    async with node(isolation) as system:
        trace = new_trace()
        who = await system.call("store.who_asks", deadline=30.0, priority=1, trace=trace)
        assert who == {
            "caller": "store",
            "user": None,
            "priority": 1,
            "timed": True,
            "chain": ["store.who_asks", "partner.who"],
            "trace": trace.trace_id,
        }


async def test_a_service_may_call_only_what_it_names(isolation):
    async with node(isolation) as system:
        with pytest.raises(Denied, match=r"store has no right to call secret\.read"):
            await system.call("store.ask_secret")


async def test_the_error_of_a_called_service_goes_through(isolation):
    async with node(isolation) as system:
        with pytest.raises(NotFound, match="there is no such thing") as failure:
            await system.call("store.ask_missing")
        assert failure.value.remedy == "look elsewhere"


async def test_a_cancelled_call_cancels_what_it_waits_for_in_another_service(isolation):
    async with node(isolation) as system, system.subscribe("partner.let_go") as events:
        async with said(system, "asks"):
            task = asyncio.create_task(system.call("store.ask_hang"))
        while not system.calls_in_flight().get("partner.hang"):
            await asyncio.sleep(0.001)
        task.cancel()
        await ended(task)
        assert (await anext(events)).subject == "partner.let_go"


async def test_a_service_reads_streams_of_others_to_their_end_or_leaves_them(isolation):
    async with node(isolation) as system:
        assert await system.call("store.sum_of", to=300) == sum(range(300))
        partner = system.kernel.instance("partner").service
        partner.closed.clear()
        assert await system.call("store.first_of", to=300) == "0"
        await partner.closed.wait()


async def test_a_service_sends_one_way(isolation):
    async with node(isolation) as system, system.subscribe("partner.noted") as events:
        await system.call("store.send_note", key="a")
        assert (await anext(events)).body == {"key": "a"}


async def test_a_service_publishes(isolation):
    async with node(isolation) as system, system.subscribe("store.*") as events:
        await system.call("store.put", key="a")
        event = await anext(events)
        assert (event.subject, event.body) == ("store.changed", {"key": "a"})


async def test_a_service_may_not_tell_what_the_kernel_tells(isolation):
    async with node(isolation) as system:
        with pytest.raises(Denied, match="only the kernel tells"):
            await system.call("store.tell", subject="service.store.stopped")
        with pytest.raises(Invalid, match="no subject"):
            await system.call("store.tell", subject="not a subject")


async def test_a_denied_service_is_audited(isolation):
    async with node(isolation) as system, system.subscribe("audit.denied") as denials:
        with pytest.raises(Denied):
            await system.call("store.tell", subject="kernel.shutdown")
        denial = (await anext(denials)).body
        assert (denial.who, denial.target) == ("store", "kernel.shutdown")


async def test_a_call_beyond_the_rights_of_a_service_is_audited(isolation):
    async with node(isolation) as system, system.subscribe("audit.denied") as denials:
        with pytest.raises(Denied):
            await system.call("store.ask_secret")
        denial = (await anext(denials)).body
        assert (denial.act, denial.who, denial.target) == ("call", "store", "secret.read")


@pytest.mark.parametrize(
    ("asked", "act", "target"),
    [
        ({"call": "partner.double"}, "call", "partner.double"),
        ({"monitor": "partner"}, "subscribe", "service.partner.*"),
        ({"hear": "partner.noted"}, "subscribe", "partner.noted"),
    ],
)
async def test_a_narrowed_port_is_held_to_its_rights_and_audited_by_its_holder(isolation, asked, act, target):
    async with node(isolation) as system, system.subscribe("audit.denied") as denials:
        with pytest.raises(Denied, match="guest of store has no right to"):
            await system.call("store.on_behalf", asked)
        denial = (await anext(denials)).body
        assert (denial.act, denial.target, denial.who, denial.user) == (act, target, "guest of store", "ana")


async def test_a_denial_that_a_service_tells_of_names_the_address(isolation):
    async with node(isolation) as system, system.subscribe("audit.denied") as denials:
        assert await system.call("store.on_behalf", {"show": "out"}) == "shown out"
        denial = (await anext(denials)).body
        assert (denial.act, denial.target, denial.who, denial.peer) == (
            "connect",
            "the door",
            "guest of store",
            "10.0.0.7",
        )


async def test_a_service_delivers_when_there_is_room(isolation):
    async with node(isolation) as system:
        events = system.kernel.router.bus.subscribe("any.thing", limit=1, overflow="wait")
        calls = [
            asyncio.create_task(system.call("store.tell_when_there_is_room", subject="any.thing", number=number))
            for number in range(5)
        ]
        assert sorted([(await anext(events)).body["number"] for _ in range(5)]) == [0, 1, 2, 3, 4]
        await asyncio.gather(*calls)
        events.close()


async def test_a_service_watches_another(isolation):
    async with node(isolation) as system:
        assert await system.call("store.watch_partner") == "Up partner 1"


async def test_an_event_reaches_the_methods_that_wait_for_it(isolation):
    async with node(isolation) as system:
        async with said(system, "hello"):
            system.publish("store.heard", what="hello")
        assert (await system.call("store.counters"))["heard"] == 1


async def test_an_event_that_cannot_be_handled_is_a_dead_letter_and_not_the_last_event(isolation):
    async with node(isolation) as system:
        async with system.subscribe("dead.letter") as letters:
            system.publish("store.unbearable", what="x")
            assert "what was said is not known" in (await anext(letters)).body["why"]
        async with said(system, "again"):
            system.publish("store.heard", what="again")


async def test_a_subscription_of_a_handler_misses_nothing_that_is_published_after_it(isolation):
    async with node(isolation) as system:
        async with said(system, "listens"):
            task = asyncio.create_task(system.call("store.hear_once", subject="any.thing"))
        system.publish("any.thing", number=1)
        event = await task
        assert (event["subject"], event["body"]) == ("any.thing", {"number": 1})
        assert event["offset"] > 0


async def test_timers_tick(isolation):
    async with node(isolation) as system:
        while (await system.call("store.counters"))["ticks"] < 3:
            await asyncio.sleep(0.005)


async def test_a_service_has_its_settings_its_names_and_its_folder(isolation, tmp_path):
    async with node(isolation, settings={"store": {"greeting": "good day"}}) as system:
        about = await system.call("store.self_description")
        assert (about["greeting"], about["limit"]) == ("good day", 3)
        assert (about["node"], about["name"], about["incarnation"]) == ("node0", "store", 1)
        assert about["folder"] == str(system.root / "store")
        assert (system.root / "store" / "incarnation").read_text() == "1"


async def test_what_a_service_logs_is_in_the_nodes_log(isolation, caplog):
    with caplog.at_level(logging.INFO, logger="microkernel"):
        async with node(isolation) as system, asyncio.timeout(20):
            await system.call("store.warn")
            while "beware of the dog" not in caplog.text:
                await asyncio.sleep(0.005)
    assert "started with hello" in caplog.text
    assert all(record.name == "microkernel.store" for record in caplog.records if "dog" in record.message)


async def test_a_service_runs_work_on_a_devices_threads_or_is_told_that_it_cannot(isolation):
    async with node(isolation) as system:
        await system.kernel.executors.add(Executor("cpu0"))
        if isolation == "process":
            with pytest.raises(PreconditionFailed, match="'cpu0' belongs to the node's own process"):
                await system.call("store.run_in", device="cpu0")
        else:
            assert await system.call("store.run_in", device="cpu0") == 1024
        with pytest.raises((NotFound, PreconditionFailed), match="cpu1"):
            await system.call("store.run_in", device="cpu1")


async def test_a_service_may_have_an_executor_of_its_own(isolation):
    async with node(isolation) as system:
        assert await system.call("store.run_own") == 1024


# Life


async def test_a_restart_stops_the_old_incarnation_and_starts_the_next(isolation):
    async with node(isolation) as system:
        before = await system.call("store.self_description")
        await system.restart("store")
        after = await system.call("store.self_description")
        assert after["incarnation"] == 2
        assert (system.root / "store" / "stopped").read_text() == "1"
        if isolation == "process":
            assert after["pid"] != before["pid"] != os.getpid()
        if isolation == "thread":
            assert threading.get_ident() not in {before["thread"], after["thread"]}


async def test_calls_made_while_a_service_restarts_wait_for_it(isolation):
    async with node(isolation) as system:
        restart = asyncio.create_task(system.restart("store"))
        answers = await asyncio.gather(*(system.call("store.who") for _ in range(20)))
        await restart
        assert len(answers) == 20


async def test_calls_that_outlive_the_drain_are_ended_with_the_reason(isolation):
    async with node(isolation) as system:
        async with said(system, "hangs"):
            task = asyncio.create_task(system.call("store.hang"))
        await system.restart("store")
        with pytest.raises(Unavailable, match="is being restarted") as failure:
            await task
        assert failure.value.may_have_run


async def test_a_task_of_the_service_that_fails_is_a_crash_and_it_is_restarted(isolation):
    async with node(isolation) as system:
        async with system.subscribe("service.store.ready") as events:
            await system.call("store.spawn_failure")
            assert (await anext(events)).body["incarnation"] == 2
        assert (await system.call("store.self_description"))["incarnation"] == 2


async def test_a_task_of_the_service_ends_with_it(isolation):
    async with node(isolation) as system:
        async with said(system, "works"):
            await system.call("store.spawn_work")
        await system.restart("store")
        assert (system.root / "store" / "work ended").exists()


async def test_a_start_that_fails_says_why(isolation):
    async with node(isolation, Partner, FailsToStart) as system:
        with pytest.raises(Unavailable, match="there is no database"):
            await system.call("fails.anything")


async def test_a_start_that_does_not_end_is_ended(isolation):
    async with node(isolation, Partner, NeverStarts) as system:
        with pytest.raises(Unavailable, match="did not start within 0.1 s"):
            await system.call("never.anything")


async def test_a_service_of_a_file_runs_anywhere_and_is_read_anew(isolation, tmp_path):
    path = tmp_path / "my_service.py"
    text = (
        "from microkernel import Message, Service, handles\n"
        "class Note(Message):\n    text: str\n"
        "class Mine(Service):\n"
        "    @handles\n    async def say(self) -> Note:\n        return Note(text='VERSION')\n"
    )
    path.write_text(text.replace("VERSION", "one"))
    [plugin] = await load_file(path)
    async with asyncio.timeout(60), TestKernel(plugin, config=Config(isolation={"my_service": isolation})) as system:
        assert (await system.call("my_service.say")).text == "one"
        path.write_text(text.replace("VERSION", "two!"))
        await system.restart("my_service")
        assert (await system.call("my_service.say")).text == "two!"


async def test_several_instances_have_a_thread_or_a_process_each(isolation):
    config = Config(isolation={"store": isolation}, instances={"store": 2})
    async with asyncio.timeout(60), TestKernel(Partner, Store, config=config) as system:
        about = [await system.call("store.self_description") for _ in range(4)]
        assert len({one["folder"] for one in about}) == 2
        homes = {(one["pid"], one["thread"] if isolation == "thread" else 0) for one in about}
        assert len(homes) == (2 if isolation in AWAY else 1)


# The setting


def test_the_configuration_goes_over_the_class(tmp_path):
    path = tmp_path / "mk.toml"
    path.write_text('[isolation]\nstore = "process"\n')
    config = read_config(path)
    assert isolation_of(config, "store", Store) is Isolation.PROCESS
    assert isolation_of(config, "partner", Partner) is Isolation.INLINE
    assert isolation_of(Config(isolation={"kernel": Isolation.PROCESS}), "kernel", Store) is Isolation.INLINE


def test_an_unknown_isolation_is_named_with_its_line(tmp_path):
    path = tmp_path / "mk.toml"
    path.write_text('[isolation]\nstore = "planet"\n')
    with pytest.raises(Invalid, match=r"mk\.toml, line 1: isolation: .*'planet'"):
        read_config(path)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"stroe": "thread"}, "no service is named 'stroe'"),
        ({"kernel": "thread"}, "the kernel itself is always inline"),
    ],
)
async def test_a_setting_for_what_cannot_be_isolated_ends_the_boot(section, why):
    with pytest.raises(Invalid, match=why):
        async with TestKernel(Partner, config=Config(isolation=section)):
            raise AssertionError("it must not come up")


async def test_a_class_that_says_something_else_is_broken():
    class Odd(Service):
        name = "odd"
        isolation = "planet"

    async with TestKernel(Odd) as system:
        assert system.state("odd") == "broken"
        [why] = [status.why for status in await system.call("kernel.services") if status.name == "odd"]
        assert "isolation is inline, task, thread, process, not 'planet'" in why


async def test_a_class_that_another_process_cannot_find_does_not_start_and_says_so():
    class Hidden(Service):
        name = "hidden"
        isolation = "process"
        restart_policy = "temporary"

    async with TestKernel(Hidden) as system:
        with pytest.raises(Unavailable, match=r"another process cannot find .*Hidden"):
            await system.call("hidden.anything")


async def test_an_object_that_was_given_can_move_to_a_thread_and_not_to_a_process():
    async with node("thread", Partner, Secret, Store()) as system:
        assert (await system.call("store.self_description"))["thread"] != threading.get_ident()
    store = Store()
    config = Config(isolation={"store": "process"}, supervision=Supervision(intensity=0))
    async with TestKernel(Partner, store, config=config, wait_ready=False) as system:
        with pytest.raises(Unavailable, match="given as an object cannot move"):
            await system.call("store.who")


async def test_a_service_that_waits_for_itself_is_ended_by_its_deadline(isolation):
    class Circle(Service):
        name = "circle"

        @handles(concurrency=1)
        async def go(self) -> None:
            await self.call("circle.go")

    if isolation == "process":
        pytest.skip("a class of a test is not found by another process")
    config = Config(isolation={"circle": isolation})
    async with TestKernel(Plugin("circle", "test", kind=Circle), config=config) as system:
        with pytest.raises((Deadlock, DeadlineExceeded)):
            await system.call("circle.go", deadline=0.1)
