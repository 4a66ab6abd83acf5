"""What an engine gives back when memory is short changes no answer, and really gives it back."""

from __future__ import annotations

import random
import weakref

import msgspec
import pytest
from engine_runs import run, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import Overloaded
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling
from services.inference.native.pages import HostPages

WARM = ResolvedSampling(temperature=1.2, seed=5)


def request(number: int, tokens: int = 20, length: int = 40, owner: str = "local") -> Request:
    prompt = [(number * 7 + place) % 200 for place in range(length)]
    return Request(id=number, prompt=prompt, max_tokens=tokens, params=WARM, owner=owner)


def alone(decoder, wanted: list[Request]) -> dict[int, list[int]]:
    given: dict[int, list[int]] = {}
    for one in wanted:
        engine = Engine(decoder)
        engine.add(one)
        given |= run(engine)
    return given


@pytest.fixture
def decoder(native_decoder):
    return native_decoder


def test_cached_pages_go_least_recently_used_first_and_take_no_memory_any_more(decoder):
    engine = Engine(decoder)
    for number in range(3):
        engine.add(request(number))
        run(engine)
    cached = engine.pages.cached
    assert engine.relief.shrink(3) == 3
    assert engine.pages.cached == cached - 3
    assert engine.relief.resident_bytes == (cached - 3) * engine.page_bytes
    hits = engine.pages.hits
    engine.add(request(2))
    run(engine)
    assert engine.pages.hits - hits == 32, "what was used last is still there"


def test_of_a_fixed_pool_what_is_held_counts_and_nothing_is_forgotten_in_vain(decoder, monkeypatch):
    monkeypatch.setattr(HostPages, "elastic", False)
    engine = Engine(decoder)
    wanted = [request(1, 60, 90), request(2, 60, 20)]
    engine.add(request(3))
    given = {key: value for key, value in run(engine).items() if key != 3}
    cached = engine.pages.cached
    assert engine.relief.use().resident_bytes == engine.relief.resident_bytes == 0
    assert engine.relief.use().spare_bytes == engine.pages.pages * engine.page_bytes
    assert engine.relief.shrink(1000) == 0
    assert engine.pages.cached == cached > 0, "to forget them would free nothing"
    for one in wanted:
        engine.add(one)
    for _ in range(5):
        step(engine, given)
    held = engine.pages.held
    assert engine.relief.resident_bytes == held * engine.page_bytes
    assert engine.relief.pause_cheapest()
    assert engine.relief.resident_bytes == engine.pages.held * engine.page_bytes < held * engine.page_bytes
    assert run(engine, given) == alone(decoder, wanted)


def test_held_pages_are_not_forgotten(decoder):
    engine = Engine(decoder)
    engine.add(request(1))
    given: dict[int, list[int]] = {}
    step(engine, given)
    held = engine.pages.held
    assert engine.relief.shrink(1000) == 0
    assert engine.pages.held == held
    assert run(engine, given) == alone(decoder, [request(1)])


def test_nothing_new_begins_beside_what_runs_until_it_is_allowed(decoder):
    engine = Engine(decoder)
    wanted = [request(number, 60) for number in range(3)]
    engine.add(wanted[0])
    given: dict[int, list[int]] = {}
    step(engine, given)
    engine.relief.admit(False)
    for one in wanted[1:]:
        engine.add(one)
    step(engine, given)
    assert (engine.running, engine.waiting) == (1, 2)
    engine.relief.admit(True)
    while engine.waiting:  # beside others, a step reads few tokens
        step(engine, given)
    assert engine.running == 3
    assert run(engine, given) == alone(decoder, wanted)


def test_while_nothing_new_begins_one_at_a_time_goes_on(decoder):
    engine = Engine(decoder)
    engine.relief.admit(False)
    wanted = [request(number) for number in range(3)]
    for one in wanted:
        engine.add(one)
    given: dict[int, list[int]] = {}
    while not engine.idle:
        step(engine, given)
        assert engine.running <= 1
    assert given == alone(decoder, wanted)


def test_what_rests_gives_its_pages_up_and_goes_on_with_the_same_text(decoder):
    engine = Engine(decoder)
    wanted = [request(1, 60), request(2, 60)]
    for one in wanted:
        engine.add(one)
    given: dict[int, list[int]] = {}
    for _ in range(10):
        step(engine, given)
    engine.hold(1, held=True)
    before = engine.pages.held
    assert engine.relief.move_cold() == 1
    assert engine.pages.held < before
    for _ in range(10):
        step(engine, given)
    assert len(given[2]) == 20
    assert len(given[1]) == 10, "it does not come back before its reader does"
    engine.hold(1, held=False)
    assert run(engine, given) == alone(decoder, wanted)


def test_an_engine_whose_only_request_rests_without_pages_is_idle_and_refuses_nothing(decoder):
    engine = Engine(decoder)
    engine.add(request(1, 60))
    given: dict[int, list[int]] = {}
    step(engine, given)
    engine.hold(1, held=True)
    engine.relief.move_cold()
    for _ in range(3):
        assert engine.step() == []
    assert engine.idle
    engine.hold(1, held=False)
    assert run(engine, given) == alone(decoder, [request(1, 60)])


