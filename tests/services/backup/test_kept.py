"""What a node keeps of another one: each content once, one replica that is whole, whatever breaks off."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import DataLoss, Invalid, NotFound, PreconditionFailed
from microkernel.portable import EntryPiece, pieces_of
from services.backup import kept as module
from services.backup.kept import KeptReplica, ReplicaTaker
from services.backup.messages import KeepReplica

Given = dict[str, dict[str, bytes]]
LARGE = bytes(range(256)) * 4096  # four pieces


def asked(*parts: str) -> KeepReplica:
    return KeepReplica(at=1_700_000_000, made_by="0.1.0", parts=parts)


def told(given: Given, known: Iterable[bytes] = ()) -> list[tuple[str, list[EntryPiece]]]:
    """What a node says that has this, to one that has contents with the `known` digests."""
    has, said = set(known), []
    for part in sorted(given):
        pieces: list[EntryPiece] = []
        for name in sorted(given[part]):
            content = given[part][name]
            digest = blake3.blake3(content)
            if digest.digest()[:16] in has:
                pieces.append(EntryPiece(name=name, size=len(content), digest=digest.hexdigest(), known=True))
            else:
                pieces += pieces_of(name, content)
        said.append((part, pieces))
    return said


def keep(kept: KeptReplica, given: Given, *, stop: int | None = None) -> int:
    """Have it kept, or `stop` after so many parts; returns how many bytes had to come."""
    taker, came = kept.taker(asked(*sorted(given))), 0
    try:
        known = taker.known()
        for part, pieces in told(given, (known[place : place + 16] for place in range(0, len(known), 16)))[:stop]:
            taker.add(part, pieces)
            came += sum(len(piece.content) for piece in pieces)
        if stop is None:
            taker.finish(1.0)
    finally:
        taker.close()
    return came


def take(taker: ReplicaTaker, said: list[tuple[str, list[EntryPiece]]]) -> None:
    for part, pieces in said:
        taker.add(part, pieces)
    taker.finish(2.0)


def read(kept: KeptReplica) -> Given:
    found: Given = {}
    reader = kept.reading()
    try:
        for part in reader.replica.parts:
            found[part.name], name = {}, ""
            for piece in reader.pieces(part.name):
                name = piece.name or name
                found[part.name][name] = found[part.name].get(name, b"") + piece.content
    finally:
        reader.close()
    return found


@pytest.fixture
def kept(tmp_path: Path) -> KeptReplica:
    return KeptReplica(tmp_path / "replicas" / "n1.sqlite")


def test_what_was_kept_is_read_as_it_came(kept: KeptReplica) -> None:
    given = {"a": {"x": b"1", "y/z": LARGE, "z": b""}, "b": {}}
    keep(kept, given)
    assert read(kept) == given
    replica, came = kept.told()
    assert (replica.node, came) == ("n1", 1.0)
    assert [(part.name, part.entries, part.bytes) for part in replica.parts] == [("a", 3, 1 + len(LARGE)), ("b", 0, 0)]


def test_what_is_known_does_not_come_again(kept: KeptReplica) -> None:
    assert keep(kept, {"a": {"x": LARGE, "y": b"1"}}) == len(LARGE) + 1
    assert keep(kept, {"a": {"x": LARGE, "y": b"2"}, "b": {"z": LARGE}}) == 1
    assert read(kept) == {"a": {"x": LARGE, "y": b"2"}, "b": {"z": LARGE}}
    replica, _ = kept.told()
    assert [part.bytes for part in replica.parts] == [len(LARGE) + 1, len(LARGE)]


def test_equal_contents_take_the_disk_once(kept: KeptReplica) -> None:
    keep(kept, {"a": {f"x{number}": LARGE for number in range(20)}})
    assert kept.disk_bytes < 2 * len(LARGE)


def test_what_is_not_told_any_more_is_deleted_from_the_disk(kept: KeptReplica) -> None:
    keep(kept, {"a": {str(number): bytes([number]) * (1 << 20) for number in range(8)}})
    keep(kept, {"a": {"x": b"1"}})
    assert kept.disk_bytes < 1 << 20


def test_one_that_breaks_off_leaves_the_last_one_and_what_had_come(kept: KeptReplica) -> None:
    keep(kept, {"a": {"x": b"old"}})
    large = {str(number): bytes([number]) * (1 << 20) for number in range(20)}
    assert keep(kept, {"a": large, "b": {}}, stop=1) == 20 << 20
    assert read(kept) == {"a": {"x": b"old"}}
    assert keep(kept, {"a": large, "b": {}}) <= 4 << 20
    assert read(kept) == {"a": large, "b": {}}


def test_whoever_reads_has_it_as_it_was_while_a_newer_one_comes(kept: KeptReplica) -> None:
    keep(kept, {"a": {"x": b"1", "y": LARGE}})
    reader = kept.reading()
    pieces = reader.pieces("a")
    first = next(pieces)
    keep(kept, {"a": {"x": b"2"}})
    rest = b"".join(piece.content for piece in pieces)
    reader.close()
    assert (first.content, rest) == (b"1", LARGE)
    assert read(kept) == {"a": {"x": b"2"}}


def test_notes_come_along(kept: KeptReplica) -> None:
    taker = kept.taker(asked("a"))
    taker.add("a", [EntryPiece(name="x", content=b"1", note="something lacks")])
    taker.finish(1.0)
    taker.close()
    reader = kept.reading()
    assert [piece.note for piece in reader.pieces("a")] == ["something lacks"]
    reader.close()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.sampled_from(["a", "b", "c"]),
                st.dictionaries(st.sampled_from(["x", "y", "z"]), st.sampled_from([b"", b"1", b"2", LARGE])),
                min_size=1,
            ),
            st.none() | st.integers(0, 2),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_last_one_that_came_to_its_end_is_what_is_read(tmp_path_factory, steps) -> None:
    kept = KeptReplica(tmp_path_factory.mktemp("kept") / "n1.sqlite")
    last = None
    for given_, stop in steps:
        keep(kept, given_, stop=stop)
        last = given_ if stop is None else last
    if last is None:
        with pytest.raises(NotFound):
            read(kept)
    else:
        assert read(kept) == last


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ([("b", [])], Invalid),
        ([("a", [EntryPiece(content=b"1")])], Invalid),
        ([("a", [EntryPiece(name="../x", content=b"1")])], Invalid),
        ([("a", [EntryPiece(name="y"), EntryPiece(name="x")])], Invalid),
        ([("a", [EntryPiece(name="x", known=True, size=1)])], Invalid),
        ([("a", [EntryPiece(name="x", known=True, size=1, digest="zz")])], Invalid),
        ([("a", [EntryPiece(name="x", known=True, size=1, digest="00" * 32)])], Invalid),
        ([("a", [EntryPiece(name="x", known=True, size=1, content=b"1")])], Invalid),
        ([("a", [EntryPiece(name="x", size=2, content=b"1")])], DataLoss),
        ([("a", [EntryPiece(name="x", size=1 << 49)])], Invalid),
        ([("a", []), ("c", []), ("a", [])], Invalid),
    ],
)
def test_what_is_out_of_place_is_refused_and_leaves_the_last_one(kept: KeptReplica, said, error) -> None:
    keep(kept, {"a": {"x": b"old"}})
    taker = kept.taker(asked("a", "c"))
    try:
        with pytest.raises(error):
            take(taker, said)
    finally:
        taker.close()
    assert read(kept) == {"a": {"x": b"old"}}


def test_a_content_that_was_changed_on_the_disk_is_not_given_out(kept: KeptReplica) -> None:
    keep(kept, {"a": {"x": b"a-content-to-be-found", "y": b"1"}})
    raw = kept.path.read_bytes()
    kept.path.write_bytes(raw.replace(b"a-content-to-be-found", b"a-content-to-be-FOUND"))
    with pytest.raises(DataLoss, match="'x' of 'a' is damaged"):
        read(kept)


def test_a_damaged_file_is_deleted_and_made_anew(kept: KeptReplica) -> None:
    keep(kept, {"a": {"x": LARGE}})
    raw = bytearray(kept.path.read_bytes())
    raw[:4096] = bytes(4096)
    kept.path.write_bytes(raw)
    with pytest.raises(DataLoss, match="damaged"):
        kept.taker(asked("a"))
    assert kept.mend()
    keep(kept, {"a": {"x": LARGE}})
    assert read(kept) == {"a": {"x": LARGE}}
    assert not kept.mend()


def test_a_full_disk_is_told_and_leaves_the_last_one(kept: KeptReplica, monkeypatch) -> None:
    keep(kept, {"a": {"x": b"old"}})
    usage = shutil.disk_usage(kept.path.parent)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(PreconditionFailed, match="free space"):
        keep(kept, {"a": {"x": b"new"}})
    assert read(kept) == {"a": {"x": b"old"}}


def test_it_is_for_its_owner_alone(kept: KeptReplica) -> None:
    keep(kept, {"a": {"x": b"1"}})
    assert [oct(path.stat().st_mode & 0o777) for path in kept.path.parent.glob("*.sqlite")] == ["0o600"]
    assert oct(kept.path.parent.stat().st_mode & 0o777) == "0o700"


def test_forgetting_leaves_those_with_longer_names(kept: KeptReplica) -> None:
    other = KeptReplica(kept.path.with_name("n1.sqlite-2.sqlite"))
    keep(kept, {"a": {"x": b"1"}})
    keep(other, {"a": {"x": b"2"}})
    kept.forget()
    with pytest.raises(NotFound):
        kept.told()
    with pytest.raises(NotFound):
        kept.forget()
    assert read(other) == {"a": {"x": b"2"}}
