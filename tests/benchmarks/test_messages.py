"""The benchmark of messages: its arithmetic, its rounds, its processes; and three of its lines, to see their form."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import time

import pytest

from benchmarks.measure import Measure
from benchmarks.messages.__main__ import _wanted, main
from benchmarks.messages.goals import Outcome, outcomes, render_outcomes
from benchmarks.messages.idle import masked
from benchmarks.messages.in_process import BatchPublisher, Publisher, QueuePublisher
from benchmarks.messages.line import Contender, Goal, Line, Running
from benchmarks.messages.lines import LINES
from benchmarks.messages.open_loop import Arrivals, run_open_loop
from benchmarks.messages.process import Broken, Process, serve, split_address
from benchmarks.messages.rounds import Rounds
from benchmarks.messages.rounds import start as start_processes
from benchmarks.messages.stopwatch import percentile, percentiles, rate, times
from benchmarks.table import rows_of

RATE = Measure("rate", "k/s", less_is_better=False, scale=1e-3)
TIME = Measure("time", "ms", scale=1e3)


# Arithmetic


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (0.999, 100), (1.0, 100)]
)
def test_a_percentile_is_the_least_number_that_so_many_do_not_exceed(share, expected):
    assert percentile(range(1, 101), share) == expected


def test_percentiles_do_not_need_an_order():
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "p999": 3.0}


async def test_a_rate_counts_all_batches_but_the_one_that_warms_up():
    batches = []

    async def step(count):
        batches.append(count)
        await asyncio.sleep(0.01)

    began = time.perf_counter()
    found = await rate(step, 0.05, batch=10)
    took = time.perf_counter() - began
    assert set(batches) == {10}
    assert 10 * (len(batches) - 1) / found < took  # the first batch's time is not in it either


async def test_a_measurement_takes_one_sample_at_least_however_little_time_there_is():
    async def step(*_):
        pass

    assert len(await times(step, 0.0)) == 1
    assert await rate(step, 0.0, batch=1) > 0


# Open loop


def test_arrivals_are_the_same_for_a_seed_and_as_many_as_the_rate_says():
    moments = list(Arrivals(1000, 10, seed=3))
    assert moments == list(Arrivals(1000, 10, seed=3)) != list(Arrivals(1000, 10, seed=4))
    assert moments == sorted(moments)
    assert 9_500 < len(moments) < 10_500  # five standard deviations of a Poisson process
    assert moments[0] > 0
    assert moments[-1] < 10


async def test_a_call_that_was_held_up_counts_from_when_it_was_to_be_sent():
    """One call blocks the loop; those that were to be sent meanwhile have waited, and a closed loop would not know."""
    held = 0.2
    first = True

    async def call():
        nonlocal first
        if first:
            first = False
            time.sleep(held)  # noqa: ASYNC251 - it blocks: that is the point

    arrivals = Arrivals(500, 0.3, seed=1)
    late = await run_open_loop(call, arrivals)
    began = next(iter(arrivals))
    meanwhile = [moment for moment in arrivals if moment < began + held / 2]
    assert len(late) == len(list(arrivals))
    assert sum(each > held / 2 for each in late) >= len(meanwhile) > 10


async def test_an_open_loop_raises_what_a_call_raises():
    async def call():
        raise ConnectionError("the link broke")

    with pytest.raises(ExceptionGroup) as caught:
        await run_open_loop(call, Arrivals(1000, 1.0, seed=1))
    assert caught.group_contains(ConnectionError, match="the link broke")


# Goals


def line(*goals, contenders=("ours", "peer"), question=None, **options):
    return Line(
        name="line",
        measures={"rate": RATE, "time": TIME},
        contenders=tuple(Contender(name, "", f"{__name__}:{name}") for name in contenders),
        question=question or (lambda running, _: running.client.ask("measure")),
        goals=goals,
        **options,
    )


@pytest.mark.parametrize(
    ("goal", "said", "met"),
    [
        (Goal("rate", 1.5), "above 1.5 k/s", True),
        (Goal("rate", 2.5), "above 2.5 k/s", False),
        (Goal("time", 6.0), "below 6 ms", True),
        (Goal("time", 4.0), "below 4 ms", False),
        (Goal("rate", 0.5, "peer"), "at least 0.5x peer", True),
        (Goal("rate", 0.6, "peer"), "at least 0.6x peer", False),
        (Goal("time", 2.0, "peer"), "at least 2x peer", True),
        (Goal("time", 2.1, "peer"), "at least 2.1x peer", False),
        (Goal("time", 2.1, "somebody who is not installed"), "at least 2.1x somebody who is not installed", None),
    ],
)
def test_a_goal_is_judged_by_the_median_in_the_unit_that_is_shown(goal, said, met):
    ours, peer = {"rate": 2000.0, "time": 0.005}, {"rate": 4000.0, "time": 0.01}
    subject = line(goal)
    rows = rows_of([{"ours": ours, "peer": peer}], [RATE, TIME], "ours", ["peer"])
    (outcome,) = outcomes(subject, rows, "ours")
    assert (outcome.goal, outcome.met) == (said, met)


def test_a_goal_that_was_missed_is_said_as_plainly_as_one_that_was_met():
    text = render_outcomes([Outcome("a", "above 1", None, met) for met in (True, False, None)])
    assert [row.split()[-1] for row in text.splitlines()] == ["met", "MISSED", "open"]


def test_the_goals_of_the_lines_name_measures_and_contenders_that_they_have():
    for each in LINES:
        for goal in each.goals:
            assert goal.key in each.measures, each.name
            assert goal.against in {None, *(contender.name for contender in each.contenders)}, each.name


def test_no_two_lines_have_a_name_or_a_measure_in_common():
    names = [each.name for each in LINES]
    measures = [measure.name for each in LINES for measure in each.measures.values()]
    assert len(set(names)) == len(names)
    assert len(set(measures)) == len(measures)


# Rounds


class Scripted:
    """A process that is none."""

    def __init__(self, name, log, value=None):
        self.name, self.log, self.value = name, log, value

    def ask(self, method):
        self.log.append((method, self.name))
        if self.value is None:
            raise Broken("it fell over")
        return self.value

    def close(self):
        self.log.append(("close", self.name))


def rounds_of(subject, log, tmp_path, values):
    def start(contender, _):
        log.append(("start", contender.name))
        return Running(Scripted(contender.name, log, values[contender.name]), None)

    return Rounds(subject, subject.contenders, tmp_path, quick=True, tell=lambda _: None, start=start)


def test_contenders_are_asked_in_an_order_that_turns_and_end_in_the_end(tmp_path):
    log = []
    rounds = rounds_of(line(), log, tmp_path, {"ours": {"rate": 1.0}, "peer": {"rate": 2.0}})
    found = rounds.run(2)
    assert log[:2] == [("start", "ours"), ("start", "peer")]
    assert [name for what, name in log if what == "measure"] == ["ours", "peer", "peer", "ours"]
    assert sorted(log[-2:]) == [("close", "ours"), ("close", "peer")]
    assert found == [{"ours": {"rate": 1.0}, "peer": {"rate": 2.0}}] * 2


def test_a_contender_that_breaks_is_out_and_said_so_and_the_others_go_on(tmp_path):
    log = []
    rounds = rounds_of(line(), log, tmp_path, {"ours": {"rate": 1.0}, "peer": None})
    assert rounds.run(2) == [{"ours": {"rate": 1.0}}] * 2
    assert rounds.left == {"peer": "it fell over"}
    assert log.count(("measure", "peer")) == 1
    assert ("close", "peer") in log


def test_a_line_may_want_fresh_processes_and_fewer_rounds(tmp_path):
    log = []
    subject = line(contenders=("ours",), rounds=2, fresh=True)
    assert len(rounds_of(subject, log, tmp_path, {"ours": {"time": 1.0}}).run(7)) == 2
    assert [what for what, _ in log] == ["start", "measure", "close"] * 2


def test_rounds_that_are_complete_stay_when_a_later_one_is_interrupted(tmp_path):
    log, asked = [], []

    def question(running, _):
        asked.append(running)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"rate": 1.0}

    rounds = rounds_of(line(question=question), log, tmp_path, {"ours": {}, "peer": {}})
    with pytest.raises(KeyboardInterrupt):
        rounds.run(5)
    assert rounds.found == [{"ours": {"rate": 1.0}, "peer": {"rate": 1.0}}]
    assert sorted(log[-2:]) == [("close", "ours"), ("close", "peer")]


@pytest.mark.parametrize(
    ("contender", "why"),
    [
        (Contender("a", "", "m:A"), None),
        (Contender("a", "", "m:A", packages={"no_such_module": "no-such-package"}), "not installed: no-such-package"),
        (Contender("a", "", "m:A", requires="microkernel.port:Port.no_such"), "there is no Port.no_such yet"),
        (Contender("a", "", "m:A", requires="microkernel.no_such:Thing"), "there is no Thing yet"),
        (Contender("a", "", "m:A", requires="microkernel.port:Port.call"), None),
    ],
)
def test_who_cannot_take_part_says_what_is_missing(contender, why):
    assert contender.missing() == why


# Processes


class Subject:
    """What a process holds in these tests."""

    def __init__(self, address=""):
        self.address_given = address
        self.stopped = False

    async def start(self):
        if self.address_given == "broken":
            raise OSError("cannot start")

    async def stop(self):
        self.stopped = True

    async def address(self):
        return f"http://host:1 token {self.address_given}".strip()

    async def fail(self):
        raise ValueError("asked too much")

    async def fail_together(self):
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fail())


async def test_the_far_side_of_the_pipe_answers_line_by_line_until_it_is_closed():
    subject = Subject()
    questions = asyncio.StreamReader()
    questions.feed_data(b'{"method": "address"}\n{"method": "fail"}\n{"method": "fail_together"}\n')
    questions.feed_eof()
    answers = io.BytesIO()
    await serve(subject, questions, answers)
    assert [json.loads(each) for each in answers.getvalue().splitlines()] == [
        {"value": None, "error": None},
        {"value": "http://host:1 token", "error": None},
        {"value": None, "error": "ValueError: asked too much"},
        {"value": None, "error": "ValueError: asked too much"},
    ]
    assert subject.stopped


async def test_what_cannot_start_says_why_and_is_asked_nothing():
    questions = asyncio.StreamReader()
    answers = io.BytesIO()
    await serve(Subject("broken"), questions, answers)
    assert json.loads(answers.getvalue())["error"] == "OSError: cannot start"


def test_a_process_that_cannot_be_started_is_broken_with_the_end_of_its_log(tmp_path):
    with pytest.raises(Broken, match="ModuleNotFoundError: No module named 'no_such_module'"):
        Process("no_such_module:Thing", tmp_path / "log")


def test_a_client_is_started_with_the_address_of_its_server_and_both_end(tmp_path):
    here = "benchmarks.messages.aiohttp_peer"
    running = start_processes(Contender("echo", "", f"{here}:EchoClient", f"{here}:EchoServer"), tmp_path / "log")
    try:
        assert running.server is not None
        assert running.server.pid != running.client.pid
        before = running.server.processor_time()
        found = running.client.ask("round_trips", seconds=0.01)
        assert 0 < found["p50"] <= found["p99"] <= found["p999"]
        assert found["count"] >= 1
        assert running.server.processor_time() > before  # it was the server that answered
        with pytest.raises(Broken, match="AttributeError.*no_such_question"):
            running.client.ask("no_such_question")
        os.kill(running.client.pid, signal.SIGKILL)
        with pytest.raises(Broken, match="the process of .*EchoClient ended"):
            running.client.ask("round_trips", seconds=0.01)
    finally:
        running.close()
    for each in (running.client, running.server):
        with pytest.raises(ProcessLookupError):
            os.kill(each.pid, 0)


def test_an_address_is_a_url_and_perhaps_a_token():
    assert split_address("http://127.0.0.1:1 secret") == ("http://127.0.0.1:1", "secret")
    assert split_address("http://127.0.0.1:1") == ("http://127.0.0.1:1", "")


# What is measured


@pytest.mark.parametrize("kind", [Publisher, BatchPublisher, QueuePublisher])
async def test_each_reader_gets_each_event_that_is_counted(kind):
    publisher = kind()
    await publisher.start()
    try:
        assert await publisher.deliveries(0.001) > 0
    finally:
        await publisher.stop()


@pytest.mark.parametrize("length", [0, 5, 125, 126, 300])
def test_a_masked_frame_says_its_length_as_the_rfc_does(length):
    frame = masked(b"x" * length)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    small = frame[1] & 0x7F
    assert (small, len(frame)) == ((length, length + 6) if length < 126 else (126, length + 8))
    if small == 126:
        assert int.from_bytes(frame[2:4], "big") == length


def test_a_quick_run_prints_every_line_its_goals_and_the_machine_and_writes_all_numbers(tmp_path, capsys):
    file = tmp_path / "result.json"
    code = main(["--quick", "--rounds", "1", "--only", "stream", "offload", "boot", "--json", str(file)])
    shown = capsys.readouterr().out
    result = json.loads(file.read_bytes())
    assert code == 0
    assert [each["name"] for each in result["lines"]] == ["stream", "offload", "boot"]
    for each in result["lines"]:
        assert each["skipped"] == {}
        assert len(each["rounds"]) == 1
        assert set(each["rounds"][0]) == set(each["contenders"]) == set(each["commands"])
        assert all(value > 0 for taken in each["rounds"][0].values() for value in taken.values())
        assert all(goal["met"] in {True, False} for goal in each["goals"])
        assert all(row["measure"]["name"] in shown for row in each["rows"])
    assert result["quick"] is True
    assert result["machine"]["cpu"] in shown
    assert "microkernel" in result["versions"]
    assert "benchmarks.messages.process benchmarks.messages.offload:ThreadPool" in shown


def test_a_word_that_no_line_has_in_its_name_is_refused_with_the_names_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "telepathy"])
    assert "no line has 'telepathy' in its name: bound call" in capsys.readouterr().err


def test_a_word_stands_for_the_line_of_that_name_or_else_for_all_that_have_it_in_theirs():
    assert [each.name for each in _wanted(["stream"])] == ["stream"]
    assert [each.name for each in _wanted(["tensor s", "boot"])] == ["tensor stream", "boot"]
    assert [each.name for each in _wanted(["pipelined"])] == ["pipelined 64", "pipelined 1024"]
    assert _wanted([]) == list(LINES)
