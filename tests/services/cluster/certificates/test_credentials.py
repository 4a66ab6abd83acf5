"""What a node keeps: its key, its certificate and its roots, whole or not at all."""

from __future__ import annotations

import stat

import pytest
from certified import DAY, NOW, Cluster
from cryptography.x509 import random_serial_number
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid, PreconditionFailed
from services.cluster.certificates.certificate import BACKDATE, LIFETIME
from services.cluster.certificates.credentials import Credentials, load, store
from services.cluster.certificates.pem import read
from services.cluster.certificates.request import NodeKey


def answer_for(cluster, node="n1", **more):
    key = NodeKey()
    return key, cluster.authority.sign(key.request(node), node, now=NOW, **more)


def test_what_was_stored_is_loaded(cluster):
    stored = cluster.node("n1")
    assert load(stored.path, "n1") == stored
    assert stored.roots == cluster.authority.roots(NOW)


def test_nobody_else_can_read_them(cluster):
    assert stat.S_IMODE(cluster.node("n1").path.stat().st_mode) == 0o600


def test_a_node_that_has_not_joined_has_none(tmp_path):
    assert load(tmp_path / "node.pem", "n1") is None


def test_renewing_replaces_key_and_certificate_together(cluster):
    first = cluster.node("n1")
    before = read(first.path)
    second = cluster.node("n1")
    after = read(second.path)
    assert first.path == second.path
    assert (before[0] != after[0], before[1] != after[1], before[2] == after[2]) == (True, True, True)


def test_a_half_written_file_of_a_killed_process_is_nothing(cluster):
    stored = cluster.node("n1")
    stored.path.with_name("node.pem.new").write_text("-----BEGIN PRIV")
    assert load(stored.path, "n1") == stored
    assert cluster.node("n1").path.with_name("node.pem.new").exists() is False


@pytest.mark.parametrize(
    "keep", [[], [0], [0, 1], [0, 2], [1, 2], [1, 0, 2], [0, 2, 1], [0, 1, 1], [0, 1, 2, 2, 2]], ids=str
)
def test_a_part_of_them_is_recognised(cluster, keep):
    path = cluster.node("n1").path
    sections = read(path)
    path.write_text("".join(sections[each] for each in keep))
    with pytest.raises(PreconditionFailed, match=r"cannot be used: .+join the cluster again"):
        load(path, "n1")


