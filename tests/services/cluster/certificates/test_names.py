"""Names of nodes, and the names that certificates are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.cluster.certificates.names import ADMITTING, host_of, node_of

NODES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(NODES)
def test_a_node_is_found_by_the_name_that_its_certificate_is_for(node):
    assert node_of(host_of(node)) == node


@pytest.mark.parametrize("node", ["", "-", "a-", "N1", "a.b", "a b", "a_b", "é", "a\n", "*", "a" * 64])
def test_what_cannot_stand_in_a_certificate_is_no_name_of_a_node(node):
    with pytest.raises(Invalid, match="cannot be the name of a node"):
        host_of(node)


@given(st.text())
def test_any_text_is_a_name_or_refused(node):
    try:
        host = host_of(node)
    except Invalid:
        return
    assert host.isascii()
    assert node_of(host) == node


@pytest.mark.parametrize(
    "host", [ADMITTING, "n1", ".nodes.microkernel.internal", "a.n1.nodes.microkernel.internal", ""]
)
def test_a_name_of_another_kind_is_of_no_node(host):
    assert node_of(host) is None
