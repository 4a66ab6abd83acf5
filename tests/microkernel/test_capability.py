"""Rights and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkernel.capability import ADMIN, ALL, Identity, Rights, TokenFile
from microkernel.errors import Invalid, PreconditionFailed
from microkernel.message import convert

GOOD = "a-token-of-the-environment"


def test_what_changes_the_node_is_not_part_of_all_of_the_kernel() -> None:
    rights = Rights(allow=("kernel.*",))
    assert rights.permits("kernel.services")
    assert {"kernel.add", "kernel.remove", "kernel.restart", "kernel.shutdown"} == ADMIN
    assert not any(rights.permits(target) for target in ADMIN)


@pytest.mark.parametrize("target", sorted(ADMIN))
def test_what_changes_the_node_is_given_by_its_name_or_with_everything(target: str) -> None:
    assert Rights(allow=(target,)).permits(target)
    assert ALL.permits(target)
    assert not Rights(deny=("kernel.*",)).permits(target)


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


@pytest.mark.parametrize("stored", ["short", "sixteen letters with blanks", "sixteen-letters-ä"])
def test_a_stored_token_is_held_to_the_same(stored: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(stored)
    with pytest.raises(PreconditionFailed, match="delete the file"):
        TokenFile(tmp_path / "token")
