"""Whose turn is next in the batch: classes, policies, places that are given up and got back; answers stay the same."""

from __future__ import annotations

import random

import msgspec
import pytest
from engine_runs import Counting, run, step
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, tiny_decoder, write_gguf

from microkernel.policy import Arrival, Claim, ProcessClass
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling
from services.inference.engine.sitting_out import SAT_OUT
from services.scheduler.policies.deadline import Deadline
from services.scheduler.policies.fair import Fair
from services.scheduler.policies.fifo import Fifo
from services.scheduler.policies.priority import Priority

POLICIES = [Fair, Priority, Fifo, Deadline, Arrival]
INTERACTIVE, BATCH, BACKGROUND = ProcessClass
LONGEST = 20  # tokens of an answer, where chance says how many


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_decoder(write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture(scope="module")
def answers(decoder):
    """Gives the longest answer to a request's prompt, alone; each prompt is answered once."""
    known: dict[tuple[int, ...], list[int]] = {}

    def of(one: Request) -> list[int]:
        prompt = tuple(one.prompt)
        if prompt not in known:
            known[prompt] = alone(decoder, msgspec.structs.replace(one, max_tokens=LONGEST))
        return known[prompt]

    return of


def request(number: int, process_class=INTERACTIVE, *, length: int = 5, tokens: int = 8, **claim) -> Request:
    owner = claim.pop("owner", "local")
    return Request(
        id=number,
        prompt=[(number * 7 + place) % VOCABULARY for place in range(length)],
        max_tokens=tokens,
        params=ResolvedSampling(temperature=0.0),
        owner=owner,
        claim=Claim(pid=number, owner=owner, process_class=process_class, came=float(number), **claim),
    )


def alone(decoder, one: Request) -> list[int]:
    engine = Engine(decoder)
    engine.add(one)
    return run(engine)[one.id]


def begun(engine: Engine, *requests: Request) -> dict[int, list[int]]:
    """All of them in the batch, with a first token."""
    tokens: dict[int, list[int]] = {}
    for one in requests:
        engine.add(one)
    while len(tokens) < len(requests):
        step(engine, tokens)
    return tokens


def test_somebody_who_looks_gets_the_place_of_background_work_which_goes_on_where_it_was(decoder):
    counting = Counting(decoder)
    engine = Engine(counting, max_batch=2)
    slow = [request(1, BACKGROUND, tokens=30), request(2, BACKGROUND, tokens=30)]
    tokens = begun(engine, *slow)
    quick = request(3, tokens=4)
    engine.add(quick)
    step(engine, tokens)
    assert 3 in tokens, "it has its first token after one step"
    assert (engine.running, engine.waiting) == (2, 1)
    run(engine, tokens)
    assert tokens == {one.id: alone(decoder, one) for one in (*slow, quick)}
    assert counting.tokens == sum(len(one.prompt) + one.max_tokens - 1 for one in (*slow, quick)), "nothing twice"


def test_who_came_last_of_the_least_urgent_gives_its_place(decoder):
    engine = Engine(decoder, max_batch=3)
    tokens = begun(engine, request(1, BACKGROUND), request(2, BATCH), request(3, BACKGROUND))
    engine.add(request(4))
    step(engine, tokens)
    assert engine.why(3).startswith("waits for one of 3 places in the batch")
    assert [engine.why(number) for number in (1, 2, 4)] == ["runs"] * 3


@pytest.mark.parametrize("policy", [Fifo, Deadline])
def test_policies_without_classes_take_no_place_from_anybody(decoder, policy):
    engine = Engine(decoder, max_batch=1)
    engine.schedule_by(policy())
    tokens = begun(engine, request(1, BACKGROUND))
    engine.add(request(2))
    run(engine, tokens)
    assert list(tokens) == [1, 2]


def test_background_sits_out_while_a_prompt_of_somebody_who_looks_is_read_but_not_for_ever(decoder):
    engine = Engine(decoder, token_budget=4)
    tokens = begun(engine, request(1, BACKGROUND, tokens=100))
    had = len(tokens[1])
    engine.add(request(2, length=4 * (SAT_OUT + 4)))
    for _ in range(SAT_OUT):
        step(engine, tokens)
    assert len(tokens[1]) == had
    step(engine, tokens)
    assert len(tokens[1]) == had + 1


def test_equals_decode_while_a_prompt_is_read(decoder):
    engine = Engine(decoder, token_budget=4)
    tokens = begun(engine, request(1, tokens=100))
    had = len(tokens[1])
    engine.add(request(2, length=40))
    step(engine, tokens)
    assert len(tokens[1]) == had + 1


def test_where_pages_are_short_the_less_urgent_give_theirs(decoder):
    page = Engine(decoder).page_bytes
    engine = Engine(decoder, cache_bytes=6 * page)
    slow = [request(number, BACKGROUND, length=30, tokens=30) for number in (1, 2)]
    tokens = begun(engine, *slow)
    quick = request(3, length=40, tokens=4)
    engine.add(quick)
    while 3 not in tokens:
        step(engine, tokens)
    assert engine.running < 3
    run(engine, tokens)
    assert tokens == {one.id: alone(decoder, one) for one in (*slow, quick)}


def order_of(decoder, policy, *requests: Request) -> list[int]:
    """The order in which they get the only place."""
    engine = Engine(decoder, max_batch=1)
    engine.schedule_by(policy)
    tokens = begun(engine, request(0, tokens=3))
    for one in requests:
        engine.add(one)
    run(engine, tokens)
    return list(tokens)[1:]


def test_each_policy_gives_the_places_in_its_order(decoder):
    wanted = [
        request(1, BACKGROUND, deadline=5.0),
        request(2, BATCH, nice=5, deadline=1.0),
        request(3, BATCH, deadline=9.0),
        request(4, INTERACTIVE, deadline=7.0),
    ]
    assert order_of(decoder, Fifo(), *wanted) == [1, 2, 3, 4]
    assert order_of(decoder, Arrival(), *wanted) == [4, 3, 2, 1]
    assert order_of(decoder, Priority(), *wanted) == [4, 3, 2, 1]
    assert order_of(decoder, Deadline(), *wanted) == [2, 1, 4, 3]


def test_under_fair_owners_get_places_by_turns_and_not_by_how_much_they_ask_for(decoder):
    many = [request(number, owner="ana") for number in range(1, 9)]
    few = [request(number, owner="bo") for number in range(20, 22)]
    order = order_of(decoder, Fair(), *many, *few)
    assert {20, 21} <= set(order[:5])


def test_answers_that_claim_alike_count_for_all_that_they_had(decoder):
    engine = Engine(decoder)
    alike = Claim(owner="ana")
    requests = [msgspec.structs.replace(request(number, length=4), claim=alike) for number in (1, 2)]
    for each in (*requests, request(3, length=4, owner="bo")):
        engine.add(each)
    engine.step()
    assert {claim.owner: tokens for claim, tokens in engine.claims.items()} == {"ana": 8, "bo": 4}


def test_a_process_that_becomes_nicer_goes_behind_its_equals(decoder):
    engine = Engine(decoder, max_batch=1)
    tokens = begun(engine, request(0, tokens=3))
    for number in (1, 2):
        engine.add(request(number))
    assert engine.renice(1, Claim(pid=1, nice=10))
    assert not engine.renice(7, Claim())
    run(engine, tokens)
    assert list(tokens) == [0, 2, 1]


def test_what_somebody_waits_for_is_said(decoder):
    engine = Engine(decoder, max_batch=1)
    tokens = begun(engine, request(0))
    for number in (1, 2):
        engine.add(request(number))
    assert engine.why(0) == "runs"
    assert engine.why(2) == "waits for one of 1 places in the batch, behind one other"
    engine.pause(2, paused=True)
    assert engine.why(2) == "is paused, until it is resumed"
    engine.hold(0, held=True)
    assert engine.why(0) == "waits for its reader, who is behind"
    engine.hold(0, held=False)
    engine.pause(2, paused=False)
    run(engine, tokens)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_policies_that_change_and_requests_that_rest_change_no_answer(decoder, answers, seed):
    assert_answers_stay(decoder, answers, seed)


@pytest.mark.slow
@given(st.integers(0, 10_000))
@settings(max_examples=400, deadline=None)
def test_policies_that_change_and_requests_that_rest_change_none_of_many_answers(decoder, answers, seed):
    assert_answers_stay(decoder, answers, seed)


def assert_answers_stay(decoder, answers, seed: int) -> None:
    choose = random.Random(seed)
    page = Engine(decoder).page_bytes
    wanted = [
        request(
            number,
            choose.choice(list(ProcessClass)),
            length=choose.randint(1, 60),
            tokens=choose.randint(1, LONGEST),
            owner=choose.choice(["ana", "bo"]),
            nice=choose.randint(-20, 19),
            deadline=choose.choice([None, choose.random() * 10]),
        )
        for number in range(8)
    ]
    engine = Engine(
        decoder,
        max_batch=choose.randint(1, 4),
        token_budget=choose.choice([3, 16, 64]),
        max_length=80,
        cache_bytes=page * choose.randint(5, 24),
    )
    tokens: dict[int, list[int]] = {}
    pending, resting = list(wanted), set[int]()
    for _ in range(4000):
        if pending and choose.random() < 0.3:
            engine.add(pending.pop())
        if choose.random() < 0.05:
            engine.schedule_by(choose.choice(POLICIES)())
        number = choose.randrange(8)
        if choose.random() < 0.1 and engine.pause(number, paused=True):
            resting.add(number)
        if resting and (choose.random() < 0.2 or engine.idle):
            engine.pause(resting.pop(), paused=False)
        if choose.random() < 0.05:
            engine.swap_out(number)
        if choose.random() < 0.05:
            engine.renice(number, Claim(pid=number, nice=choose.randint(-20, 19)))
        if not pending and not resting and engine.idle:
            break
        if not engine.idle:
            step(engine, tokens)
    assert not engine.running
    assert not engine.waiting
    assert tokens == {one.id: answers(one)[: one.max_tokens] for one in wanted}
    assert engine.pages.held == 0
