"""The checks of `mk doctor` and `mk boot --check`."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from microkernel.cli.boot_check import _check_lock, check_model
from microkernel.cli.checks import Check, check_folder, check_imports, check_packages, check_port, check_token, show
from microkernel.root import Root


def test_a_module_that_is_missing_says_how_to_get_it():
    good, bad = check_imports("json", "a_module_that_is_not_there")
    assert good.ok
    assert not bad.ok
    assert "pip install" in bad.remedy


def test_a_module_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (check,) = check_imports("raises_at_import")
    assert not check.ok
    assert "half installed" in check.detail


def test_the_installed_packages_fit():
    assert check_packages().ok, check_packages().detail


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MICROKERNEL_TOKEN", raising=False)


def test_a_token_that_others_can_read_is_told_with_the_remedy(tmp_path: Path):
    assert check_token(tmp_path).ok
    token = tmp_path / "token"
    token.write_text("mk-secret")
    token.chmod(0o640)
    check = check_token(tmp_path)
    assert not check.ok
    assert check.remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    assert check_token(tmp_path).ok


def test_a_token_of_the_environment_that_no_node_takes_is_told_before_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MICROKERNEL_TOKEN", "short")
    check = check_token(tmp_path)
    assert not check.ok
    assert "MICROKERNEL_TOKEN" in check.detail
    monkeypatch.setenv("MICROKERNEL_TOKEN", "long-enough-to-be-safe")
    assert check_token(tmp_path).ok


def test_a_folder_that_a_node_has_is_told_with_its_address(tmp_path: Path):
    root = Root(tmp_path)
    assert _check_lock(tmp_path) == []
    root.acquire()
    root.write_node("http://127.0.0.1:7070")
    (check,) = _check_lock(tmp_path)
    assert not check.ok
    assert check.detail == f"a node runs on {tmp_path} at http://127.0.0.1:7070 (pid {os.getpid()})"
    root.release()
    assert _check_lock(tmp_path) == []


def test_a_taken_port_is_told(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not check_port("127.0.0.1", port).ok
    assert check_port("127.0.0.1", port).ok
    assert check_port("127.0.0.1", 0).ok
    assert not check_port("192.0.2.1", 7070).ok  # an address that no machine has (RFC 5737)


def test_a_folder_is_looked_at_and_not_made(tmp_path: Path):
    assert all(check.ok for check in check_folder(tmp_path / "a" / "b")[:1])
    assert not (tmp_path / "a").exists()
    file = tmp_path / "file"
    file.write_text("")
    assert not check_folder(file)[0].ok
    assert not check_folder(file / "below")[0].ok


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert not check_folder(tmp_path)[0].ok
    tmp_path.chmod(0o700)


def test_a_model_is_looked_at_without_loading_it(tmp_path: Path):
    right, wrong, folder = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "hf"
    right.write_bytes(b"GGUF" + bytes(20))
    wrong.write_bytes(b"oops")
    folder.mkdir()
    assert check_model(str(right), tmp_path).ok
    assert "begins with b'oops'" in check_model(str(wrong), tmp_path).detail
    assert not check_model(str(folder), tmp_path).ok
    (folder / "config.json").write_text("{}")
    assert check_model(str(folder), tmp_path).ok
    assert not check_model("missing/file.gguf", tmp_path).ok
    assert check_model("pypi:some-model", tmp_path / "no state yet").ok


def test_checks_are_lines_with_the_remedy_and_decide_the_exit_code(capsys: pytest.CaptureFixture[str]):
    good = Check(name="python", ok=True, detail="3.13", remedy="not shown")
    bad = Check(name="port", ok=False, detail="7070 is taken", remedy="choose another")
    assert show([good], as_json=False) == 0
    assert show([good, bad], as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✓ python  3.13"
    assert lines[2] == "✗ port    7070 is taken → choose another"
