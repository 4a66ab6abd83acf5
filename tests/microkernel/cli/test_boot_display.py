"""How a boot is shown where stdout is no terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from microkernel.cli.boot_display import Booted, JsonLines, Live, PlainLines, ServiceRow, make_display
from microkernel.cli.boot_progress import Step


def step(text: str = "fetching", mark: str = "busy", **fields: Any) -> Step:
    return Step(event=fields.pop("event", "models.progress"), text=text, elapsed=1.25, mark=mark, **fields)


BOOTED = Booted(
    elapsed=3.0,
    url="http://127.0.0.1:7070",
    token="mk-secret",
    token_path="/state/token",
    services=[ServiceRow(name="kv", state="ready", detail="kv.py")],
    hints=["mk chat"],
)


def test_plain_lines_have_a_mark_a_time_and_the_text(capsys: pytest.CaptureFixture[str]):
    with PlainLines() as display:
        display.show(step("listening", "ok"))
        display.show(step("kv is broken", "fail"))
        display.show(step("a\x1b[2Jb", "ok"))
    assert capsys.readouterr().out == "+    1.2 s  listening\n!    1.2 s  kv is broken\n+    1.2 s  a[2Jb\n"


def test_plain_lines_tell_each_tenth_once(capsys: pytest.CaptureFixture[str]):
    with PlainLines() as display:
        for done in range(101):
            display.show(step(done=float(done), total=100.0))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0].endswith("fetching 0 of 100 (0 %)")
    assert lines[-1].endswith("fetching 100 of 100 (100 %)")


def test_plain_lines_count_without_a_total_once(capsys: pytest.CaptureFixture[str]):
    with PlainLines() as display:
        for done in (0.0, 5.0, 9.0):
            display.show(step(done=done, unit="B"))
    assert capsys.readouterr().out == ".    1.2 s  fetching\n"


def test_plain_lines_leave_out_what_is_over_at_once(capsys: pytest.CaptureFixture[str]):
    with PlainLines() as display:
        display.show(step(brief=True))
    assert capsys.readouterr().out == ""


def test_json_lines_are_one_object_each_and_end_with_ready(capsys: pytest.CaptureFixture[str]):
    with JsonLines() as display:
        display.show(step(fields={"stage": "fetching"}))
        display.finish(BOOTED)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["fields"]) == ("models.progress", {"stage": "fetching"})
    assert (last["event"], last["url"], last["token"]) == ("ready", "http://127.0.0.1:7070", "mk-secret")
    assert last["services"] == [{"name": "kv", "state": "ready", "detail": "kv.py"}]


def test_the_end_has_table_address_token_and_hints(capsys: pytest.CaptureFixture[str]):
    PlainLines().finish(BOOTED)
    shown = capsys.readouterr().out
    for part in ("kv       ready  kv.py", "address  http://127.0.0.1:7070", "mk-secret", "/state/token", "  mk chat"):
        assert part in shown


def test_a_node_without_a_gateway_says_that_nothing_can_connect(capsys: pytest.CaptureFixture[str]):
    PlainLines().finish(Booted(elapsed=1.0, url=None, token="t", token_path="p", services=[], hints=["mk chat"]))
    shown = capsys.readouterr().out
    assert "nothing can connect" in shown
    assert "mk chat" not in shown


def test_live_keeps_what_takes_its_time_over_what_is_brief(capsys: pytest.CaptureFixture[str]):
    with Live() as display:
        display.show(step("fetching"))
        display.show(step("starting services", brief=True, event="service"))
        assert display._moving is not None
        assert display._moving.text == "fetching"
        display.show(step("unpacking"))
        display.show(step("model x is stored", "ok"))
        assert display._moving is None
    shown = capsys.readouterr().out
    assert "✓    1.2 s  fetching (0.0 s)" in shown
    assert "✓    1.2 s  model x is stored" in shown
    assert "starting services" not in shown


def test_stdout_decides_how_a_boot_is_shown(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(make_display(as_json=True), JsonLines)
    assert isinstance(make_display(as_json=False), PlainLines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(make_display(as_json=False), Live)
