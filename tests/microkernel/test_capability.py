"""Rights and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkernel.capability import ADMIN, ALL, Identity, Revoked, Rights, TokenFile
from microkernel.errors import Invalid, PreconditionFailed
from microkernel.message import convert

GOOD = "a-token-of-the-environment"


def test_what_changes_the_node_is_not_part_of_all_of_the_kernel() -> None:
    rights = Rights(allow=("kernel.*",))
    assert rights.permits("kernel.services")
    assert {
        "kernel.add",
        "kernel.bring",
        "kernel.export",
        "kernel.import",
        "kernel.leave_to_others",
        "kernel.replace",
        "kernel.remove",
        "kernel.restart",
        "kernel.shutdown",
        "kernel.token_create",
        "kernel.token_revoke",
        "kernel.token_rotate",
    } == ADMIN
    assert not any(rights.permits(target) for target in ADMIN)


@pytest.mark.parametrize("target", sorted(ADMIN))
def test_what_changes_the_node_is_given_by_its_name_or_with_everything(target: str) -> None:
    assert Rights(allow=(target,)).permits(target)
    assert ALL.permits(target)
    assert not Rights(deny=("kernel.*",)).permits(target)


@pytest.mark.parametrize(
    ("pattern", "covered", "beyond"),
    [
        ("a.b", ["a.b"], ["a.*", "a.>", "a", "a.b.c", "*.b", ">"]),
        ("a.*", ["a.b", "a.*"], ["a", "a.b.c", "a.>", "*.b", "*.*", ">", "b.a"]),
        ("a.>", ["a.b", "a.b.c", "a.*", "a.>", "a.*.c", "a.b.>"], ["a", "b.a", ">", "*.b", "*.>"]),
        (">", ["a", "a.b", "*", ">", "a.>"], []),
        ("*", ["a", "*"], ["a.b", ">", "a.*"]),
        ("*.b", ["a.b", "*.b"], ["a.*", "b", "a.b.c", ">"]),
    ],
)
def test_a_right_to_events_covers_a_pattern_only_if_it_covers_all_of_it(
    pattern: str, covered: list[str], beyond: list[str]
) -> None:
    rights = Rights(publish=(pattern,), subscribe=("no.such", pattern))
    for each in covered:
        assert rights.permits_subscribe(each)
        assert rights.permits_publish(each)
    for each in beyond:
        assert not rights.permits_subscribe(each)
        assert not rights.permits_publish(each)


def test_calls_and_events_are_two_kinds_of_rights() -> None:
    rights = Rights(allow=("kv.*",), publish=("colour.>",), subscribe=())
    assert rights.permits("kv.get")
    assert not rights.permits("colour.red")
    assert rights.permits_publish("colour.red")
    assert not rights.permits_publish("kv.get")
    assert not rights.permits_subscribe("colour.red")


def test_rights_that_do_not_speak_of_events_read_their_patterns_of_calls_as_subjects() -> None:
    rights = Rights(allow=("kv.*",), deny=("kv.secret",))
    for permits in (rights.permits_publish, rights.permits_subscribe):
        assert permits("kv.changed")
        assert not permits("kv.secret")
        assert not permits("memory.pressure")


def test_a_revocation_ends_a_token_by_any_of_its_ids_and_never_the_nodes_own() -> None:
    assert Revoked(("b", "x")).ends(("a", "b"))
    assert not Revoked(("x",)).ends(("a", "b"))
    assert Revoked(everything=True).ends(("a",))
    assert not Revoked(everything=True).ends(())


def test_an_identity_without_rights_is_an_error() -> None:
    with pytest.raises(TypeError, match="rights"):
        Identity("ana")  # type: ignore[call-arg]
    with pytest.raises(Invalid, match="rights"):
        convert({"user": "ana"}, Identity, what="an identity")


def test_the_token_of_a_node_has_all_rights(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "token")
    assert file.authenticate(file.token) == Identity("root", ALL)
    assert file.authenticate(file.token + "x") is None


def test_a_given_token_is_taken_without_the_blanks_around_it_and_not_written_down(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "token", given=f" {GOOD}\n")
    assert file.authenticate(GOOD) == Identity("root", ALL)
    assert not (tmp_path / "token").exists()


@pytest.mark.parametrize(
    "given", ["short", "   ", "x" * 15, "sixteen-letters-ä", "sixteen letters with blanks", "x" * 4097]
)
def test_a_given_token_that_is_not_safe_or_cannot_be_sent_is_refused_and_not_repeated(
    given: str, tmp_path: Path
) -> None:
    with pytest.raises(PreconditionFailed, match="MICROKERNEL_TOKEN") as caught:
        TokenFile(tmp_path / "token", given=given)
    assert given.strip() == "" or given not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_signed_token_cannot_become_the_nodes_own_by_a_slip(tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="a signed token cannot be the node's own"):
        TokenFile(tmp_path / "token", given="mk1.AAAAAAAAAAAAAAAAAAAA")


@pytest.mark.parametrize("stored", ["short", "sixteen letters with blanks", "sixteen-letters-ä"])
def test_a_stored_token_is_held_to_the_same(stored: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(stored)
    with pytest.raises(PreconditionFailed, match="delete the file"):
        TokenFile(tmp_path / "token")