@given(st.integers(0, 3000), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_is_found_or_changes_nothing(cluster, place, value):
    stored = cluster.node("whole")
    raw = bytearray(stored.path.read_bytes())
    raw[place % len(raw)] = value
    path = stored.path.with_name("changed.pem")
    path.write_bytes(raw)
    try:
        changed = load(path, "whole")
    except PreconditionFailed:
        return
    assert changed is not None
    assert (changed.serial, changed.roots) == (stored.serial, stored.roots)


@given(st.binary(max_size=4000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_recognised_as_no_credentials(tmp_path, raw):
    path = tmp_path / "node.pem"
    path.write_bytes(raw)
    with pytest.raises(PreconditionFailed):
        load(path, "n1")


def test_the_key_of_another_certificate_is_recognised(cluster):
    one, two = cluster.node("n1").path, cluster.node("n2").path
    one.write_text("".join([read(two)[0], *read(one)[1:]]))
    with pytest.raises(PreconditionFailed, match="do not fit each other"):
        load(one, "n1")


def test_the_files_of_another_node_are_recognised(cluster):
    with pytest.raises(PreconditionFailed, match="it is for 'n2', and this node is 'n1'"):
        load(cluster.node("n2").path, "n1")


def test_the_roots_of_another_cluster_are_recognised(cluster, tmp_path):
    path = cluster.node("n1").path
    other = Cluster(tmp_path / "other").authority.roots(NOW)
    path.write_text("".join([*read(path)[:2], *other]))
    with pytest.raises(PreconditionFailed, match="none of the roots"):
        load(path, "n1")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PreconditionFailed, match="cannot read"):
        load(tmp_path, "n1")


def test_what_is_no_root_among_the_roots_is_recognised(cluster):
    path, other = cluster.node("n1").path, read(cluster.node("n2").path)[1]
    path.write_text("".join([*read(path), other]))
    with pytest.raises(PreconditionFailed, match="cannot be used"):
        load(path, "n1")


# Answers of the authority


def test_an_answer_for_another_node_is_refused_and_what_was_there_stays(cluster):
    stored = cluster.node("n1")
    key, answer = answer_for(cluster, "n2")
    with pytest.raises(Invalid, match="it is for 'n2'"):
        store(stored.path, key, answer, "n1", now=NOW)
    assert load(stored.path, "n1") == stored


def test_an_answer_to_another_request_is_refused(cluster, tmp_path):
    _, answer = answer_for(cluster)
    with pytest.raises(Invalid, match="do not fit each other"):
        store(tmp_path / "node.pem", NodeKey(), answer, "n1", now=NOW)


def test_an_answer_without_its_root_is_refused(cluster, tmp_path):
    key, answer = answer_for(cluster)
    _, other = answer_for(Cluster(tmp_path / "other"))
    mixed = type(answer)(**{name: getattr(answer, name) for name in answer.__struct_fields__} | {"roots": other.roots})
    with pytest.raises(Invalid, match="none of the roots"):
        store(tmp_path / "node.pem", key, mixed, "n1", now=NOW)


def test_a_node_whose_clock_is_behind_the_clusters_is_told_so_when_it_joins(cluster, tmp_path):
    key, answer = answer_for(cluster)
    with pytest.raises(Invalid, match=r"clock is behind .*set the clock"):
        store(tmp_path / "node.pem", key, answer, "n1", now=NOW - BACKDATE - 5)
    assert store(tmp_path / "node.pem", key, answer, "n1", now=NOW - BACKDATE + 5)


def test_an_answer_that_has_expired_is_refused(cluster, tmp_path):
    key, answer = answer_for(cluster)
    with pytest.raises(Invalid, match="has expired"):
        store(tmp_path / "node.pem", key, answer, "n1", now=NOW + LIFETIME)


@given(st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_an_answer_of_any_text_is_invalid(cluster, text):
    key, answer = answer_for(cluster)
    for field in ({"certificate": text}, {"roots": (text,)}):
        wild = type(answer)(**{name: getattr(answer, name) for name in answer.__struct_fields__} | field)
        with pytest.raises(Invalid):
            store(cluster.folder / "wild.pem", key, wild, "n1", now=NOW)


def test_what_stands_around_a_certificate_in_an_answer_is_not_stored(cluster, tmp_path):
    key, answer = answer_for(cluster)
    more = "Subject: somebody\n" + answer.certificate + "and more\n"
    wild = type(answer)(**{name: getattr(answer, name) for name in answer.__struct_fields__} | {"certificate": more})
    store(tmp_path / "node.pem", key, wild, "n1", now=NOW)
    assert load(tmp_path / "node.pem", "n1") is not None


def test_a_place_that_cannot_be_written_is_named(cluster, tmp_path):
    key, answer = answer_for(cluster)
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="cannot write"):
        store(tmp_path / "file" / "node.pem", key, answer, "n1", now=NOW)


# Time


def test_an_expired_certificate_says_what_to_do(cluster):
    stored = cluster.node("n1")
    stored.check(NOW + DAY - 1)
    with pytest.raises(PreconditionFailed, match=r"has expired .*new join token"):
        stored.check(NOW + DAY)


def test_a_certificate_that_is_not_valid_yet_says_that_the_clock_is_wrong(cluster):
    stored = cluster.node("n1")
    stored.check(NOW - BACKDATE)
    with pytest.raises(PreconditionFailed, match="clock is behind"):
        stored.check(NOW - BACKDATE - 1)


def of_serial(serial: int) -> Credentials:
    return Credentials(path=None, node="n1", serial=format(serial, "x"), issued=1000.0, expires=2000.0, roots=())


@given(st.integers(1, (1 << 159) - 1))
def test_renewal_is_due_after_half_its_life_and_within_a_tenth_more(serial):
    due = of_serial(serial).renewal
    assert 1500.0 <= due < 1600.0
    assert not of_serial(serial).is_due(due - 0.001)
    assert of_serial(serial).is_due(due)


def test_nodes_that_were_started_together_do_not_renew_together():
    times = {of_serial(random_serial_number()).renewal for _ in range(100)}
    assert max(times) - min(times) > 50  # of 100


def test_the_part_before_it_was_made_does_not_count_as_life(cluster):
    """A certificate of a minute begins five minutes before it: half its life is not over when it is made."""
    stored = cluster.node("n1", lifetime=60.0)
    assert not stored.is_due(NOW + 28)
    assert stored.is_due(NOW + 37)
