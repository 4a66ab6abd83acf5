"""What single commands make of their arguments and results."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import Message
from microkernel.cli.call import message_of
from microkernel.cli.describe import signature
from microkernel.cli.doctor import check_device
from microkernel.cli.log import line
from microkernel.cli.logs import OneLine, quiet_logs
from microkernel.cli.memory import model_rows, owner_rows, rows
from microkernel.cli.ps import COLUMNS, row
from microkernel.errors import Invalid
from microkernel.message import schema_of


class Inner(Message):
    x: int


class Ask(Message):
    key: str
    many: list[Inner]
    either: int | None = None


def handler(message: Any, result: Any, kind: str = "call") -> Mapping[str, Any]:
    return {"address": "kv.ask", "kind": kind, "message": schema_of(message), "result": schema_of(result)}


def test_a_signature_shows_fields_types_and_what_may_be_left_out():
    assert signature(handler(Ask, Inner)) == "kv.ask(key: string, many: Inner[], either?: integer | null) -> Inner"


def test_a_signature_of_anything_says_so():
    assert signature(handler(dict[str, Any], Any, "stream")) == "kv.ask() ->> any"
    assert signature(handler(Inner, list[Inner])) == "kv.ask(x: integer) -> Inner[]"


def test_values_that_are_json_are_taken_as_json():
    assert message_of(["n=3", "t=true", "text=kv", "list=[1,2]", 'quoted="3"', "empty=", "eq=a=b"]) == {
        "n": 3,
        "t": True,
        "text": "kv",
        "list": [1, 2],
        "quoted": "3",
        "empty": "",
        "eq": "a=b",
    }


def test_no_arguments_are_the_empty_message():
    assert message_of([]) == {}


def test_a_message_can_come_from_stdin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 1}'))
    assert message_of(["-"]) == {"a": 1}


@pytest.mark.parametrize("arguments", [["{"], ["{} trailing"], ["novalue"], ["=x"], ["a=1", "{}"]])
def test_what_is_no_message_is_refused(arguments: list[str]):
    with pytest.raises(Invalid):
        message_of(arguments)


@given(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.booleans() | st.none()))
def test_any_json_object_is_the_message_it_spells(message: dict[str, Any]):
    assert message_of([json.dumps(message)]) == message


@given(st.lists(st.text(), max_size=3))
def test_any_arguments_are_a_message_or_invalid(arguments: list[str]):
    if arguments == ["-"]:
        return  # reads stdin
    try:
        assert isinstance(message_of(arguments), dict)
    except Invalid as error:
        assert error.message


def test_a_process_has_a_cell_in_each_column():
    process = {"pid": 1, "state": "done", "process_class": "batch", "kind": "chat", "title": "t", "owner": "o"}
    process |= {"device": None, "age": 1.0, "device_seconds": 0.5, "tokens_in": 1, "tokens_out": 2, "why": ""}
    cells = row(process)
    assert len(cells) == len(COLUMNS)
    assert "1 in, 2 out" in cells


ACCOUNT = {
    "device": "cpu0",
    "tier": "device",
    "limit_bytes": 4096,
    "reserved_bytes": 1024,
    "used_bytes": 512,
    "rung": 0,
}


def test_an_account_is_its_sum_and_then_each_reservation():
    reservation = {"owner": "inference", "purpose": "weights", "bytes": 1024}
    lines = list(rows({**ACCOUNT, "reservations": [reservation]}))
    assert lines == [
        ("cpu0", "device", "1.0 KiB", "4.0 KiB", "512 B", "", "in all"),
        ("cpu0", "device", "1.0 KiB", "", "", "inference", "weights"),
    ]
    [line] = rows({**ACCOUNT, "rung": 3, "reservations": []})
    assert line[-1] == "in all; memory is short: nothing new begins"


def test_a_model_is_shown_with_its_pages_and_only_on_the_device():
    sizes = {"weight_bytes": 1, "buffer_bytes": 2, "held_bytes": 3, "cached_bytes": 4, "free_bytes": 5}
    holding = {"name": "m", "device": "cpu0", "resident_bytes": 6, **sizes}
    [line] = model_rows({**ACCOUNT, "holdings": [holding]})
    assert line == ("m", "cpu0", "1 B", "2 B", "3 B", "4 B", "5 B", "6 B")
    assert list(model_rows({**ACCOUNT, "tier": "disk", "holdings": [holding]})) == []


def test_an_owner_is_shown_with_its_quota_and_how_much_was_read_before():
    ann = {"owner": "ann", "bytes": 1024, "quota": 4096, "hits": 3, "misses": 1}
    bob = {"owner": "bob", "bytes": 0, "quota": None, "hits": 0, "misses": 0}
    assert list(owner_rows({**ACCOUNT, "owners": [ann, bob]})) == [
        ("ann", "cpu0", "1.0 KiB", "4.0 KiB", "75% of 4 tokens"),
        ("bob", "cpu0", "0 B", "", ""),
    ]


def test_a_device_is_well_while_it_is_healthy_and_told_with_its_reason_otherwise():
    device = {"name": "cuda0", "state": "healthy", "why": "", "model": "A", "memory_bytes": 4096}
    well = check_device({**device, "memory_free_bytes": 1024})
    assert (well.name, well.ok, well.detail) == ("device cuda0", True, "healthy, A, 1.0 KiB of 4.0 KiB free")
    server = {"answers": True, "models": ["a", "b"], "memory_bytes": 0, "memory_free_bytes": 0}
    assert "2 models" in check_device({**device, **server}).detail
    ill = check_device({**device, "memory_free_bytes": 0, "state": "quarantined", "why": "device-side assert"})
    assert not ill.ok
    assert ill.detail.startswith("quarantined: device-side assert, A")


def test_a_log_record_is_one_line():
    record = {"time": 0.0, "level": "error", "logger": "kv", "message": "a\nb\x1b[2J", "error": "OSError: no"}
    shown = line(record)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert shown.endswith("error    kv: a b[2J (OSError: no)")
    assert line({**record, "error": None}).endswith("b[2J")


def record(name: str, level: int, text: str, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord(name, level, "", 0, text, (), info)


def test_a_record_on_stderr_is_one_line_without_a_traceback():
    failure = record("microkernel.kv", logging.ERROR, "it\nfell", OSError("no disk"))
    assert OneLine(debug=False).line(failure) == "error: kv: it fell (OSError: no disk)"
    assert OneLine(debug=True).line(failure).splitlines()[0] == "error: kv: it fell (OSError: no disk)"


def test_what_the_boot_shows_itself_is_not_said_twice(capsys: pytest.CaptureFixture[str]):
    with quiet_logs("info") as logs:
        logs.essential = {"gateway"}
        logging.getLogger("microkernel.kernel").error("service 'x' is broken")
        logging.getLogger("microkernel.gateway.door").error("held back")
        logging.getLogger("microkernel.gateway").warning("told at once")
        logging.getLogger("microkernel.kv").error("told too")
        logging.getLogger("microkernel.kv").info("for the monitor only")
        assert capsys.readouterr().err == "warning: gateway: told at once\nerror: kv: told too\n"
        logs.tell_all()
        logging.getLogger("microkernel.kernel").error("told now")
        assert capsys.readouterr().err == "error: gateway.door: held back\nerror: kernel: told now\n"


def test_debugging_tells_everything_at_once(capsys: pytest.CaptureFixture[str]):
    with quiet_logs("debug"):
        logging.getLogger("microkernel.kernel").debug("a detail")
        assert capsys.readouterr().err == "debug: kernel: a detail\n"


def test_schemas_are_read_as_the_kernel_sends_them():
    sent = msgspec.json.decode(msgspec.json.encode(handler(Ask, None)))
    assert signature(sent).endswith("-> null")