def test_the_cheapest_is_paused_down_to_one_and_all_end_with_the_same_text(decoder):
    engine = Engine(decoder)
    wanted = [request(1, 60, 90), request(2, 60, 20), request(3, 60, 50)]
    for one in wanted:
        engine.add(one)
    given: dict[int, list[int]] = {}
    for _ in range(5):
        step(engine, given)
    engine.relief.admit(False)
    assert engine.relief.pause_cheapest()
    came = {number: len(tokens) for number, tokens in given.items()}
    step(engine, given)
    assert [number for number in came if len(given[number]) == came[number]] == [2], "the fewest tokens to read again"
    assert engine.pages.cached == 0
    assert engine.relief.pause_cheapest()
    assert not engine.relief.pause_cheapest()
    assert engine.running == 1
    engine.relief.admit(True)
    assert run(engine, given) == alone(decoder, wanted)


def test_a_pool_made_smaller_keeps_what_is_held_and_room_for_one_context(decoder):
    engine = Engine(decoder, max_length=128)
    most = engine.pages.pages
    wanted = [request(number, 60, 60) for number in range(5)]
    for one in wanted:
        engine.add(one)
    given: dict[int, list[int]] = {}
    step(engine, given)
    held = engine.pages.held
    assert engine.relief.resize(0) == held > 128 // 16
    assert run(engine, given) == alone(decoder, wanted)
    assert engine.relief.resize(0) == 128 // 16
    engine.add(request(9, 28, 100))
    assert run(engine)[9] == alone(decoder, [request(9, 28, 100)])[9]
    assert engine.relief.resize(10 * most) == most


def test_a_larger_pool_lets_in_what_waits(decoder):
    engine = Engine(decoder, max_length=128, slowdown=1000.0)  # how much a step reads is not to hang on how fast it is
    engine.relief.resize(0)
    for number in range(3):
        engine.add(request(number, 40, 60))
    step(engine, {})
    assert (engine.running, engine.waiting) == (1, 2)
    engine.relief.resize(1000)
    for _ in range(5):
        step(engine, {})
    assert (engine.running, engine.waiting) == (3, 0)


def test_an_owner_over_its_quota_of_the_device_waits_for_its_answer_of_another_model(decoder):
    ledger = Ledger()
    first, second = Engine(decoder, ledger=ledger), Engine(decoder, ledger=ledger)
    woken = []
    second.on_room = lambda: woken.append(True)
    ledger.set_limits({"ann": 5 * first.page_bytes}, None)
    mine, later = request(1, 30, 40, "ann"), request(2, 20, 40, "ann")
    given: dict[int, list[int]] = {}
    first.add(mine)
    step(first, given)
    second.add(later)
    second.add(request(3, owner="bob"))
    for _ in range(40):
        step(second, given)
    assert len(given[3]) == 20, "others run"
    assert 2 not in given
    assert second.idle
    run(first, given)
    assert woken
    assert not second.idle
    run(second, given)
    assert given == alone(decoder, [mine, later, request(3, owner="bob")])


def test_those_of_one_owner_who_wait_in_two_models_do_not_wake_each_other_and_count_once(decoder):
    ledger = Ledger()
    first, second = Engine(decoder, ledger=ledger), Engine(decoder, ledger=ledger)
    woken = []
    first.on_room = second.on_room = lambda: woken.append(True)
    ledger.set_limits({"ann": 10 * first.page_bytes}, None)
    wanted = [request(1, 40, 90, "ann"), request(2, 4, 90, "ann"), request(3, 4, 90, "ann")]
    given: dict[int, list[int]] = {}
    first.add(wanted[0])
    step(first, given)
    first.hold(1, held=True)
    first.add(wanted[1])
    second.add(wanted[2])
    woken.clear()
    for engine in (first, second, first, second):
        step(engine, given)
    assert first.idle
    assert second.idle
    assert woken == [], "nobody has let anything go"
    first.hold(1, held=False)
    while not (first.idle and second.idle):
        for engine in (first, second):
            step(engine, given)
    assert given == alone(decoder, wanted)
    assert (first.pages.misses, second.pages.misses) == (180, 90), "however often they have tried"


def test_what_a_quota_of_the_device_can_never_hold_is_refused_with_the_numbers(decoder):
    ledger = Ledger()
    ledger.set_limits({"ann": 2 * Engine(decoder).page_bytes}, None)
    other, engine = Engine(decoder, ledger=ledger), Engine(decoder, ledger=ledger)
    other.add(request(1, 5, 20, "ann"))
    step(other, {})
    engine.add(request(2, 5, 60, "ann"))
    with pytest.raises(Overloaded, match=r"needs 4 pages of 16 tokens; .* of which 'ann' may have 2"):
        run(engine)


