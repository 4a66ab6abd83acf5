"""The benchmark's arithmetic and its table; no model, no clock."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest

from benchmarks.first_token.contender import Answer, Broken, Late, Memory, Prompt
from benchmarks.first_token.measures import Task, rate_of_all, rate_of_one, tasks
from benchmarks.first_token.node import _answer_of
from benchmarks.first_token.rounds import Rounds
from benchmarks.first_token.worker import Clock, Worker, note, serve
from benchmarks.measure import Measure
from benchmarks.spread import ratio, spread_of
from benchmarks.table import render, rows_of

TIME = Measure("start", "s")
RATE = Measure("decode", "tokens/s", less_is_better=False)


def test_a_ratio_above_one_is_a_win_whichever_way_the_measure_goes():
    assert ratio(2.0, 6.0, less_is_better=True) == 3.0
    assert ratio(6.0, 2.0, less_is_better=False) == 3.0


def test_quartiles_are_interpolated_and_keep_their_order():
    spread = spread_of([4.0, 1.0, 3.0, 2.0])
    assert (spread.low, spread.median, spread.high) == (1.75, 2.5, 3.25)
    assert (spread.count, spread.least, spread.most) == (4, 1.0, 4.0)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.5, 1.6, 1.7], "win"),
        ([0.5, 0.6, 0.7], "loss"),
        ([0.8, 1.0, 1.2], "even"),
        ([0.5, 1.4, 1.5, 1.6, 1.7], "win"),  # one bad round of five does not undo it
        ([9.0], "once"),
    ],
)
def test_a_verdict_needs_the_middle_half_of_the_rounds(ratios, verdict):
    assert spread_of(ratios).verdict == verdict


def test_the_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians():
    rounds = [
        {"ours": {"start": 1.0}, "peer": {"start": 2.0}},
        {"ours": {"start": 10.0}, "peer": {"start": 30.0}},
        {"ours": {"start": 3.0}, "peer": {"start": 12.0}},
    ]
    _, peer = rows_of(rounds, [TIME], "ours", ["peer"])
    assert peer.ratio is not None
    assert peer.ratio.median == 3.0  # of 2, 3, 4; the medians would give 12 / 3
    assert peer.value.median == 12.0


def test_a_round_in_which_a_contender_was_out_gives_no_ratio():
    rounds = [
        {"ours": {"start": 1.0}, "peer": {"start": 2.0}},
        {"ours": {"start": 1.0}, "peer": {}},
        {"ours": {}, "peer": {"start": 9.0}},
    ]
    _, peer = rows_of(rounds, [TIME], "ours", ["peer"])
    assert peer.ratio is not None
    assert peer.ratio.count == 1
    assert peer.value.count == 2


def test_a_loss_is_printed_like_a_win():
    rounds = [
        {"ours": {"decode": 100.0 + each}, "slow": {"decode": 50.0}, "fast": {"decode": 200.0}} for each in range(3)
    ]
    table = render(rows_of(rounds, [RATE], "ours", ["slow", "fast"]))
    (slow,) = [line.split() for line in table.splitlines() if "slow" in line]
    (fast,) = [line.split() for line in table.splitlines() if "fast" in line]
    assert slow == ["slow", "50.0", "2.02x", "2.01..2.03", "2.00..2.04", "win"]
    assert fast == ["fast", "200", "0.51x", "0.50..0.51", "0.50..0.51", "loss"]


def test_a_measure_nobody_took_has_no_block():
    table = render(rows_of([{"ours": {"start": 1.0}}], [TIME, RATE], "ours", []))
    assert "start" in table
    assert "decode" not in table


def test_one_streams_rate_leaves_its_prompt_out_and_many_streams_do_not():
    assert rate_of_one([Answer(60, 11, first=1.0, last=2.0)]) == 10.0
    together = [Answer(60, 10, first=1.0, last=2.0), Answer(60, 30, first=1.0, last=4.0)]
    assert rate_of_all(together) == 10.0


def test_a_task_warms_up_apart_and_takes_the_median_of_its_questions():
    asked = []

    class Clockwork:
        def generate(self, prompts, tokens):
            asked.append((len(prompts), tokens))
            return [Answer(1, tokens, first=float(len(asked)), last=9.0)]

    prompt = Prompt([], [1])
    task = Task(TIME, [[prompt, prompt]], [[prompt]] * 3, 4, lambda answers: answers[0].first)
    assert task.run(Clockwork()) == (3.0, 4)  # of 2, 3, 4: the warm-up's 1 does not count
    assert asked == [(2, 2), (1, 4), (1, 4), (1, 4)]


def test_an_answer_that_ended_early_is_noted():
    class Terse(Scripted):
        def generate(self, prompts, tokens):
            return [Answer(1, min(tokens, 7), first=1.0, last=2.0) for _ in prompts]

    rounds = quick_rounds([Terse("terse", [])])
    rounds.run(0)
    assert rounds.notes[-1] == "terse: 8 streams, in all: an answer ended after 7 of 32 tokens"


class Scripted:
    """A contender without a process."""

    about = ""
    command = ()

    def __init__(self, name, log, *, breaks=False):
        self.name = name
        self.log = log
        self.breaks = breaks

    def start(self, prompt):
        self.log.append(("start", self.name, prompt.ids[0]))
        return self

    def generate(self, prompts, tokens):
        self.log.append(("ask", self.name, prompts[0].ids[0]))
        if self.breaks:
            raise Broken("it fell over")
        return [Answer(len(prompt.ids), tokens, first=1.0, last=2.0) for prompt in prompts]

    def memory(self):
        return Memory(peak=1000, private=None)

    def close(self):
        self.log.append(("close", self.name))


class Numbered:
    """Prompts whose first token is their number."""

    def __init__(self):
        self.number = 0

    def short(self, count=1):
        return [self.long(1) for _ in range(count)]

    def long(self, tokens):
        self.number += 1
        return Prompt([], [self.number] * tokens)


def quick_rounds(contenders, tell=lambda _: None):
    prompts = Numbered()
    return Rounds(contenders, prompts, lambda: tasks(prompts, quick=True), first_start=False, tell=tell)


def test_contenders_get_the_same_prompts_in_an_order_that_turns():
    log = []
    rounds = quick_rounds([Scripted("a", log), Scripted("b", log)])
    rounds.run(0)
    first = [entry for entry in log if entry[0] == "ask"]
    log.clear()
    rounds.run(1)
    second = [entry for entry in log if entry[0] == "ask"]
    assert first[0][1] == "a"
    assert second[0][1] == "b"
    for asked in (first, second):
        prompts = {name: [number for _, by, number in asked if by == name] for name in "ab"}
        assert prompts["a"] == prompts["b"]
        assert len(set(prompts["a"])) == len(prompts["a"]), "a prompt came twice: a cache could know it"
    assert {number for *_, number in first}.isdisjoint(number for *_, number in second)


def test_a_contender_that_breaks_is_out_and_said_so_and_the_others_go_on():
    log, told = [], []
    contenders = [Scripted("good", log), Scripted("bad", log, breaks=True)]
    rounds = quick_rounds(contenders, told.append)
    found = rounds.run(0)
    assert rounds.left == {"bad": "it fell over"}
    assert any("bad is out: it fell over" in line for line in told)
    assert found["good"]["memory, peak resident"] == 1000
    assert "memory, without mapped files" not in found["good"]
    assert [entry for entry in log if entry[0] == "close"] == [("close", "good"), ("close", "bad")]
    log.clear()
    rounds.run(1)
    assert not [entry for entry in log if entry[1] == "bad"]


def test_an_answers_times_are_those_of_its_text_and_its_tokens_those_of_its_usage():
    def event(content, finish=None, usage=None):
        choices = [] if usage else [{"delta": {"content": content}, "finish_reason": finish}]
        return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n"

    usage = {"prompt_tokens": 2, "completion_tokens": 5}
    lines = [
        (0.1, event("")),
        (0.2, b"\n"),
        (0.3, event("one")),
        (0.4, b": keep-alive\n"),
        (0.5, event("two", "length")),
        (0.6, event("", usage=usage)),
        (0.7, b"data: [DONE]\n"),
    ]
    assert _answer_of(lines, Prompt([], [7, 8])) == Answer(2, 5, first=0.3, last=0.5)
    with pytest.raises(Broken, match="read 2 tokens, and the others are given 3"):
        _answer_of(lines, Prompt([], [7, 8, 9]))
    with pytest.raises(Broken, match="broke off"):
        _answer_of(lines[:3], Prompt([], [7, 8]))


def test_the_far_side_of_the_pipe_answers_line_by_line_until_it_is_closed():
    class Engine:
        def generate(self, prompts, tokens):
            return [Answer(len(prompt), tokens, first=0.5, last=math.pi) for prompt in prompts]

    answers = io.BytesIO()
    serve(Engine(), io.BytesIO(b'{"prompts": [[1, 2], [3]], "tokens": 4}\n' * 2), answers)
    one = [
        {"prompt_tokens": 2, "tokens": 4, "first": 0.5, "last": math.pi},
        {"prompt_tokens": 1, "tokens": 4, "first": 0.5, "last": math.pi},
    ]
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [one, one]


def test_what_else_an_engine_takes_comes_over_the_pipe_by_name():
    class Engine:
        def generate(self, prompts, tokens, late=None):
            return [Answer(len(late["prompt"]), tokens, first=0.5, last=1.0)]

    answers = io.BytesIO()
    serve(
        Engine(), io.BytesIO(b'{"prompts": [[1]], "tokens": 4, "late": {"prompt": [1, 2, 3], "after": 2}}\n'), answers
    )
    assert json.loads(answers.getvalue())[0]["prompt_tokens"] == 3


def test_a_late_prompt_is_due_when_each_stream_has_its_tokens_and_is_timed_from_then_on():
    clock, late = Clock([[1], [2, 3]]), Late([4, 5, 6], after=2)
    for stream in (0, 0, 1):
        assert not clock.is_due(late)
        clock.note(stream)
    clock.note(1)
    assert clock.is_due(late)
    number = clock.join(late)
    clock.note(number)
    first, second, third = clock.answers()
    assert (first.tokens, second.tokens, third.tokens) == (2, 2, 1)
    assert (third.prompt_tokens, first.asked) == (3, 0.0)
    assert second.last <= third.asked <= third.first
    assert first.times == sorted(first.times)


def test_what_an_engine_notes_is_told_beside_its_numbers(tmp_path, capsys):
    log = tmp_path / "log"
    worker = Worker("ours", "", engine="", model=tmp_path, cores=1, packages={}, log=log)
    assert worker.notes() == []
    sys.stderr.write("a library's own line\n")
    note("computed by torch")
    log.write_text(capsys.readouterr().err)
    assert worker.notes() == ["ours: computed by torch"]
