"""`mk token`: what needs no node, and what is asked of one."""

from __future__ import annotations

import io
import json
import re
import time
from typing import Any

import pytest

from microkernel.cli import main
from microkernel.cli.log import denial_line
from microkernel.cli.token import seconds_of
from microkernel.errors import Invalid
from microkernel.token import identity_of, issue, make_block, verify

KEY = bytes(32)


@pytest.fixture
def token() -> str:
    return issue(KEY, make_block(user="ana", allow=["inference.*", "kernel.status"], subscribe=["models.>"]))


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("12h", 43_200.0), ("7d", 604_800.0), ("1.5h", 5400.0), ("never", None)],
)
def test_times_are_read_as_they_are_said(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "7 d", "7w", "1e9d", "Never", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is no time"):
        seconds_of(text)


def test_a_token_is_narrowed_without_a_node_and_the_token_alone_is_on_stdout(token, capsys, tmp_path) -> None:
    asked = ["--root", str(tmp_path / "absent"), "token", "narrow", token, "--allow", "inference.list"]
    assert main([*asked, "--expires", "1h", "--rate", "5", "--top-priority", "6"]) == 0
    out, err = said(capsys)
    blocks = verify(KEY, out.strip())
    assert blocks is not None
    together = identity_of(blocks)
    assert together.rights.allow == ("inference.list",)
    assert (together.rate, together.burst, together.top_priority) == (5.0, 10, 6)
    assert 3590 < (together.expires or 0) - time.time() < 3610
    assert re.fullmatch(r"id [0-9a-f]{32}, for ana, expires \d{4}-.* UTC\n", err)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("given", ["argument", "stdin"])
def test_a_token_is_shown_without_a_node_and_its_signature_is_not(token, given, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert main(["token", "show", "-" if given == "stdin" else token]) == 0
    out, _ = said(capsys)
    assert "ana" in out
    assert "inference.* kernel.status" in out
    assert "models.>" in out
    assert token not in out
    assert token[-43:] not in out


def test_what_the_blocks_of_a_token_permit_together_is_shown(token, capsys) -> None:
    main(["token", "narrow", token, "--allow", "inference.list", "--deny", "inference.load"])
    narrowed = said(capsys)[0].strip()
    assert main(["token", "show", narrowed]) == 0
    assert "together" in said(capsys)[0]
    assert main(["--json", "token", "show", narrowed]) == 0
    shown = json.loads(said(capsys)[0])
    assert [block["user"] for block in shown["blocks"] if "user" in block] == ["ana"]
    assert shown["together"]["rights"]["allow"] == ["inference.list"]
    assert shown["together"]["rights"]["deny"] == ["inference.load"]


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["show", "nonsense"], "no signed token"),
        (["show", "mk1.AAAA"], "damaged"),
        (["narrow", "TOKEN"], "nothing is named"),
        (["narrow", "TOKEN", "--allow", "kv.g*"], "no pattern of calls"),
        (["narrow", "TOKEN", "--burst", "3"], "--burst goes with --rate"),
        (["narrow", "TOKEN", "--top-priority", "10"], "top_priority"),
        (["narrow", "TOKEN", "--expires", "soon"], "is no time"),
        (["create", "--user", "ana"], "permit nothing"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(token, asked, complaint, capsys) -> None:
    assert main(["token", *(token if word == "TOKEN" else word for word in asked)]) == 1
    out, err = said(capsys)
    assert out == ""
    assert complaint in err
    assert err.count("\n") == 1


def test_a_denial_is_one_line_that_cannot_drive_the_terminal() -> None:
    denial: dict[str, Any] = {
        "at": 0.0, "act": "call", "who": "session s1", "user": "a\x1bna", "target": "kv\n.put", "why": "no\x07 right",
        "peer": "192.0.2.7", "count": 3,
    }  # fmt: skip
    line = denial_line(denial)
    assert line.endswith("ana (session s1) kv .put: no right, from 192.0.2.7, 3 times")


def test_the_users_of_the_log_are_those_of_the_audit(capsys) -> None:
    assert main(["log", "--user", "ana"]) == 1
    assert "--audit" in said(capsys)[1]
    assert main(["log", "--audit", "--follow"]) == 1
    assert "--audit goes with" in said(capsys)[1]
