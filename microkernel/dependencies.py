"""Who comes before whom: order, gaps, circles and dependents of what services need and use. Sans-IO.

`needs` maps each service to those that it cannot be without, `uses` to those that it calls when they are there. Names
that are no key of `needs` are not here: a need of that kind counts as met, a use as none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from microkernel.errors import Invalid

__all__ = ["EVERYTHING", "Edges", "circles", "missing", "start_order", "with_dependents"]

EVERYTHING = "*"  # as a use: whatever there is

Edges = Mapping[str, Iterable[str]]


def start_order(needs: Edges, uses: Edges | None = None) -> tuple[str, ...]:
    """The names, each after what it needs and, where no circle forbids it, after what it uses.

    Raises `Invalid` that shows a circle of needs.
    """
    edges = {name: {need for need in needed if need in needs} for name, needed in needs.items()}
    uses = uses or {}
    for name in sorted(uses):
        for use in sorted(uses[name]):
            if use in edges and not _reaches(edges, use, name):
                edges[name].add(use)
    # Who uses everything comes after all but those who use it, so that it stops before what it calls.
    for name in sorted(uses):
        if EVERYTHING in uses[name]:
            edges[name].update(other for other in edges if not _reaches(edges, other, name))
    return _sorted(edges)


def missing(needs: Edges) -> dict[str, str]:
    """Those with a need that is not here, and the first such need."""
    gaps = {name: [need for need in needed if need not in needs] for name, needed in needs.items()}
    return {name: gap[0] for name, gap in gaps.items() if gap}


def circles(needs: Edges) -> dict[str, str]:
    """Those that are part of a circle of needs, or need somebody who is, and a sentence that shows the circle."""
    found: dict[str, str] = {}
    for name in needs:
        try:
            start_order({each: needs[each] for each in _reached(needs, name)})
        except Invalid as error:
            found[name] = error.message
    return found


def with_dependents(needs: Edges, name: str) -> tuple[str, ...]:
    """`name` and all that need it, directly or through others, in the order they start."""
    found = {name}
    while more := {each for each, needed in needs.items() if each not in found and found.intersection(needed)}:
        found |= more
    return start_order({each: needs[each] for each in found if each in needs})


def _sorted(edges: Edges) -> tuple[str, ...]:
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise Invalid(
                f"services need each other in a circle: {circle}",
                remedy="let one of them use the other instead",
            )
        path.append(name)
        for earlier in sorted(edges[name]):
            visit(earlier)
        path.pop()
        order.append(name)

    for name in sorted(edges):
        visit(name)
    return tuple(order)


def _reaches(edges: Edges, start: str, goal: str) -> bool:
    return goal in _reached(edges, start)


def _reached(edges: Edges, start: str) -> set[str]:
    """`start` and all that it leads to."""
    found, fresh = {start}, [start]
    while fresh:
        more = {each for each in edges[fresh.pop()] if each in edges and each not in found}
        found |= more
        fresh.extend(more)
    return found
