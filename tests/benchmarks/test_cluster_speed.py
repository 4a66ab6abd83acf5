"""The benchmark of a cluster: its arithmetic, its client, and its lines in a hurry, to see their form."""

from __future__ import annotations

import asyncio
import json
import math
import os

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from benchmark_reference import section_of

from benchmarks.cluster import __main__ as program
from benchmarks.cluster.crowd import crowd
from benchmarks.cluster.lines import LINES, NAMES, wanted
from benchmarks.cluster.load import Broken, Load
from benchmarks.cluster.work import Mark, begun_elsewhere, mark, marks
from benchmarks.messages.process import Process

MODEL = {"prefix"}
QUICK = {"remote-call", "gateway-first-token"}  # those that `make test` has the time for


# Arithmetic


async def test_of_a_crowd_each_is_timed_beside_all_others():
    at_once, most = 0, 0

    async def step():
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1

    found = await crowd(step, 0.02, depth=5)
    assert most == 5
    assert len(found) >= 5
    assert all(each >= 0.0009 for each in found)


def test_a_task_leaves_a_mark_when_it_begins_and_one_when_it_ends(tmp_path):
    file = tmp_path / "marks"
    assert marks(file) == []
    assert mark(7, file=str(file), seconds=0.0) == 7
    assert [(each.what, each.item, each.pid) for each in marks(file)] == [
        ("begun", 7, os.getpid()),
        ("ended", 7, os.getpid()),
    ]


def test_half_a_mark_is_none_yet(tmp_path):
    file = tmp_path / "marks"
    file.write_bytes(b'["begun",1,2,3.5]\n["begun",2,')
    assert marks(file) == [Mark("begun", 1, 2, 3.5)]


def test_lost_tasks_are_those_begun_and_not_ended_and_the_last_one_begun_elsewhere_counts():
    seen = [Mark("begun", 1, 9, 0.1), Mark("ended", 1, 9, 0.2), Mark("begun", 2, 9, 0.3), Mark("begun", 3, 9, 0.3)]
    assert begun_elsewhere(seen, 9) is None
    seen.append(Mark("begun", 2, 8, 10.5))
    assert begun_elsewhere(seen, 9) is None
    seen += [Mark("begun", 3, 8, 10.75), Mark("begun", 4, 8, 11.0)]
    assert begun_elsewhere(seen, 9) == 10.75
    assert begun_elsewhere(seen, 7) == -math.inf


# The client


async def answers(head, *bodies, chunked=False):
    """Where a server answers so."""

    async def answer(request):
        assert (await request.json())["messages"]
        response = web.StreamResponse(headers=head)
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = sum(map(len, bodies))
        await response.prepare(request)
        for body in bodies:
            await response.write(body)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    return server, {"host": "127.0.0.1", "port": server.port}


@pytest.mark.parametrize("chunked", [False, True])
async def test_answers_are_counted_whether_their_length_is_told_or_not(chunked):
    server, door = await answers({"X": "y"}, b"a" * 100_000, b"b", chunked=chunked)
    found = await Load().rate(door, 0.05, 3)
    await server.close()
    assert found["all"] >= 6
    assert found["rate"] > 0


async def test_an_answer_that_is_none_is_no_answer():
    app = web.Application()
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    with pytest.raises(Broken, match="404"):
        await Load().rate({"host": "127.0.0.1", "port": server.port}, 0.05, 1)
    await server.close()


async def test_the_first_token_is_that_with_text_of_each_gateway():
    server, door = await answers({}, b'{"content":""}', b'{"content":"Yes."}', chunked=True)
    found = await Load().first_token(door, door, count=3, warm_up=1)
    await server.close()
    assert found["added"] == found["far"] - found["near"]
    assert found["near"] > 0


# Lines


def test_every_goal_is_about_a_measure_of_its_line_and_every_line_and_measure_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES)
    measures = [measure.name for line in LINES for measure in line.measures.values()]
    assert len(set(measures)) == len(measures)
    for line in LINES:
        assert {goal.key for goal in line.goals} <= set(line.measures)
        assert {goal.against for goal in line.goals} <= {None, *(each.name for each in line.contenders)}


def test_the_reference_tells_of_every_line():
    section = section_of("cluster")
    for name in NAMES:
        assert f"`{name}`" in section


# The run


def measure(names, tmp_path, capsys, *more):
    """A quick run of these lines: it has every measure of every line, and prints what is in its table."""
    file = tmp_path / "result.json"
    code = program.main(["--quick", "--only", *sorted(names), "--json", str(file), *more])
    shown = capsys.readouterr().out
    result = json.loads(file.read_bytes())
    assert code == 0, shown
    assert {each["name"] for each in result["lines"]} == set(names)
    for each in result["lines"]:
        (subject,) = wanted([each["name"]])
        assert each["skipped"] == {}
        (taken,) = each["rounds"]
        assert set(taken) == set(each["contenders"])
        for found in taken.values():
            assert set(found) == {measure.name for measure in subject.measures.values()}
        assert all(finding["measure"]["name"] in shown for finding in each["findings"])


def test_a_quick_run_measures_all_that_its_lines_say(tmp_path, capsys):
    measure(QUICK, tmp_path, capsys, "--alone")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quick_run_of_the_other_lines_measures_all_that_they_say(tmp_path, capsys):
    measure(set(NAMES) - QUICK - MODEL, tmp_path, capsys, "--alone")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_quick_run_talks_over_two_nodes(default_model, tmp_path, capsys):
    measure(MODEL, tmp_path, capsys)


@pytest.mark.peer
@pytest.mark.timeout(600)
def test_ray_and_dask_take_part_where_they_are_installed(tmp_path, capsys):
    pytest.importorskip("ray")
    pytest.importorskip("distributed")
    measure({"map"}, tmp_path, capsys)


@pytest.mark.peer
@pytest.mark.timeout(600)
def test_ray_serve_takes_part_where_it_is_installed(tmp_path, capsys):
    pytest.importorskip("grpc_reflection")
    measure({"gateway-rate"}, tmp_path, capsys)


def test_every_process_of_every_line_can_be_started():
    targets = [
        target
        for line in LINES
        for each in line.contenders
        for target in (each.client, each.server, each.beside)
        if target is not None
    ]
    for target in targets:
        module, _, name = target.partition(":")
        assert hasattr(__import__(module, fromlist=[name]), name), target
        assert Process.command(target)[-1] == target
