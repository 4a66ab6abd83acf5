"""Tasks that take turns on one link: work in order, beside each other where it waits, one reader at a time."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from microkernel.begin import Rest, begin
from microkernel.wire.crew import SPARE, Crew


class Feed:
    """Frames of work, put by the test; None is the end."""

    def __init__(self):
        self.frames = asyncio.Queue()
        self.readers = self.most_readers = 0
        self.crew = None
        self.cancelled = []

    async def read(self):
        self.readers += 1
        self.most_readers = max(self.readers, self.most_readers)
        try:
            frame = await self.frames.get()
        finally:
            self.readers -= 1
        if frame is None:
            return False
        for work in frame:
            self.crew.put(work, work, self.do)
        return True


async def start(do):
    feed = Feed()
    feed.do = lambda number, _: do(number)
    feed.crew = Crew(lambda number, _: feed.cancelled.append(number), name="crew")
    return feed, asyncio.create_task(feed.crew.serve(feed.read))


async def finish(feed, running):
    feed.frames.put_nowait(None)
    await running
    await feed.crew.close()


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_work_that_never_waits_is_done_in_order_by_the_one_task_that_read_it():
    done, tasks = [], set()

    async def do(work):
        done.append(work)
        tasks.add(asyncio.current_task())

    feed, running = await start(do)
    for first in range(0, 50, 10):
        feed.frames.put_nowait(range(first, first + 10))
        await turns()
    assert done == list(range(50))
    assert len(tasks) == 1
    await finish(feed, running)


async def test_work_that_leaves_nothing_to_await_is_done_in_its_turn():
    release, done = asyncio.Event(), []

    async def wait(work):
        await release.wait()
        done.append(work)

    def do(work):
        if work % 2:
            return wait(work)
        done.append(work)
        return None

    feed, running = await start(do)
    feed.frames.put_nowait(range(6))
    await turns()
    assert done == [0, 2, 4]
    assert len(feed.crew) == 3
    release.set()
    await turns()
    assert done == [0, 2, 4, 1, 3, 5]
    await finish(feed, running)


async def test_a_pause_holds_the_work_that_was_put_and_not_what_has_begun():
    until, done = asyncio.Event(), []

    async def wait(work):
        await asyncio.sleep(0)
        done.append(work)

    def do(work):
        if work == 0:
            return wait(work)
        done.append(work)
        if work == 2:
            feed.crew.pause(until.wait())
        return None

    feed, running = await start(do)
    feed.frames.put_nowait(range(5))
    await turns()
    assert done == [0, 1, 2]
    until.set()
    await turns()
    assert done == [0, 1, 2, 3, 4]
    await finish(feed, running)


async def test_work_that_was_begun_and_waits_lends_its_context_to_no_other():
    variable, release, seen = contextvars.ContextVar("variable", default="unset"), asyncio.Event(), []

    async def first():
        variable.set("first")
        await release.wait()

    async def other():
        seen.append(variable.get())

    def do(work):
        if work == 0:  # so that the next piece is begun when nothing has just been put
            return release.wait()
        rest = begin(first() if work == 1 else other())
        return rest if isinstance(rest, Rest) else None

    feed, running = await start(do)
    feed.frames.put_nowait([0, 1, 2])
    await turns()
    assert seen == ["unset"]
    release.set()
    await finish(feed, running)


async def test_work_that_waits_holds_up_neither_what_comes_after_it_nor_the_reading():
    release, done = asyncio.Event(), []

    async def do(work):
        if work < 3:
            await release.wait()
        done.append(work)

    feed, running = await start(do)
    feed.frames.put_nowait([0, 1, 5])
    await turns()
    feed.frames.put_nowait([2, 6])
    await turns()
    assert done == [5, 6]
    assert len(feed.crew) == 3
    release.set()
    await turns()
    assert sorted(done) == [0, 1, 2, 5, 6]
    assert feed.most_readers == 1
    await finish(feed, running)


async def test_tasks_that_are_not_needed_any_more_end_but_for_a_few():
    release = asyncio.Event()

    async def do(work):
        await release.wait()

    feed, running = await start(do)
    feed.frames.put_nowait(range(50))
    await turns(200)
    assert len(feed.crew._members) == 51
    release.set()
    await turns()
    assert len(feed.crew._members) == SPARE + 1
    await finish(feed, running)


async def test_cancelled_work_ends_and_its_task_goes_on():
    ended = []

    async def do(work):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append(work)
            raise

    feed, running = await start(do)
    feed.frames.put_nowait([1, 2])
    await turns()
    feed.crew.cancel(1)
    await turns()
    assert ended == feed.cancelled == [1]
    assert len(feed.crew) == 1
    feed.frames.put_nowait([3])
    await turns()
    assert len(feed.crew) == 2
    await finish(feed, running)
    assert sorted(ended) == [1, 2, 3]


async def test_work_that_is_cancelled_before_it_has_begun_never_begins():
    begun = []

    async def do(work):
        begun.append(work)
        if work == 1:
            feed.crew.cancel(2)

    feed, running = await start(do)
    feed.frames.put_nowait([1, 2, 3])
    await turns()
    assert begun == [1, 3]
    assert feed.cancelled == [2]
    await finish(feed, running)


async def test_work_goes_on_after_the_end_of_the_frames_until_the_crew_is_closed_and_leaves_no_task():
    before = asyncio.all_tasks()
    ended = []

    async def do(work):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(work)

    feed, running = await start(do)
    feed.frames.put_nowait(range(10))
    await turns(30)
    feed.frames.put_nowait(None)
    await running
    assert ended == []
    await feed.crew.close()
    assert sorted(ended) == list(range(10))
    assert asyncio.all_tasks() == before


async def test_an_error_of_the_reader_is_raised_where_it_is_served():
    async def read():
        raise ConnectionResetError("gone")

    crew = Crew(lambda *_: None, name="crew")
    with pytest.raises(ConnectionResetError, match="gone"):
        await crew.serve(read)
    await crew.close()


async def test_who_stops_serving_leaves_the_work_and_may_serve_again():
    before = asyncio.all_tasks()

    async def do(work):
        await asyncio.sleep(3600)

    feed, running = await start(do)
    feed.frames.put_nowait([1, 2, 3])
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await turns()
    assert (len(feed.crew), feed.readers) == (3, 0)
    again = asyncio.create_task(feed.crew.serve(feed.read))
    feed.frames.put_nowait([4])
    await turns()
    assert (len(feed.crew), feed.readers) == (4, 1)
    await finish(feed, again)
    assert asyncio.all_tasks() == before


async def test_work_that_is_put_from_outside_is_carried_out_although_the_reader_waits():
    done = []

    async def do(work):
        done.append(work)

    feed, running = await start(do)
    await turns()
    feed.crew.put(7, 7, feed.do)
    await turns()
    assert done == [7]
    await finish(feed, running)


async def test_a_crew_that_is_closed_carries_out_what_is_spared_and_drops_the_rest():
    release, done = asyncio.Event(), []

    async def do(work):
        await release.wait()
        done.append(work)

    feed, running = await start(do)
    feed.frames.put_nowait([1, 2, 3])
    feed.frames.put_nowait(None)
    await running
    closing = asyncio.create_task(feed.crew.close(spare={1, 3}))
    await turns()
    assert not closing.done()
    release.set()
    await closing
    assert sorted(done) == [1, 3]
    assert feed.cancelled == [2]
