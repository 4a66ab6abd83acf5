"""The benchmark of scheduling: its arithmetic, its queues, its picture; and its lines in a hurry, to see their form."""

from __future__ import annotations

import json
import statistics
from xml.etree import ElementTree as ET

import pytest
from benchmark_reference import section_of

from benchmarks import judged
from benchmarks.scheduling import __main__ as program
from benchmarks.scheduling import decisions
from benchmarks.scheduling.decisions import ALONG, CASES, CURVE, NEW, Steady
from benchmarks.scheduling.line import Contender, Goal, Line, asked
from benchmarks.scheduling.lines import LINES, NAMES, wanted
from benchmarks.scheduling.shares import jain
from benchmarks.scheduling.skewed import MOST, costs_of
from benchmarks.table import rows_of

PEERS = {"tasks-threads", "tasks-processes"}
MODEL = {"interactive-answers", "interactive-map"}
QUICK = {"decision", "shares", "seeds-run", "tasks-threads"}  # those that `make test` has the time for


# Arithmetic


def test_jains_index_is_1_where_all_have_what_they_weigh_and_a_half_where_one_of_two_has_all():
    weights = {"three": 3.0, "one": 1.0}
    assert jain({"three": 6.0, "one": 2.0}, weights) == 1.0
    assert jain({"three": 1.0, "one": 0.0}, weights) == 0.5
    assert 0.5 < jain({"three": 1.0, "one": 1.0}, weights) < 1.0


def test_costs_by_zipfs_law_are_the_same_for_a_seed_and_mostly_small():
    costs = costs_of(2000, seed=1)
    assert costs == costs_of(2000, seed=1) != costs_of(2000, seed=2)
    assert min(costs) == 1
    assert max(costs) <= MOST
    assert statistics.median(costs) < statistics.fmean(costs) / 5
    assert max(costs) < sum(costs) / 8 / 10, "no more than a tenth of what a worker does, or no order would do"


@pytest.mark.parametrize("name", CASES | NEW)
def test_a_queue_stays_as_long_as_it_is_while_decisions_are_made(name):
    steady = Steady((CASES | NEW)[name], 50)
    steady.decide(500)
    assert len(steady) == 50


# Lines


def test_every_goal_is_about_a_measure_of_its_line_and_every_line_and_measure_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES)
    measures = [measure.name for line in LINES for measure in line.measures.values()]
    assert len(set(measures)) == len(measures)
    for line in LINES:
        assert {goal.key for goal in line.judged().goals} <= {measure.name for measure in line.judged().measures}
        assert {goal.against for goal in line.goals} <= {None, *(each.name for each in line.contenders)}


def test_a_word_that_is_no_lines_name_stands_for_all_that_have_it_in_theirs():
    assert [line.name for line in wanted(["decision"])] == ["decision"]
    assert [line.name for line in wanted(["tasks", "zipf"])] == ["tasks-threads", "tasks-processes", "zipf"]
    assert wanted([]) == list(LINES)


def test_the_reference_tells_of_every_line():
    section = section_of("scheduling")
    for name in NAMES:
        assert f"`{name}`" in section


# The picture


def rows(seconds=1e-6):
    taken = {measure.name: seconds * place for place, measure in enumerate(CURVE.measures.values(), 1)}
    return rows_of([{"microkernel": taken}], list(CURVE.measures.values()), "microkernel", [])


def test_the_picture_is_well_formed_and_has_a_curve_for_each_policy():
    root = ET.fromstring(decisions.picture(rows(), "a machine"))
    space = {"svg": "http://www.w3.org/2000/svg"}
    lines = root.findall("svg:polyline", space)
    assert [len(line.attrib["points"].split()) for line in lines] == [len(ALONG)] * len(CASES)
    assert {case.about for case in CASES.values()} <= {each.text for each in root.findall("svg:text", space)}


