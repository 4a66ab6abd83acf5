"""What each policy promises, in random schedules on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.policy import Arrival, Claim, Policy, ProcessClass
from services.scheduler.policies import fair
from services.scheduler.policies.deadline import Deadline
from services.scheduler.policies.fair import CLASS_WEIGHTS, OWED, Fair
from services.scheduler.policies.fifo import Fifo
from services.scheduler.policies.priority import CLASS, Priority
from tests.services.scheduler.simulated_device import Simulation, Work

SCHEDULES = settings(max_examples=200, deadline=None)
LONG = settings(max_examples=50, deadline=None)  # schedules of thousands of quanta
POLICIES: list[Callable[[], Policy]] = [Fifo, Priority, Fair, Deadline, Arrival]
NAMES = [policy().name for policy in POLICIES]

seconds = st.floats(0.001, 2.0)
works = st.lists(
    st.builds(
        Work,
        pid=st.just(0),
        came=st.floats(0.0, 20.0),
        quanta=st.lists(seconds, min_size=1, max_size=5),
        owner=st.sampled_from(["ana", "bo", "cy"]),
        process_class=st.sampled_from(list(ProcessClass)),
        nice=st.integers(-20, 19),
        deadline=st.none() | st.floats(0.0, 100.0),
    ),
    min_size=1,
    max_size=30,
).map(lambda found: [number_of(work, pid) for pid, work in enumerate(found, 1)])


def number_of(work: Work, pid: int) -> Work:
    work.pid = pid
    work.came = round(work.came, 3) + pid * 1e-6  # no two at the same moment
    return work


def saturated(owner: str, pid: int, quantum: float, total: float, **fields) -> Work:
    return Work(pid=pid, owner=owner, quanta=[quantum] * (int(total / quantum) + 1), **fields)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
@given(works=works, threads=st.integers(1, 4))
@SCHEDULES
def test_everything_that_comes_has_all_its_turns_and_no_thread_is_idle_while_something_waits(policy, works, threads):
    simulation = Simulation(policy(), works, threads=threads)
    while not simulation.over:
        simulation.step()
        assert not simulation.entries or simulation._free == 0
    assert all(work.ended is not None for work in works)
    assert sorted(simulation.turns) == sorted(work.pid for work in works for _ in work.quanta)
    assert len(simulation.policy) == 0


@given(works=works)
@SCHEDULES
def test_under_fifo_work_ends_in_the_order_in_which_it_came(works):
    Simulation(Fifo(), works).run()
    came = sorted(works, key=lambda work: (work.came, work.pid))
    assert [work.ended for work in came] == sorted(work.ended for work in works)


@given(works=works, quantum=seconds)
@SCHEDULES
def test_deadlines_that_can_be_met_are_met(works, quantum):
    """Deadlines are those of a schedule that exists, and one quantum later: none is interrupted once it has begun."""
    for work in works:
        work.quanta, work.deadline = [quantum] * len(work.quanta), None
    Simulation(Fifo(), works).run()
    tasks = [
        Work(pid=work.pid, came=work.came, quanta=work.quanta, deadline=work.ended + quantum, nice=work.nice)
        for work in works
    ]
    Simulation(Deadline(), tasks).run()
    assert [task.pid for task in tasks if task.ended > task.deadline + 1e-6] == []


crowds = given(
    weights=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=6),
    quanta=st.lists(st.floats(0.005, 0.05), min_size=6, max_size=6),
    threads=st.integers(1, 2),
)


@crowds
@LONG
def test_saturated_owners_have_their_shares(weights, quanta, threads):
    assert_shares(weights, quanta, threads)


@pytest.mark.slow
@crowds
@SCHEDULES
def test_saturated_owners_have_their_shares_in_many_schedules(weights, quanta, threads):
    assert_shares(weights, quanta, threads)


def assert_shares(weights: list[float], quanta: list[float], threads: int) -> None:
    total = 100.0
    owners = {f"owner {number}": weight for number, weight in enumerate(weights)}
    crowd = [
        saturated(owner, 10 * place + again, quanta[place], total)
        for place, owner in enumerate(owners)
        for again in range(threads)  # as many at a time as could run, or nobody can use a large share
    ]
    simulation = Simulation(Fair(owners), crowd, threads=threads).run(until=total / threads)
    used = sum(simulation.used.values())
    given = [simulation.used[owner] / used * sum(weights) / weight for owner, weight in owners.items()]
    assert given == pytest.approx([1.0] * len(given), abs=0.05)
    assert sum(given) ** 2 / (len(given) * sum(share**2 for share in given)) > 0.99, "Jain's index"


def test_of_two_saturated_owners_with_weights_three_and_one_the_first_has_three_quarters():
    crowd = [saturated("ana", 1, 0.010, 100.0), saturated("bo", 2, 0.017, 100.0)]
    simulation = Simulation(Fair({"ana": 3.0}), crowd).run(until=100.0)
    assert simulation.used["ana"] / sum(simulation.used.values()) == pytest.approx(0.75, abs=0.01)


def test_an_owner_whose_works_all_run_loses_nothing_when_somebody_else_is_chosen_meanwhile():
    crowd = [
        *(saturated("ana", pid, 0.005, 100.0) for pid in (1, 2)),
        *(saturated("bo", pid, 0.05, 100.0) for pid in (3, 4)),
    ]
    simulation = Simulation(Fair({"ana": 5.0, "bo": 0.2}), crowd, threads=2).run(until=50.0)
    assert simulation.used["bo"] / sum(simulation.used.values()) == pytest.approx(0.2 / 5.2, rel=0.05)


def test_an_owner_that_had_nothing_to_do_has_saved_up_nothing():
    late = Work(pid=2, owner="bo", came=50.0, quanta=[0.01] * 10_000)
    simulation = Simulation(Fair(), [saturated("ana", 1, 0.01, 100.0), late]).run(until=60.0)
    assert simulation.used["bo"] == pytest.approx(5.0, abs=0.1), "half of the ten seconds since it came"


def test_many_works_of_one_owner_get_no_more_than_one_of_another():
    crowd = [saturated("ana", 1, 0.01, 20.0), *(saturated("bo", pid, 0.01, 20.0) for pid in range(2, 40))]
    simulation = Simulation(Fair(), crowd).run(until=20.0)
    assert simulation.used["ana"] == pytest.approx(10.0, abs=0.1)


def test_classes_have_their_shares_where_all_are_saturated():
    crowd = [saturated(each, pid, 0.02, 2000.0, process_class=each) for pid, each in enumerate(ProcessClass, 1)]
    used = Simulation(Fair(), crowd).run(until=2000.0).used
    assert used["interactive"] / used["batch"] == pytest.approx(
        CLASS_WEIGHTS[ProcessClass.INTERACTIVE] / CLASS_WEIGHTS[ProcessClass.BATCH], rel=0.2
    )
    assert used["batch"] / used["background"] == pytest.approx(8.0, rel=0.2)


@pytest.mark.parametrize("policy", [Priority, Fair, Deadline, Arrival], ids=lambda policy: policy.name)
def test_somebody_who_looks_is_served_before_work_that_nobody_waits_for(policy):
    background = saturated("bo", 1, 0.05, 60.0, process_class=ProcessClass.BACKGROUND)
    questions = [Work(pid=pid, owner="ana", came=pid, quanta=[0.05] * 5) for pid in range(2, 50)]
    Simulation(policy(), [background, *questions]).run(until=60.0)
    waited = [question.ended - question.came - 0.25 for question in questions]
    assert max(waited) <= 0.05 + 1e-6, "the quantum that ran when it came, and none more"


@pytest.mark.parametrize(
    ("policy", "patience"),
    [
        (Fifo, 0.0),
        (Priority, 2 * CLASS + 39.0),
        (Fair, OWED[ProcessClass.INTERACTIVE] + 1.0),
        (Deadline, 86_400.0),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_nobody_starves_beside_more_urgent_work_that_never_ends(policy, patience):
    quantum = 1.0 if patience < 1000 else 60.0
    last = Work(pid=1, owner="bo", came=0.5, quanta=[quantum], process_class=ProcessClass.BACKGROUND, nice=19)
    urgent = [
        Work(pid=pid, owner="ana", came=(pid - 1) * quantum * 0.99, quanta=[quantum], nice=-20)
        for pid in range(2, 2000)
    ]
    first = Work(pid=0, owner="ana", quanta=[quantum])
    simulation = Simulation(policy(), [first, last, *urgent])
    while last.began is None and not simulation.over:
        simulation.step()
    backlog = 0.02 * simulation.now + 3 * quantum  # a little more comes than can be done
    assert last.began - last.came <= patience + backlog
    assert simulation.entries, "others waited still"


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
@given(works=works, moves=st.lists(st.integers(0, 1000), max_size=60))
@SCHEDULES
def test_what_left_is_not_chosen_and_what_stayed_is(policy, works, moves):
    queue, staying = policy(), {}
    for work in works:
        staying[work.pid] = queue.enter(work.claim(work.came), work)
    for move in moves:
        entry = staying.pop(move, None)
        if entry is not None:
            queue.leave(entry)
            queue.leave(entry)  # twice does nothing
    assert len(queue) == len(staying)
    assert {entry.item.pid for entry in queue.entries()} == set(staying)
    chosen = []
    while (entry := queue.first()) is not None:
        assert queue.choose() is entry
        chosen.append(entry.item.pid)
    assert sorted(chosen) == sorted(staying)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_queue_from_which_thousands_left_is_swept(policy):
    queue = policy()
    entries = [queue.enter(Claim(pid=pid), pid) for pid in range(5000)]
    for entry in entries[:-1]:
        queue.leave(entry)
    assert len(queue) == 1
    assert queue.choose() is entries[-1]


def test_thousands_of_owners_with_work_cost_no_look_at_all_of_them_for_each_new_one(monkeypatch):
    looked = 0
    forget = fair._Level._forget

    def counting(level):
        nonlocal looked
        looked += len(level.owners)
        forget(level)

    monkeypatch.setattr(fair._Level, "_forget", counting)
    policy = Fair()
    for number in range(20_000):
        policy.enter(Claim(pid=number, owner=f"owner {number}"), number)
    assert looked < 3 * 20_000
    chosen = set()
    for _ in range(20_000):
        entry = policy.choose()
        policy.settle(entry)  # what has turns is looked at with each choice: a device has few of them
        chosen.add(entry.claim.owner)
    assert len(chosen) == 20_000


def test_owners_that_had_work_once_are_forgotten_where_many_have_some(monkeypatch):
    monkeypatch.setattr(fair, "KEPT", 40)
    policy = Fair()
    for number in range(100):
        policy.enter(Claim(owner=f"owner {number}"), number)
    for number in range(100, 2000):
        entry = policy.choose()
        policy.settle(entry)
        policy.charge(entry.claim, 0.01)
        policy.enter(Claim(owner=f"owner {number}"), number)
        assert len(policy.used()) <= 2 * (100 + 20)
    assert {entry.claim.owner for entry in policy.entries()} <= {owner for _, owner in policy.used()}


@given(works=works, switches=st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(0, 3)), max_size=8))
@SCHEDULES
def test_policies_are_switched_while_work_waits_and_nothing_is_lost(works, switches):
    simulation = Simulation(Fair(), works)
    for when, which in sorted(switches):
        simulation.run(until=when)
        simulation.switch(POLICIES[which]())
    simulation.run()
    assert sorted(simulation.turns) == sorted(work.pid for work in works for _ in work.quanta)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
@given(works=works, when=st.floats(0.0, 30.0))
@SCHEDULES
def test_why_something_waits_is_what_happens_then(policy, works, when):
    """Each reason is held against what the simulation does next, with nothing more coming."""
    simulation = Simulation(policy(), works).run(until=when)
    queue = simulation.policy
    reasons = {pid: queue.why(entry) for pid, entry in simulation.entries.items()}
    order = []
    while (entry := queue.choose()) is not None:
        order.append(entry)
        if not isinstance(queue, Fair):
            continue
        said = reasons[entry.claim.pid]
        if len(order) == 1:
            assert said.startswith("for the device"), said
        first = order[0].claim
        if said.startswith("behind '"):
            assert (first.process_class, first.owner) != (entry.claim.process_class, entry.claim.owner)
            assert said.startswith(f"behind '{first.owner}', who")
        elif " work, whose" in said:
            assert said.startswith(f"behind {first.process_class} work")
            assert first.process_class is not entry.claim.process_class
    if isinstance(queue, Fair):
        return
    for place, entry in enumerate(order):
        said = reasons[entry.claim.pid]
        numbers = [1 if word == "one" else int(word) for word in said.split() if word == "one" or word.isdigit()]
        assert sum(numbers) == place, said
