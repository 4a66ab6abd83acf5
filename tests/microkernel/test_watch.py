"""Looks at a loop's thread, on a made-up timeline: what is seen of blocks, holds and pauses."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.watch import Look, Stack, Watch

THRESHOLD = 0.05
LOOP, OTHER, THIRD = 1, 2, 3


def stack(name):
    return Stack(((compile("", name, "exec"), 1),))


def name_of(stack):
    return stack.frames[0][0].co_filename


class Timeline:
    """A loop that stands still in `blocks` of (start, end, name), beats when it can, and is at rest else."""

    def __init__(self, blocks, *, in_code=True):
        self.blocks = blocks
        self.starts = [start for start, _, _ in blocks]
        self.in_code = in_code
        self.watch = Watch(THRESHOLD, LOOP, now=0.0)
        self.beat_due = self.watch.interval
        self.told = []

    def block_at(self, moment):
        index = bisect_right(self.starts, moment) - 1
        if index >= 0 and moment < self.blocks[index][1]:
            return self.blocks[index]
        return None

    def look(self, now, processor=None):
        while self.beat_due <= now:
            block = self.block_at(self.beat_due)
            beat = self.beat_due if block is None else block[1]
            if beat > now:
                break
            self.watch.beat(beat)
            self.beat_due = beat + self.watch.interval
        block = self.block_at(now) if self.in_code else None
        look = Look(now, None if block is None else stack(block[2]), processor or {})
        self.told += self.watch.look(look, lambda thread: stack(f"thread {thread}"))


def lengths():
    return st.floats(THRESHOLD, 1.1 * THRESHOLD) | st.floats(0.001, 0.3)


@given(
    st.lists(st.tuples(lengths(), lengths()), min_size=1, max_size=8),
    st.lists(st.floats(0.0, 0.19 * THRESHOLD), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=500)
def test_every_block_of_the_threshold_is_told_once_by_name_and_length_and_none_of_half_of_it(pauses, lateness):
    blocks, at = [], 0.1
    for number, (length, pause) in enumerate(pauses):
        blocks.append((at, at + length, f"block {number}"))
        at += length + pause + THRESHOLD  # a beat in each pause
    timeline = Timeline(blocks)
    now, number = 0.0, 0
    while now < at + 1.0:
        now += timeline.watch.period + lateness[number % len(lateness)]
        number += 1
        timeline.look(now)
    told = {name_of(block.stacks[-1]): block for block in timeline.told if block.stacks}
    assert len(told) == len([block for block in timeline.told if block.stacks]), "each is told once"
    for start, end, name in blocks:
        if end - start >= THRESHOLD:
            assert name in told
        if end - start < THRESHOLD / 2:
            assert name not in told
        if name in told:
            assert {name_of(each) for each in told[name].stacks} == {name}
            assert abs(told[name].seconds - (end - start)) <= timeline.watch.interval / 2 + 1e-9


def test_a_loop_that_beats_in_time_is_never_told_of():
    timeline = Timeline([])
    for number in range(1, 251):
        timeline.look(number * timeline.watch.period)
    assert timeline.told == []


def test_a_beat_says_how_long_the_loop_had_no_turn():
    watch = Watch(THRESHOLD, LOOP, now=1.0)
    assert watch.beat(1.25) == 0.25


def test_a_block_that_does_not_end_is_told_after_a_second_and_once_more_at_its_end():
    timeline = Timeline([(0.1, 5.0, "forever")])
    for number in range(1, 200):
        timeline.look(number * timeline.watch.period)
    [goes_on, over] = timeline.told
    assert not goes_on.over
    assert 0.9 <= goes_on.seconds <= 1.1
    assert over.over
    assert abs(over.seconds - 4.9) <= timeline.watch.interval
    assert len(over.stacks) <= 64, "what is kept of a block is bounded"


def test_a_look_that_comes_late_blames_the_thread_that_computed_meanwhile():
    timeline = Timeline([(0.05, 0.35, "")], in_code=False)
    timeline.look(0.04, {LOOP: 1.0, OTHER: 1.0, THIRD: 9.0})
    timeline.look(0.351, {LOOP: 1.01, OTHER: 1.29, THIRD: 9.0})
    [block] = timeline.told
    assert [holder.thread for holder in block.holders] == [OTHER]
    assert name_of(block.holders[0].stack) == "thread 2"
    assert block.stacks == ()
    assert abs(block.seconds - 0.3) <= timeline.watch.interval


def test_a_thread_is_blamed_also_if_the_loop_waits_for_the_interpreter_within_its_code():
    timeline = Timeline([(0.05, 0.35, "innocent")])
    timeline.look(0.04, {LOOP: 1.0, OTHER: 1.0})
    timeline.look(0.349, {LOOP: 1.0, OTHER: 1.3})
    timeline.look(0.389, {LOOP: 1.0, OTHER: 1.3})
    [block] = timeline.told
    assert [holder.thread for holder in block.holders] == [OTHER]


def test_a_look_that_comes_late_blames_the_handler_if_the_loops_own_thread_computed():
    timeline = Timeline([(0.05, 0.35, "sum of many")])
    timeline.look(0.04, {LOOP: 1.0, OTHER: 1.0})
    timeline.look(0.349, {LOOP: 1.3, OTHER: 1.3})
    timeline.look(0.389, {LOOP: 1.3, OTHER: 1.3})
    [block] = timeline.told
    assert [name_of(each) for each in block.stacks] == ["sum of many"]
    assert block.holders == ()


def test_a_handler_that_sleeps_is_blamed_and_not_the_thread_that_computes_beside_it():
    timeline = Timeline([(0.05, 0.35, "asleep")])
    for number in range(1, 12):
        timeline.look(number * 0.04, {LOOP: 1.0, OTHER: number * 0.04})
    [block] = timeline.told
    assert {name_of(each) for each in block.stacks} == {"asleep"}


def test_a_loop_that_is_busy_but_takes_turns_is_not_told_of_though_it_keeps_the_watch_from_looking():
    timeline = Timeline([(0.1 + number * 0.001, 0.1009 + number * 0.001, "busy") for number in range(2000)])
    for now in (0.04, 0.1005, 0.9005, 1.3005, 2.0005, 2.0405, 2.2, 2.24):
        timeline.look(now, {LOOP: now, OTHER: 0.0})
    assert timeline.told == []


def test_nobody_is_blamed_when_the_machine_gave_the_process_no_turn():
    timeline = Timeline([(0.05, 0.35, "")], in_code=False)
    timeline.look(0.04, {LOOP: 1.0, OTHER: 1.0})
    timeline.look(0.351, {LOOP: 1.0, OTHER: 1.0})
    [block] = timeline.told
    assert block.starved
    assert block.stacks == block.holders == ()


def test_where_threads_have_no_clock_a_late_look_names_nobody_but_the_handler_it_finds():
    timeline = Timeline([(0.05, 0.35, "at work")], in_code=False)
    timeline.look(0.04)
    timeline.look(0.351)
    [unknown] = timeline.told
    assert not unknown.starved
    assert unknown.stacks == unknown.holders == ()
    timeline = Timeline([(0.05, 0.35, "at work")])
    timeline.look(0.04)
    timeline.look(0.349)
    timeline.look(0.389)
    [known] = timeline.told
    assert {name_of(each) for each in known.stacks} == {"at work"}
