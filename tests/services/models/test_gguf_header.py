"""The check of a GGUF file's header."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import DataLoss, Invalid, MicrokernelError
from services.models.gguf_header import read_gguf_header


def test_the_header_tells_architecture_license_and_where_the_file_ends(make_gguf) -> None:
    path = make_gguf(kilobytes=8)
    header = read_gguf_header(path, shown="x.gguf")
    assert (header.architecture, header.license, header.tensors) == ("llama", "apache-2.0", 1)
    assert header.end == path.stat().st_size


def test_a_file_without_its_last_byte_is_named_as_cut_off(make_gguf) -> None:
    path = make_gguf()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataLoss, match=r"x\.gguf was cut off: it ends at byte \d+, its tensors need \d+"):
        read_gguf_header(path, shown="x.gguf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (b"PK\x03\x04" + bytes(40), "starts with b'PK"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(40), "version 9"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(40), "big-endian"),
    ],
)
def test_what_is_no_gguf_file_is_refused_by_its_first_bytes(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(Invalid, match=message):
        read_gguf_header(path, shown="x.gguf")


def test_absurd_counts_are_refused_before_they_are_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**63).to_bytes(8, "little") * 2 + bytes(64))
    with pytest.raises(DataLoss, match="entries are said to follow"):
        read_gguf_header(path, shown="x.gguf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_header_gives_a_header_or_one_of_our_errors(make_gguf, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(make_gguf("whole.gguf", kilobytes=1).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(500, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    ours: MicrokernelError | None = None
    try:
        assert read_gguf_header(path, shown="x.gguf").end <= path.stat().st_size
    except MicrokernelError as error:
        ours = error
    assert ours is None or ("x.gguf" in ours.message and ours.message.isprintable())