def test_who_waits_for_more_than_a_lowered_quota_of_the_device_allows_is_refused_at_the_next_step(decoder):
    ledger = Ledger()
    engine = Engine(decoder, ledger=ledger, max_batch=1)
    woken = []
    engine.on_room = lambda: woken.append(True)
    engine.add(request(1, owner="bob"))
    engine.step()
    engine.hold(1, held=True)
    engine.add(request(2, 5, 60, "ann"))
    engine.step()
    assert engine.idle
    ledger.set_limits({"ann": 2 * engine.page_bytes}, None)
    assert woken
    assert not engine.idle
    with pytest.raises(Overloaded, match="'ann' may have 2"):
        step(engine, {})
    assert (engine.running, engine.waiting) == (1, 0)


def test_two_owners_with_the_same_prompt_share_no_page_and_the_second_finds_nothing(decoder):
    engine = Engine(decoder)
    one, other = request(1, owner="one"), request(1, owner="other")
    engine.add(one)
    first = run(engine)[1]
    used = engine.pages.owners["one"].used
    engine.add(other)
    assert run(engine)[1] == first
    owners = engine.pages.owners
    assert (owners["one"].hits, owners["other"].hits, owners["other"].misses) == (0, 0, 40)
    assert owners["one"].used == owners["other"].used == used, "each has pages of its own"
    engine.add(msgspec.structs.replace(other, id=2))
    run(engine)
    assert engine.pages.owners["other"].hits == 32


def test_two_owners_with_the_same_long_prompt_share_no_file_either(decoder, tmp_path):
    saved = SavedPages(tmp_path, 1 << 30)
    one, other = request(1, 4, 300, "one"), request(2, 4, 300, "other")
    other = msgspec.structs.replace(other, prompt=one.prompt)
    first = Engine(decoder, saved=saved)
    first.add(one)
    run(first)
    saved.flush()
    files = saved.count
    assert files == 300 // 16
    second = Engine(decoder, saved=saved)
    second.add(other)
    second.step()
    assert not any(sequence.loading for sequence in second._batch.places.running), "nothing is read for another owner"
    run(second)
    saved.flush()
    assert second.pages.owners["other"].hits == 0
    assert saved.count == 2 * files
    saved.close()


def test_sixteen_streams_with_a_third_of_the_memory_that_they_want_all_end_with_the_right_text(decoder):
    wanted = [request(number, 100, 30 + number) for number in range(16)]
    needed = sum(-(-(len(one.prompt) + one.max_tokens) // 16) for one in wanted)
    engine = Engine(decoder, max_length=256, cache_bytes=needed // 3 * decoder.storage(1).page_bytes)
    for one in wanted:
        engine.add(one)
    given: dict[int, list[int]] = {}
    steps = most = 0
    while not engine.idle:
        step(engine, given)
        steps, most = steps + 1, max(most, engine.running)
    assert given == alone(decoder, wanted)
    assert 1 < most < 16
    assert steps > 130, "with all of it, 16 answers of 100 tokens are some 100 steps"


def test_a_closed_engine_has_left_its_account_and_gives_its_weights_back_at_once(decoder):
    ledger = Ledger()
    engine = Engine(decoder, ledger=ledger)
    engine.add(request(1))
    engine.step()
    engine.relief.close()
    assert ledger.used("local") == 0
    gone = weakref.ref(engine)
    del engine
    assert gone() is None, "without waiting for the collector"


def test_a_closed_engine_keeps_nothing_and_takes_nothing_off_an_account_twice(decoder):
    ledger = Ledger()
    first, second = Engine(decoder, ledger=ledger), Engine(decoder, ledger=ledger)
    for engine in (first, second):
        engine.add(request(1))
        run(engine)
    relief, batch = second.relief, weakref.ref(second._batch)
    second.close()
    left = ledger.used("local")
    assert left == first.pages.owners["local"].used * first.page_bytes
    assert relief.closed
    second.close()
    assert ledger.used("local") == left
    assert batch() is None, "who looks after memory may still know its pages"


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_owners_of_several_models_at_their_quotas_never_wait_for_ever(decoder, seed):
    choose, ledger = random.Random(seed), Ledger()
    engines = [Engine(decoder, ledger=ledger, max_batch=choose.randint(1, 4), max_length=128) for _ in range(2)]
    pages = {owner: choose.randint(8, 12) for owner in ("ann", "bob")}  # one whole context at least
    ledger.set_limits({owner: count * engines[0].page_bytes for owner, count in pages.items()}, None)
    wanted: dict[int, Request] = {}
    pending = [request(number, choose.randint(1, 60), choose.randint(1, 60)) for number in range(10)]
    given: dict[int, list[int]] = {}
    for _ in range(3000):
        if pending and choose.random() < 0.2:
            one = msgspec.structs.replace(pending.pop(), owner=choose.choice(("ann", "bob")))
            wanted[one.id] = one
            choose.choice(engines).add(one)
        for engine in engines:
            if not engine.idle:
                step(engine, given)
        for owner, count in pages.items():
            assert ledger.used(owner) <= count * engines[0].page_bytes
        if not pending and all(engine.idle for engine in engines):
            break
    assert not any(engine.running or engine.waiting for engine in engines)
    assert given == alone(decoder, list(wanted.values()))
