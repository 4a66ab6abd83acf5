"""Revocations: at once in memory, durable, and bounded."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from microkernel import durable, revocation
from microkernel.errors import PreconditionFailed
from microkernel.revocation import GRACE, Revocation, Revocations

NOW = 1_000_000.0


def one(number: int, expires: float | None = None) -> Revocation:
    return Revocation(id=f"{number:032x}", at=NOW, by="root", expires=expires)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "revoked.jsonl"


def test_what_was_written_is_there_after_a_restart_and_only_its_user_can_read_it(path: Path) -> None:
    kept = Revocations(path, NOW)
    assert not path.exists()
    for number in range(3):
        assert kept.add(one(number))
        assert kept.has_any([one(number).id, "other"])
        kept.write()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Revocations(path, NOW).all() == [one(0), one(1), one(2)]


def test_a_second_revocation_changes_nothing_and_writes_nothing(path: Path) -> None:
    kept = Revocations(path, NOW)
    for _ in range(3):
        kept.add(one(1))
        kept.write()
    assert len(path.read_bytes().splitlines()) == 1


def test_what_can_no_longer_be_shown_is_forgotten_a_day_after_its_expiry(path: Path) -> None:
    kept = Revocations(path, NOW)
    for number, expires in enumerate((NOW, NOW + 10, None)):
        kept.add(one(number, expires))
    kept.write()
    assert len(Revocations(path, NOW + GRACE)) == 3
    assert [each.expires for each in Revocations(path, NOW + GRACE + 1).all()] == [NOW + 10, None]
    assert len(path.read_bytes().splitlines()) == 2


def test_more_than_can_be_kept_is_refused_until_something_expires(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(revocation, "MAX_REVOCATIONS", 3)
    kept = Revocations(path, NOW)
    for number in range(3):
        kept.add(one(number, NOW))
    with pytest.raises(PreconditionFailed, match="rotate"):
        kept.add(one(9))
    assert not kept.has_any([one(9).id])
    late = Revocation(id=f"{9:032x}", at=NOW + GRACE + 1, by="root")
    assert kept.add(late)
    assert kept.all() == [late]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_last_line_that_a_crash_has_cut_off_is_dropped_and_the_next_one_is_whole(path: Path, cut: int) -> None:
    kept = Revocations(path, NOW)
    for number in range(2):
        kept.add(one(number))
    kept.write()
    path.write_bytes(path.read_bytes()[:-cut])
    kept = Revocations(path, NOW)
    assert kept.all() == [one(0)]
    kept.add(one(5))
    kept.write()
    assert Revocations(path, NOW).all() == [one(0), one(5)]


@pytest.mark.parametrize("damage", [b"junk", b"{}", b"\xff", b'{"id":7}', b""])
def test_any_other_damage_ends_the_boot_as_a_revoked_token_might_come_back(path: Path, damage: bytes) -> None:
    kept = Revocations(path, NOW)
    kept.add(one(1))
    kept.write()
    path.write_bytes(damage + b"\n" + path.read_bytes())
    with pytest.raises(PreconditionFailed, match="line 1 of .* cannot be read"):
        Revocations(path, NOW)


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    path.mkdir()
    with pytest.raises(PreconditionFailed, match="says which tokens are revoked"):
        Revocations(path, NOW)


def test_a_write_that_breaks_off_is_mended_by_the_next_one(path: Path, monkeypatch) -> None:
    kept = Revocations(path, NOW)
    kept.add(one(1))
    kept.write()

    def full(path: Path, body: bytes) -> None:
        with path.open("ab") as file:
            file.write(body[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "append", full)
        kept.add(one(2))
        with pytest.raises(OSError, match="No space"):
            kept.write()
    assert kept.has_any([one(2).id])
    kept.add(one(3))
    kept.write()
    assert Revocations(path, NOW).all() == [one(1), one(2), one(3)]


def test_a_replacement_that_was_killed_leaves_the_old_file_and_is_swept_away_by_the_next(path: Path) -> None:
    durable.create(path, b"old\n")
    path.with_name("revoked.jsonl.new").write_bytes(b"half")
    durable.replace(path, b"new\n")
    assert path.read_bytes() == b"new\n"
    assert [each.name for each in path.parent.iterdir()] == ["revoked.jsonl"]
    assert path.stat().st_mode & 0o777 == 0o600
