"""Which group is called, and the promise behind it, over all orders in which things can happen."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from services.training.agent.formation import Formation


def formed(formation: Formation, count: int) -> list[int]:
    """A first group that is complete."""
    for worker in range(count):
        formation.arrived(worker)
    places = formation.form()
    for place in places:
        formation.formed(place.worker, place.generation)
    return [place.worker for place in places]


def test_a_first_group_begins_at_the_newest_checkpoint():
    formation = Formation(3)
    assert formation.missing == 3
    for worker in range(3):
        formation.arrived(worker)
    assert formation.has_to_form
    places = formation.form()
    assert [(place.rank, place.world, place.restore) for place in places] == [(n, 3, True) for n in range(3)]
    assert not formation.has_to_form


def test_who_lives_keeps_what_it_has_and_comes_before_the_new():
    formation = Formation(3)
    formed(formation, 3)
    formation.left(0)
    assert formation.missing == 1
    formation.arrived(7)
    places = formation.form()
    assert [(place.worker, place.rank) for place in places] == [(1, 0), (2, 1), (7, 2)]
    assert not any(place.restore for place in places)


def test_where_nobody_is_left_who_has_done_a_step_all_begin_at_a_checkpoint():
    formation = Formation(2)
    formed(formation, 2)
    formation.left(0)
    formation.arrived(2)
    formation.form()  # 2 is new, and 1 dies before it can give what it has
    formation.left(1)
    formation.arrived(3)
    assert all(place.restore for place in formation.form())


def test_a_complaint_about_an_older_group_is_no_news():
    formation = Formation(2)
    formed(formation, 2)
    formation.left(0)
    formation.arrived(2)
    formation.form()
    formation.broke(1, 1)
    assert not formation.has_to_form
    formation.broke(1, 2)
    assert formation.has_to_form


def test_a_group_goes_on_smaller_where_nobody_comes():
    formation = Formation(3)
    formed(formation, 3)
    formation.left(2)
    assert [(place.rank, place.world) for place in formation.form()] == [(0, 2), (1, 2)]


# The commit: a step is done by all workers or by none, over all interleavings.

STEPS, WORLD, KILLS = 2, 3, 3


class Member(NamedTuple):
    """A worker: what it has applied, in order; whether it has given its part of the next sum; its group."""

    done: tuple[int, ...]
    gave: bool
    group: int  # 0: in none


class World(NamedTuple):
    members: tuple[Member | None, ...]  # None: dead
    group: int
    kills: int
    saved: tuple[int, ...]  # what the newest checkpoint has


def moves(world: World):
    """Every world that may come next."""
    living = [place for place, member in enumerate(world.members) if member is not None]
    for place in living:
        member = world.members[place]
        others = [world.members[other] for other in living if other != place]
        if world.kills < KILLS:
            yield put(world, place, None)._replace(kills=world.kills + 1)
        in_group = member.group == world.group and len(living) == WORLD
        step = len(member.done)
        if step == STEPS:
            continue
        if in_group and not member.gave:
            yield put(world, place, member._replace(gave=True))
        # The sum is whole once all have given their part for this step; each hears of that by itself, in any order.
        whole = (
            in_group
            and member.gave
            and all(
                other.group == world.group and (len(other.done) > step or (len(other.done) == step and other.gave))
                for other in others
            )
        )
        if whole:
            yield put(world, place, Member((*member.done, step), gave=False, group=member.group))
    if len(living) < WORLD or any(world.members[place].group != world.group for place in living):
        yield form(world)
    longest = max((member.done for member in world.members if member is not None), key=len, default=world.saved)
    first = next((member for member in world.members if member is not None), None)
    if first is not None and len(first.done) > len(world.saved) and first.done == longest[: len(first.done)]:
        yield world._replace(saved=first.done)


def put(world: World, place: int, member: Member | None) -> World:
    return world._replace(members=(*world.members[:place], member, *world.members[place + 1 :]))


def form(world: World) -> World:
    """As `Formation` and `Group.bring_up` do: all come to be where the one is that did most, and give parts anew."""
    living = [member for member in world.members if member is not None]
    have = max((member.done for member in living), key=len, default=world.saved)
    group = world.group + 1
    return world._replace(members=tuple(Member(have, gave=False, group=group) for _ in range(WORLD)), group=group)


def test_whatever_is_killed_when_every_step_is_done_once_and_in_order():
    """All interleavings of three workers, two steps and up to three kills, with groups formed anew at any moment."""
    begin = World(tuple(Member((), gave=False, group=1) for _ in range(WORLD)), 1, 0, ())
    seen, queue, ends = {begin}, deque([begin]), 0
    while queue:
        world = queue.popleft()
        living = [member for member in world.members if member is not None]
        histories = {member.done for member in living} | {world.saved}
        assert all(history == tuple(range(len(history))) for history in histories), world
        lengths = [len(member.done) for member in living]
        assert not lengths or max(lengths) - min(lengths) <= 1, world
        if living and all(len(member.done) == STEPS for member in living) and len(living) == WORLD:
            ends += 1
        following = [each for each in moves(world) if each.group <= KILLS + 2]
        assert following or ends, f"stuck: {world}"
        for each in following:
            if each not in seen:
                seen.add(each)
                queue.append(each)
    assert ends > 0
    assert len(seen) > 500