def test_the_curves_are_a_table_with_a_line_for_each_length():
    assert CURVE.show is not None
    _, *lines = CURVE.show(rows()).splitlines()
    assert [line.split()[0] for line in lines] == [f"{length:,}" for length in ALONG]
    assert lines[0].split()[2:] == ["1.00", "9.00", "17.00", "25.00", "33.00"]


# The run


def line(client, **fields):
    fast = Contender("peer", "somebody else", "no_such_package:Nobody", packages={"no_such_package": "no-such-package"})
    ours = Contender("ours", "ours", client)
    measures = {"time": decisions.LINE.measures["fifo/10"]}
    question = asked("measure", {"seconds": 2e-6}, {"seconds": 1e-6})
    return Line(
        "line", measures, (ours, fast), question, goals=(Goal("time", 1.5), Goal("time", 2.0, "peer")), **fields
    )


def run(monkeypatch, tmp_path, capsys, subject, *more):
    monkeypatch.setattr(program, "wanted", lambda _: [subject])
    code = program.main(["--json", str(tmp_path / "out.json"), *more])
    return code, capsys.readouterr().out, json.loads((tmp_path / "out.json").read_bytes())["lines"][0]


def test_a_peer_that_is_not_installed_is_left_out_by_name_and_ours_is_measured(monkeypatch, tmp_path, capsys):
    prepared = []
    subject = line("benchmarks.scheduling.decisions:Decisions", prepare=lambda: prepared.append(1))
    monkeypatch.setattr(judged, "Rounds", rounds_of({"ours": {subject.measures["time"].name: 2e-6}}))
    code, out, result = run(monkeypatch, tmp_path, capsys, subject)
    assert code == 0
    assert prepared == [1]
    assert "line: peer was left out: not installed: no-such-package" in out
    assert "below 1.5  MISSED" in out
    assert result["findings"][0]["met"] is False
    _, out, result = run(monkeypatch, tmp_path, capsys, subject, "--alone")
    assert list(result["contenders"]) == ["ours"]
    assert "was left out" not in out


def rounds_of(found):
    class Rounds:
        left = {}

        def __init__(self, *_, **__):
            self.found = []

        def run(self, count):
            self.found += [found] * count

    return Rounds


def test_ours_that_does_not_start_is_no_success(monkeypatch, tmp_path, capsys):
    code, out, result = run(monkeypatch, tmp_path, capsys, line("no_such_module:Nobody"))
    assert code == 1
    assert "No module named 'no_such_module'" in result["skipped"]["ours"]
    assert "line: ours was left out" in out


def test_a_line_that_does_not_exist_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit):
        program.main(["--only", "telepathy"])
    assert "no line has 'telepathy' in its name: decision" in capsys.readouterr().err


def measure(names, tmp_path, capsys, *more):
    """A quick run of these lines: it has every measure of every line, and prints what is in its table."""
    file, curves = tmp_path / "result.json", tmp_path / "curves.svg"
    code = program.main(["--quick", "--only", *sorted(names), "--json", str(file), "--plot", str(curves), *more])
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
            assert all(value >= 0 for value in found.values())
        if subject.show is None:
            assert all(finding["measure"]["name"] in shown for finding in each["findings"])
            assert sum(finding["goal"] != "" for finding in each["findings"]) >= len(
                [goal for goal in subject.goals if goal.against in {None, *each["contenders"]}]
            )
    assert curves.exists() == (CURVE.name in names)


def test_a_quick_run_measures_all_that_its_lines_say(tmp_path, capsys):
    measure(QUICK, tmp_path, capsys, "--alone")


@pytest.mark.slow
def test_a_quick_run_of_the_other_lines_measures_all_that_they_say(tmp_path, capsys):
    measure(set(NAMES) - QUICK - MODEL, tmp_path, capsys, "--alone")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_quick_run_asks_a_node_beside_work_in_the_background(default_model, tmp_path, capsys):
    measure(MODEL, tmp_path, capsys)


@pytest.mark.peer
def test_the_peers_take_part_where_they_are_installed(tmp_path, capsys):
    pytest.importorskip("ray")
    pytest.importorskip("distributed")
    measure(PEERS, tmp_path, capsys)
