"""The benchmark of the engine: its arithmetic, its fair fight, its table and its picture; no model, no clock."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import msgspec
import pytest

from benchmarks.engine import __main__ as program
from benchmarks.engine import streams
from benchmarks.engine.fair import RunningTuned, Tuned
from benchmarks.engine.findings import findings, render
from benchmarks.engine.line import Goal, Group, Line, Question, Taken
from benchmarks.engine.lines import GROUPS, NAMES, wanted
from benchmarks.engine.stage import Stage
from benchmarks.engine.stall import TIMES, with_and_without
from benchmarks.engine.tasks import (
    Curve,
    FairTask,
    gaps_beside,
    gaps_together,
    p50_gap,
    p99_gap,
    prefill_rate,
    rate_together,
)
from benchmarks.first_token.contender import Answer, Broken, Prompt
from benchmarks.measure import Measure
from benchmarks.plot import Curve as Drawn
from benchmarks.plot import Panel, draw
from benchmarks.table import rows_of

RATE = Measure("decode", "tokens/s", less_is_better=False)
TIME = Measure("gap", "ms", scale=1e3)
PROMPT = Prompt([], [1])


def answer(*times, asked=0.0, prompt_tokens=1):
    return Answer(prompt_tokens, len(times), times[0], times[-1], list(times), asked)


# Arithmetic


def test_a_rate_counts_the_tokens_that_come_while_all_streams_run():
    early = answer(1.0, 2.0, 3.0, 4.0)
    late = answer(2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
    assert rate_together([early]) == 1.0
    assert rate_together([early, late]) == (2 + 4) / 2  # from 2, when the second has begun, to 4, when the first ends


def test_streams_that_never_run_together_have_no_rate():
    with pytest.raises(Broken, match="of 2 streams, one had ended before"):
        rate_together([answer(1.0, 2.0), answer(2.0, 3.0)])


def test_gaps_are_those_of_each_stream_while_all_run():
    found = gaps_together([answer(1.0, 2.0, 4.0, 7.0), answer(2.0, 3.0, 8.0)])
    assert found == [2.0, 3.0, 1.0]  # not the first one of the first, nor the last of the second


def test_gaps_beside_something_are_those_that_reach_into_its_time():
    assert gaps_beside([answer(1.0, 2.0, 4.0, 7.0, 11.0)], since=2.5, until=6.0) == [2.0, 3.0]


def test_percentiles_of_gaps_are_over_all_streams():
    slow = answer(*range(0, 300, 3))
    fast = answer(*range(300))
    assert p50_gap([slow, fast]) == 1.0
    assert p99_gap([slow, fast]) == 3.0


def test_prefill_is_the_prompts_tokens_by_the_time_to_the_first_of_the_answer():
    assert prefill_rate([answer(2.0, 2.1, prompt_tokens=600)]) == 300.0


def test_a_stall_is_the_gap_while_the_prompt_is_read_by_the_gap_without():
    alone = [answer(0.0, 1.0, 2.0, 3.0), answer(0.0, 1.0, 2.0, 3.0)]
    late = answer(6.0, 7.0, asked=2.0, prompt_tokens=2000)
    beside = [answer(0.0, 1.0, 2.0, 5.0, 7.0, 8.0), answer(0.0, 1.0, 2.0, 4.0, 7.0, 8.0), late]
    assert with_and_without(alone, beside)[TIMES.name] == 3.0


def test_a_prompt_that_comes_when_all_have_ended_stalls_nobody_and_is_said_to_have_shown_nothing():
    alone = [answer(0.0, 1.0, 2.0)]
    with pytest.raises(Broken, match="ended before the prompt came"):
        with_and_without(alone, [*alone, answer(4.0, 5.0, asked=3.0)])


# The fair fight


class Engine:
    """Makes tokens at the pace of its settings."""

    def __init__(self, paces):
        self.paces = paces
        self.asked = []

    def ask(self, prompts, tokens, settings):
        self.asked.append(settings["flash"])
        pace = self.paces[settings["flash"]]
        return [answer(*(pace * (place + 1) for place in range(tokens))) for _ in prompts]

    def close(self):
        pass


class Worker:
    name, about, command = "peer", "a peer", ("peer",)

    def __init__(self, engine):
        self.engine = engine

    def start(self, prompt):
        return self.engine

    def notes(self):
        return []


def tuned(paces, tell=lambda _: None):
    engine = Engine(paces)
    return engine, Tuned(Worker(engine), {"flash": {"flash": 1}, "no flash": {"flash": 0}}, turns=2, tell=tell)


def test_a_peer_runs_with_the_setting_that_it_is_fastest_with_and_that_is_said():
    told = []
    engine, peer = tuned({1: 0.02, 0: 0.01}, told.append)
    task = FairTask(RATE, [], [[PROMPT]], 3, rate_together)
    assert task.run(peer.start(PROMPT)) == (pytest.approx(100.0), 3)
    assert engine.asked == [1, 0, 1, 0, 0]  # two turns of each, and then the question itself
    assert told == ["  peer tried flash 50, no flash 100 tokens/s: no flash"]
    assert peer.notes() == ["peer ran with no flash: decode"]


def test_the_settings_are_tried_once_a_line_however_many_rounds_there_are():
    engine, peer = tuned({1: 0.01, 0: 0.02})
    task = FairTask(RATE, [], [[PROMPT]], 3, rate_together)
    task.run(peer.start(PROMPT))
    engine.asked.clear()
    task.run(peer.start(PROMPT))  # of the next round, in a new process
    assert engine.asked == [1]
    other = FairTask(Measure("other", "tokens/s", less_is_better=False), [], [[PROMPT]], 3, rate_together)
    engine.paces = {1: 0.02, 0: 0.01}
    running = peer.start(PROMPT)
    other.run(running)
    assert peer.choices == {"decode": "flash", "other": "no flash"}
    engine.asked.clear()
    task.run(running)
    assert engine.asked == [1], "a line kept the settings of the one before it"


def test_the_best_setting_of_a_time_is_the_least():
    _, peer = tuned({1: 0.02, 0: 0.01})
    FairTask(TIME, [], [[PROMPT]], 3, p50_gap).run(peer.start(PROMPT))
    assert peer.choices == {"gap": "no flash"}


def test_who_has_one_way_to_run_is_asked_once():
    asked = []

    class Plain:
        def generate(self, prompts, tokens):
            asked.append(tokens)
            return [answer(*range(tokens)) for _ in prompts]

    assert FairTask(RATE, [[PROMPT]], [[PROMPT]], 3, rate_together).run(Plain()) == (1.0, 3)
    assert asked == [2, 3]


def test_a_curve_gives_all_its_numbers_from_the_same_answers():
    engine, peer = tuned({1: 0.01, 0: 0.02})
    curve = Curve(RATE, [], [[PROMPT]], 3, rate_together, {TIME: p50_gap})
    running = peer.start(PROMPT)
    assert isinstance(running, RunningTuned)
    values, fewest = curve.take(running)
    assert values == {RATE: pytest.approx(100.0), TIME: pytest.approx(0.01)}
    assert (fewest, len(engine.asked)) == (3, 5)


# Lines


def test_every_goal_is_about_a_measure_of_its_line_and_every_line_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES)
    measures = [measure.name for group in GROUPS for line in group.lines for measure in line.measures]
    assert len(set(measures)) == len(measures)
    for group in GROUPS:
        for line in group.lines:
            assert {goal.key for goal in line.goals} <= {measure.name for measure in line.measures}


def test_questions_make_a_task_of_their_own_measure_smaller_when_it_is_to_be_quick():
    class Prompts:
        def short(self, count=1):
            return [PROMPT] * count

        def long(self, tokens):
            return Prompt([], [1] * tokens)

    for line in (line for group in GROUPS for line in group.lines if isinstance(line, Question)):
        usual, quick = line.make(Prompts(), False), line.make(Prompts(), True)
        assert (usual.measure,) == (quick.measure,) == line.measures
        assert (len(quick.questions), quick.tokens) < (len(usual.questions), usual.tokens)


def test_a_word_that_is_no_lines_name_stands_for_all_that_have_it_in_theirs():
    def names(*words):
        return [line.name for group in wanted(words) for line in group.lines]

    assert names("decode") == ["decode"]
    assert names("streams") == ["streams"]
    assert names("streams-") == ["streams-8", "streams-16", "big-streams-8"]
    assert names("stall", "context") == ["context", "stall"]
    assert names() == list(NAMES)


# The table


def found(line, *rounds):
    return findings(line, rows_of(list(rounds), line.measures, "ours", ["slow", "fast"]), "ours")


LINE = Line(
    name="line",
    measures=(RATE, TIME),
    goals=(Goal("decode", 2.5, "slow"), Goal("decode", 0.6, "fast"), Goal("decode", 9.0, "gone"), Goal("gap", 20.0)),
)
ROUND = {
    "ours": {"decode": 100.0, "gap": 0.01},
    "slow": {"decode": 50.0, "gap": 0.03},
    "fast": {"decode": 150.0},
}


def test_a_goal_against_a_peer_is_judged_by_the_ratio_and_one_without_by_the_number_itself():
    slow, fast, alone, beside = found(LINE, ROUND)
    assert (slow.against, slow.goal, slow.met) == ("slow", "2.5x", False)
    assert (fast.against, fast.goal, fast.met) == ("fast", "0.6x", True)
    assert (alone.against, alone.goal, alone.met) == (None, "below 20", True)
    assert (beside.against, beside.goal, beside.met) == ("slow", "", None)
    assert beside.ratio is not None
    assert beside.ratio.median == pytest.approx(3.0)


def test_what_is_better_when_it_is_more_has_a_goal_to_exceed():
    line = Line(name="line", measures=(RATE,), goals=(Goal("decode", 100.0),))
    alone, *_ = found(line, ROUND)
    assert (alone.goal, alone.met) == ("above 100", False)


def test_a_measure_that_nobody_took_is_left_out():
    assert found(LINE, {"slow": {"decode": 1.0}}) == []


def test_the_table_has_goals_beside_what_was_found_and_misses_as_plain_as_hits():
    faster = msgspec.convert({**ROUND, "ours": {"decode": 120.0, "gap": 0.01}}, dict)
    lines = [line.split() for line in render(found(LINE, ROUND, faster, faster)).splitlines()]
    assert lines[1] == ["decode", "tokens/s", "120", "slow", "50.0", "2.40x", "[2.20..2.40]", "2.5x", "MISSED"]
    assert lines[2] == ["fast", "150", "0.80x", "[0.73..0.80]", "0.6x", "met"]
    assert lines[3] == ["gap", "ms", "10.0", "[10.0..10.0]", "below", "20", "met"]
    assert lines[4] == ["slow", "30.0", "3.00x", "[3.00..3.00]"]


# The curves


def curves():
    def numbers(pace):
        return {
            measures[count].name: value
            for count in streams.COUNTS
            for measures, value in ((streams.RATE, count * 10 * pace), (streams.P50, 0.01), (streams.P99, 0.02))
        }

    return Taken(contenders={"ours": "", "peer <&>": ""}, rounds=[{"ours": numbers(3), "peer <&>": numbers(1)}])


def test_the_curves_are_a_table_with_a_line_for_each_number_of_streams():
    (line,) = streams.GROUP.lines
    assert line.show is not None
    head, *lines = line.show(curves().rows(line)).splitlines()
    assert head.split() == ["streams", "ours", "p50", "ms", "p99", "ms", "peer", "<&>", "p50", "ms", "p99", "ms"]
    assert [each.split() for each in lines][3] == ["8", "240", "10", "20", "80", "10", "20"]
    assert len(lines) == len(streams.COUNTS)


def test_the_picture_is_well_formed_and_has_a_curve_for_each_and_two_grounds():
    text = streams.picture(curves(), "a model, 2 threads")
    root = ET.fromstring(text)
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert len(root.findall("svg:polyline", space)) == 2 + 4  # throughput; p50 and p99
    labels = {each.text for each in root.findall("svg:text", space)}
    assert {"ours", "peer <&>", "a model, 2 threads", "16", "streams"} <= labels
    assert "prefers-color-scheme: dark" in text


def test_higher_is_further_up_and_twice_as_many_a_step_to_the_right():
    text = draw("t", [Panel("p", "x", [Drawn("one", [(1, 0.0), (2, 50.0), (4, 100.0)], 0)])])
    polyline = ET.fromstring(text).find("{http://www.w3.org/2000/svg}polyline")
    assert polyline is not None
    (x1, y1), (x2, y2), (x3, y3) = (map(float, point.split(",")) for point in polyline.attrib["points"].split())
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y1 - y2 == pytest.approx(y2 - y3)
    assert y1 > y2 > y3


@pytest.mark.parametrize("points", [[(4, 7.0)], [(1, 0.0)], [(1, 0.003), (2, 12345.0)]])
def test_a_picture_can_be_drawn_of_any_numbers(points):
    text = draw('"q" & <t>', [Panel("p", "x", [Drawn("one", points, 0, dashed=True)])])
    ET.fromstring(text)
    assert "nan" not in text


# The run


def stage(tmp_path, rounds=3, tell=lambda _: None):
    return Stage(
        tmp_path / "m.gguf",
        threads=2,
        rounds=rounds,
        quick=True,
        scratch=tmp_path,
        cache=tmp_path / "cache",
        tell=tell,
    )


def test_told_to_stop_the_rounds_that_are_complete_stay(tmp_path):
    def one(number):
        if number == 2:
            raise KeyboardInterrupt
        return {"ours": {"decode": float(number)}}

    told = []
    subject = stage(tmp_path, tell=told.append)
    assert subject.repeat(one) == [{"ours": {"decode": 0.0}}, {"ours": {"decode": 1.0}}]
    assert subject.interrupted
    assert told == ["interrupted in round 3"]


def run(monkeypatch, tmp_path, capsys, take, *more):
    model = tmp_path / "tiny.gguf"
    model.touch()
    monkeypatch.setattr(program, "wanted", lambda _: [Group("something", (LINE,), take)])
    code = program.main(["--model", str(model), "--json", str(tmp_path / "out.json"), *more])
    return code, capsys.readouterr().out, json.loads((tmp_path / "out.json").read_bytes())


def test_the_program_prints_the_table_and_what_else_there_is_to_know_and_writes_all_numbers(
    monkeypatch, tmp_path, capsys
):
    def take(stage, lines):
        return Taken(
            contenders={"ours": "our engine", "slow": "a slow one", "gone": "a third"},
            rounds=stage.repeat(lambda _: ROUND),
            skipped={"gone": "not installed: gone"},
            notes=["slow ran with no flash: decode"],
        )

    code, out, result = run(monkeypatch, tmp_path, capsys, take, "--rounds", "2")
    assert code == 0
    assert "2.00x" in out
    assert "MISSED" in out
    assert "something:\n  gone was left out: not installed: gone\n  slow ran with no flash: decode" in out
    assert result["groups"][0]["taken"]["rounds"] == [ROUND, ROUND]
    assert result["groups"][0]["findings"][0]["goal"] == "2.5x"


def test_a_group_that_cannot_be_measured_is_said_so_and_is_no_success(monkeypatch, tmp_path, capsys):
    def take(stage, lines):
        raise Broken("the node ended")

    code, out, result = run(monkeypatch, tmp_path, capsys, take)
    assert code == 1
    assert "something:\n  nothing was measured: the node ended" in out
    assert result["groups"][0]["taken"] is None


def test_a_line_that_does_not_exist_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit):
        program.main(["--only", "decode,nonsense"])
    error = capsys.readouterr().err
    assert "no line has 'nonsense' in its name" in error
    assert "seen-before" in error
