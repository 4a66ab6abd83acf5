"""Calls under a key: run once, one outcome, bounded; the table against a model, the rest through a kernel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import Message, Service, handles
from microkernel.buffers import Array
from microkernel.errors import (
    DeadlineExceeded,
    Deadlock,
    Gone,
    Internal,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from microkernel.idempotency import KEPT, Name, Outcome, OutcomeTable
from microkernel.testing import TestKernel

SMALL = st.integers(0, 3)


class Deposit(Message):
    amount: int
    note: str = ""


class Bank(Service):
    """Counts how often it was really asked."""

    name = "bank"

    async def start(self) -> None:
        self.runs = 0
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.book: list[dict[str, Any]] = []

    @handles
    async def deposit(self, message: Deposit) -> list[dict[str, Any]]:
        self.runs += 1
        self.book.append({"amount": message.amount})
        return self.book

    @handles(concurrency=1, queue=0)
    async def slow(self, message: Deposit) -> int:
        self.runs += 1
        self.entered.set()
        await self.go.wait()
        return message.amount

    @handles
    async def refuse(self) -> None:
        self.runs += 1
        raise NotFound(f"run {self.runs} found nothing", remedy="none")

    @handles
    async def crash(self) -> None:
        self.runs += 1
        raise ZeroDivisionError("by zero")

    @handles
    async def again(self) -> Any:
        return await self.call("bank.again", idempotency_key="same")

    @handles
    async def array(self) -> Array:
        return Array(bytearray(b"abcd"))

    @handles
    async def unkeepable(self) -> Any:
        return (number for number in range(3))


async def test_a_call_under_a_key_runs_once_and_has_one_result() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        results = [await kernel.call("bank.deposit", amount=5, idempotency_key="k") for _ in range(3)]
        assert results == [[{"amount": 5}]] * 3
        assert bank.runs == 1
        await kernel.call("bank.deposit", amount=5, idempotency_key="another")
        assert bank.runs == 2


async def test_no_caller_can_change_what_another_gets() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        first = await kernel.call("bank.deposit", amount=5, idempotency_key="k")
        first.append("forged")
        first[0]["amount"] = 10**6
        bank.book[0]["amount"] = 7  # nor can the service, which has kept it
        assert await kernel.call("bank.deposit", amount=5, idempotency_key="k") == [{"amount": 5}]


async def test_the_same_call_meanwhile_waits_for_the_one_that_runs() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        calls = [
            asyncio.create_task(kernel.call("bank.slow", amount=number % 1, idempotency_key="k")) for number in range(5)
        ]
        await bank.entered.wait()
        bank.go.set()
        assert await asyncio.gather(*calls) == [0] * 5
        assert bank.runs == 1


async def test_the_call_goes_on_when_whoever_asked_is_gone() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        first = asyncio.create_task(kernel.call("bank.slow", amount=3, idempotency_key="k"))
        await bank.entered.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        bank.go.set()
        assert await kernel.call("bank.slow", amount=3, idempotency_key="k") == 3
        assert bank.runs == 1


async def test_who_waits_for_the_outcome_has_a_deadline_of_its_own() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        first = asyncio.create_task(kernel.call("bank.slow", amount=3, idempotency_key="k"))
        await bank.entered.wait()
        with pytest.raises(DeadlineExceeded, match="under the key 'k'"):
            await kernel.call("bank.slow", amount=3, idempotency_key="k", deadline=0.02)
        bank.go.set()
        assert await first == 3


@pytest.mark.parametrize(("handler", "kind"), [("refuse", NotFound), ("crash", Internal)])
async def test_an_error_is_an_outcome_too(handler: str, kind: type[MicrokernelError]) -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        messages = set()
        for _ in range(3):
            with pytest.raises(kind) as caught:
                await kernel.call(f"bank.{handler}", idempotency_key="k")
            messages.add(str(caught.value))
        assert len(messages) == 1
        assert bank.runs == 1


async def test_what_has_not_run_is_not_kept() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        running = asyncio.create_task(kernel.call("bank.slow", amount=1))
        await bank.entered.wait()
        with pytest.raises(Overloaded):
            await kernel.call("bank.slow", amount=2, idempotency_key="k")
        bank.go.set()
        await running
        assert await kernel.call("bank.slow", amount=2, idempotency_key="k") == 2


async def test_a_key_stands_for_one_message() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        await kernel.call("bank.deposit", amount=5, idempotency_key="k")
        with pytest.raises(PreconditionFailed, match="stands for another message") as caught:
            await kernel.call("bank.deposit", amount=6, idempotency_key="k")
        assert caught.value.may_have_run is False
        assert bank.runs == 1


async def test_how_a_message_is_written_makes_no_difference() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        await kernel.call("bank.deposit", Deposit(5), idempotency_key="k")
        await kernel.call("bank.deposit", {"note": "", "amount": 5}, idempotency_key="k")
        assert bank.runs == 1


async def test_a_call_that_waits_for_itself_under_its_key_is_a_deadlock() -> None:
    async with TestKernel(Bank()) as kernel:
        with pytest.raises(Deadlock, match="waits for itself under the key 'same'"):
            await kernel.call("bank.again", idempotency_key="same")


async def test_arrays_are_kept_as_copies() -> None:
    async with TestKernel(Bank()) as kernel:
        first = await kernel.call("bank.array", idempotency_key="k")
        second = await kernel.call("bank.array", idempotency_key="k")
        assert bytes(first) == bytes(second) == b"abcd"


async def test_a_result_that_cannot_be_copied_is_named() -> None:
    async with TestKernel(Bank()) as kernel:
        with pytest.raises(Invalid, match="generator cannot be copied"):
            await kernel.call("bank.unkeepable", idempotency_key="k")


@pytest.mark.parametrize("key", ["", "x" * 129])
async def test_what_is_no_key_is_refused(key: str) -> None:
    async with TestKernel(Bank()) as kernel:
        with pytest.raises(Invalid, match="1 to 128 characters"):
            await kernel.call("bank.deposit", amount=1, idempotency_key=key)


async def test_a_shutdown_ends_who_waits() -> None:
    bank = Bank()
    async with TestKernel(bank) as kernel:
        waiting = asyncio.create_task(kernel.call("bank.slow", amount=1, idempotency_key="k"))
        await bank.entered.wait()
        await kernel.kernel.router.outcomes.close()
        with pytest.raises(Unavailable, match="shuts down"):
            await waiting


def name(key: str, owner: str = "ana") -> Name:
    return Name(owner, "a.b", key)


def test_outcomes_are_kept_120_seconds_from_their_end() -> None:
    table = OutcomeTable()
    outcome, _ = table.begin(name("k"), b"", 0.0)
    table.succeeded(outcome, 1, 1, 50.0)
    assert table.begin(name("k"), b"", 50.0 + KEPT - 0.1) == (outcome, False)
    assert table.begin(name("k"), b"", 50.0 + KEPT)[1] is True


def test_keys_of_others_are_others() -> None:
    table = OutcomeTable()
    assert table.begin(name("k"), b"1", 0.0)[1]
    assert table.begin(name("k", "bob"), b"2", 0.0)[1]


def test_the_oldest_that_have_ended_make_room_and_those_that_run_do_not() -> None:
    table = OutcomeTable(number=2)
    first, _ = table.begin(name("1"), b"", 0.0)
    table.begin(name("2"), b"", 0.0)
    with pytest.raises(Overloaded, match="2 calls with an idempotency key"):
        table.begin(name("3"), b"", 0.0)
    table.succeeded(first, 1, 1, 0.0)
    table.begin(name("3"), b"", 0.0)
    assert len(table) == 2


def test_what_made_room_does_not_run_again_for_120_seconds_from_its_end() -> None:
    table = OutcomeTable(number=1)
    first, _ = table.begin(name("1"), b"", 0.0)
    table.succeeded(first, 1, 1, 5.0)
    second, _ = table.begin(name("2"), b"", 6.0)
    table.succeeded(second, 1, 1, 6.0)
    with pytest.raises(Gone, match="'1' has run") as caught:
        table.begin(name("1"), b"", 5.0 + KEPT - 0.1)
    assert caught.value.may_have_run is True
    assert table.begin(name("1"), b"", 5.0 + KEPT)[1] is True


def test_where_no_more_can_be_remembered_a_new_key_is_refused_until_one_may_be_forgotten() -> None:
    table = OutcomeTable(number=1, traces=1)
    for key in "12":
        outcome, _ = table.begin(name(key), b"", 0.0)
        table.succeeded(outcome, 1, 1, 0.0)
    with pytest.raises(Overloaded, match="2 calls with an idempotency key came within 120 s") as caught:
        table.begin(name("3"), b"", 20.0)
    assert caught.value.retry_after == KEPT - 20.0
    assert caught.value.may_have_run is False
    assert table.begin(name("3"), b"", KEPT)[1] is True


def test_results_past_the_bytes_are_forgotten_but_not_that_they_ran() -> None:
    table = OutcomeTable(size=100)
    for key in "12":
        outcome, _ = table.begin(name(key), b"", 0.0)
        table.succeeded(outcome, key, 60, 0.0)
    assert table.held_bytes == 60
    with pytest.raises(Gone, match="has run"):
        table.begin(name("1"), b"", 0.0)[0].result()
    assert table.begin(name("2"), b"", 0.0)[0].result() == "2"


STEP = st.one_of(
    st.tuples(st.just("begin"), SMALL, SMALL),
    st.tuples(st.just("succeed"), SMALL, st.integers(0, 60)),
    st.tuples(st.just("fail"), SMALL, SMALL),
    st.tuples(st.just("later"), st.integers(0, 130), SMALL),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_the_table_runs_nothing_twice_while_it_is_kept_and_stays_within_its_bounds(
    steps: list[tuple[str, int, int]],
) -> None:
    table, now = OutcomeTable(number=3, size=100), 0.0
    running: dict[int, Outcome] = {}
    ended: dict[int, tuple[float, int, bytes]] = {}  # when, what, of which message
    for kind, key, number in steps:
        match kind:
            case "begin":
                digest = bytes([number])
                try:
                    outcome, is_new = table.begin(name(str(key)), digest, now)
                except (Overloaded, Gone) as error:  # no room for it, or its outcome had to make room
                    assert key in ended if isinstance(error, Gone) else len(ended) + len(running) >= 3
                    assert key not in running
                except PreconditionFailed:
                    assert (running[key].digest if key in running else ended[key][2]) != digest
                else:
                    if key in running:
                        assert not is_new
                        assert outcome is running[key]
                    elif not is_new:
                        when, value, of = ended[key]
                        assert now < when + KEPT
                        assert of == digest
                        try:
                            assert outcome.result() == value
                        except Gone:
                            assert table.held_bytes <= 100
                    else:
                        # It may only run again when it is too old.
                        assert key not in ended or now >= ended[key][0] + KEPT
                        ended.pop(key, None)
                        running[key] = outcome
            case "succeed" if key in running:
                outcome = running.pop(key)
                table.succeeded(outcome, number, number, now)
                ended[key] = (now, number, outcome.digest)
            case "fail" if key in running:
                table.failed(running.pop(key), NotFound("no", may_have_run=False), now)
            case "later":
                now += key
        assert len(table) <= 3
        assert table.held_bytes <= 100
