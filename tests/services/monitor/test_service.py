"""The log of a node."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest

from microkernel import Service, handles
from microkernel.errors import Invalid
from microkernel.testing import TestKernel
from services.monitor.journal import Journal
from services.monitor.service import Monitor


class Talker(Service):
    name = "talker"

    @handles
    async def say(self, message: dict) -> None:
        self.log.log(message.get("level", logging.INFO), "said %s", message["text"])

    @handles
    async def fail(self) -> None:
        try:
            raise ValueError("of no use")
        except ValueError:
            self.log.exception("something went wrong")


async def test_what_a_service_logs_is_shown_and_filtered_by_level_and_service():
    async with TestKernel(Monitor, Talker) as system:
        await system.call("talker.say", text="one")
        await system.call("talker.say", text="two", level=logging.WARNING)
        await system.call("talker.say", text="three", level=logging.DEBUG)
        lines = await system.call("monitor.log", service="talker")
        assert [(line.level, line.message) for line in lines] == [("info", "said one"), ("warning", "said two")]
        assert [line.message for line in await system.call("monitor.log", level="warning")] == ["said two"]
        assert await system.call("monitor.log", service="nobody") == []
        assert len(await system.call("monitor.log", lines=1)) == 1


async def test_all_of_it_is_kept_in_a_file_with_tracebacks():
    async with TestKernel(Monitor, Talker) as system:
        await system.call("talker.fail")
        [line] = [json.loads(line) for line in (system.root / "monitor" / "log.jsonl").read_text().splitlines()]
        assert line["message"] == "something went wrong"
        assert line["error"] == "ValueError: of no use"
        assert "Traceback" in line["traceback"]


async def test_a_follower_gets_the_past_and_then_each_record_also_from_threads():
    async with TestKernel(Monitor, Talker) as system:
        await system.call("talker.say", text="before")
        async with system.stream("monitor.follow", service="talker") as records:
            assert (await anext(records)).message == "said before"
            reader = asyncio.create_task(anext(records))
            await asyncio.sleep(0)
            logger = logging.getLogger("microkernel.talker")
            thread = threading.Thread(target=logger.warning, args=("from a thread",))
            thread.start()
            assert (await asyncio.wait_for(reader, 10)).message == "from a thread"
            thread.join()


async def test_wrong_levels_and_counts_are_named():
    async with TestKernel(Monitor) as system:
        with pytest.raises(Invalid, match="'loud' is no log level"):
            await system.call("monitor.log", level="loud")
        with pytest.raises(Invalid, match="at least 1"):
            await system.call("monitor.log", lines=0)


async def test_nothing_of_it_stays_in_the_process():
    logger = logging.getLogger("microkernel")
    before = (logger.level, list(logger.handlers))
    async with TestKernel(Monitor):
        assert list(logger.handlers) != before[1]
    assert (logger.level, list(logger.handlers)) == before


async def test_a_follower_misses_nothing_and_gets_nothing_twice_while_the_past_is_read_out():
    async with TestKernel(Monitor, Talker) as system:
        for number in range(3):
            await system.call("talker.say", text=number)
        async with system.stream("monitor.follow", service="talker") as records:
            seen = [(await anext(records)).message]
            await system.call("talker.say", text="meanwhile")
            seen += [(await asyncio.wait_for(anext(records), 10)).message for _ in range(3)]
        assert seen == ["said 0", "said 1", "said 2", "said meanwhile"]


def test_a_record_that_cannot_be_written_does_not_stop_the_work(tmp_path, capsys):
    records = []
    journal = Journal(tmp_path / "log.jsonl", records.append)
    journal.handle(logging.LogRecord("microkernel.talker", logging.INFO, "here", 1, "%d is no number", ("this",), None))
    journal.handle(logging.LogRecord("microkernel.talker", logging.INFO, "here", 2, "and on it goes", (), None))
    journal.close()
    assert [record.message for record in records] == ["and on it goes"]
    assert "Logging error" in capsys.readouterr().err
