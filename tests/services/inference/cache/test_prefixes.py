"""The prefix tree: what is found, what is idle, and in which order it goes."""

from __future__ import annotations

import pytest

from services.inference.cache.keys import PAGE, packed, page_keys, root_key, serialised
from services.inference.cache.prefixes import Node, Prefixes

SPACE = b"model"


def content(*firsts: int) -> list[int]:
    """Tokens of one page for each number."""
    return [token for first in firsts for token in [first] * PAGE]


class Tree(Prefixes):
    """A tree to which whole chains are added, page ids counted up."""

    def add(self, *firsts: int, owner: str = "a") -> list[Node]:
        chain: list[Node] = []
        for key in page_keys(SPACE, owner, content(*firsts)):
            node = self.find(key)
            if node is None:
                node = Node(key, len(self._by_key), owner, chain[-1] if chain else None)
                self.enter(node)
            else:
                self.claim(node)
            chain.append(node)
        return chain

    def rest(self, chain: list[Node]) -> None:
        for node in reversed(chain):
            self.waive(node)

    def found(self, *firsts: int, owner: str = "a", limit: int | None = None) -> list[int]:
        tokens = serialised(packed(content(*firsts)))
        nodes = self.longest(root_key(SPACE, owner), tokens, len(firsts) if limit is None else limit)
        return [node.page for node in nodes]

    def eviction_order(self, owner: str | None = None) -> list[int]:
        order = []
        while (node := self.oldest(owner)) is not None:
            assert self.remove(node) == [node], "an idle node was evicted before its children"
            order.append(node.page)
        return order


@pytest.fixture
def tree() -> Tree:
    return Tree()


def test_the_longest_chain_of_known_pages_is_found(tree):
    tree.add(1, 2, 3)
    assert tree.found(1, 2, 4) == [0, 1]
    assert tree.found(1, 2, 3, 4) == [0, 1, 2]
    assert tree.found(2, 3) == []


def test_no_more_pages_are_found_than_asked_for(tree):
    tree.add(1, 2, 3)
    assert tree.found(1, 2, 3, limit=2) == [0, 1]
    assert tree.found(1, 2, 3, limit=0) == []


def test_an_owner_finds_its_own_prefixes_only(tree):
    tree.add(1, 2, owner="a")
    assert tree.found(1, 2, owner="b") == []


def test_a_page_is_found_by_its_number(tree):
    chain = tree.add(1, 2)
    assert tree.at(1) is chain[1]
    assert tree.at(7) is None


def test_what_is_claimed_is_not_idle(tree):
    chain = tree.add(1, 2)
    assert (tree.idle(), tree.idle("a"), tree.oldest()) == (0, 0, None)
    tree.rest(chain)
    assert (tree.idle(), tree.idle("a"), tree.idle("b")) == (2, 2, 0)


def test_a_parent_is_not_idle_while_a_child_is_claimed(tree):
    parent, child = tree.add(1, 2)
    tree.waive(parent)
    assert tree.idle() == 0
    tree.waive(child)
    assert tree.idle() == 2


def test_a_claim_below_wakes_all_above(tree):
    chain = tree.add(1, 2, 3)
    tree.rest(chain)
    tree.claim(chain[-1])
    assert tree.idle() == 0
    tree.waive(chain[-1])
    assert tree.eviction_order() == [2, 1, 0]


def test_leaves_go_before_their_parents(tree):
    tree.rest(tree.add(1, 2, 3))
    assert tree.eviction_order() == [2, 1, 0]


def test_the_chain_that_rests_longest_goes_first(tree):
    first, second = tree.add(1, 2), tree.add(3, 4)
    tree.rest(second)
    tree.rest(first)
    assert tree.eviction_order() == [3, 2, 1, 0]


def test_a_chain_used_again_goes_last(tree):
    tree.rest(tree.add(1, 2))
    tree.rest(tree.add(3))
    tree.rest(tree.add(1, 2))
    assert tree.eviction_order() == [2, 1, 0]


def test_a_shared_parent_goes_after_both_branches(tree):
    left, right = tree.add(1, 2), tree.add(1, 3)
    tree.rest(left)
    tree.rest(right)
    assert tree.eviction_order() == [1, 2, 0]


def test_a_child_entered_below_an_idle_parent_goes_before_it(tree):
    parent = tree.add(1)
    tree.rest(parent)
    child = tree.add(1, 2)[1]
    tree.waive(parent[0])
    assert tree.idle() == 0
    tree.waive(child)
    assert tree.eviction_order() == [1, 0]


def test_the_oldest_of_one_owner_passes_over_those_of_others(tree):
    tree.rest(tree.add(1, owner="a"))
    tree.rest(tree.add(1, 2, owner="b"))
    assert tree.eviction_order("b") == [2, 1]
    assert tree.eviction_order() == [0]


def test_a_removed_node_takes_all_below_with_it(tree):
    tree.rest(tree.add(1, 2, 3))
    branch = tree.add(1, 4)
    removed = tree.remove(branch[0])
    assert sorted(node.page for node in removed) == [0, 1, 2, 3]
    assert not any(node.in_tree for node in removed)
    assert tree.found(1, 4) == []
    assert (tree.idle(), tree.at(3)) == (0, None)


def test_a_claimed_branch_that_is_removed_claims_its_parent_no_longer(tree):
    parent, child = tree.add(1, 2)
    tree.waive(parent)
    tree.remove(child)
    assert tree.eviction_order() == [0]


def test_removing_what_is_out_of_the_tree_removes_nothing(tree):
    (node,) = tree.add(1)
    tree.remove(node)
    tree.add(1)
    assert tree.remove(node) == []
    assert tree.found(1) == [0]


def test_an_owner_without_idle_nodes_leaves_nothing_behind(tree):
    tree.rest(tree.add(1, 2))
    tree.eviction_order()
    assert not tree._idle_of
