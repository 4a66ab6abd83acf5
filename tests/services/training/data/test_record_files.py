"""Files of records: read in pieces, in all their forms; what is damaged, too large or a bomb is named."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import DataLoss, Invalid, NotFound
from services.training.data import record_files, unpacked
from services.training.data.record_files import LARGEST_RECORD, Entry, form_of, read_entries


def entries(path: Path, name: str | None = None) -> list[Entry]:
    return list(read_entries(path, name or path.name, lambda _: None))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


RECORDS: list[Any] = [{"text": "é\n"}, {"text": "b", "n": 1.5}, 3, [], "x"]
LINES = "\n".join(map(json.dumps, RECORDS)).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES + b"\n"),
        ("A.JSONL", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", gzip.compress(LINES[:10], mtime=0) + gzip.compress(LINES[10:], mtime=0)),
        ("a.jsonl.zst", zstandard.compress(LINES[:10]) + zstandard.compress(LINES[10:])),
        ("a.json", json.dumps(RECORDS).encode()),
        ("a.json", b"\xef\xbb\xbf \n" + json.dumps(RECORDS, indent=2, ensure_ascii=False).encode()),
        ("a.json", LINES),
        ("a.json.gz", gzip.compress(json.dumps(RECORDS).encode(), mtime=0)),
    ],
)
def test_the_records_of_a_file_come_in_their_order(tmp_path, name, content):
    assert [entry.value for entry in entries(write(tmp_path / "file", content), name)] == RECORDS


@given(
    values=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=30), max_size=3), max_size=8),
    indent=st.sampled_from([None, 1]),
    buffer=st.integers(1, 40),
)
@settings(deadline=None)
def test_an_array_is_the_same_however_it_is_cut(tmp_path_factory, values: list[Any], indent: int | None, buffer: int):
    path = write(tmp_path_factory.mktemp("array") / "a.json", json.dumps(values, indent=indent).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "BUFFER", buffer)
        assert [entry.value for entry in entries(path)] == values


def test_a_line_that_cannot_be_read_is_named_and_those_behind_it_are_not_lost(tmp_path):
    bad = [b"{", b'{"a": "\\ud800"}', b'{"a": "\xff"}', b"[" * 100_000, b'{"text": NaN}', b"\x00"]
    found = entries(write(tmp_path / "a.jsonl", b"\n".join([*bad, b'{"text": "a"}'])))
    assert [entry.place for entry in found if entry.why] == [f"line {number}" for number in range(1, len(bad) + 1)]
    assert found[-1] == Entry(f"line {len(bad) + 1}", {"text": "a"})


def test_a_line_that_is_too_long_is_named_and_skipped(tmp_path):
    content = b'{"text": "a"}\n"' + b"x" * (2 * LARGEST_RECORD) + b'"\n{"text": "b"}'
    found = entries(write(tmp_path / "a.jsonl", content))
    assert [(entry.place, entry.value) for entry in found if not entry.why] == [
        ("line 1", {"text": "a"}),
        ("line 3", {"text": "b"}),
    ]
    assert found[1].why == "has more than 8 MiB"


@given(
    content=st.binary(max_size=200)
    | st.lists(st.sampled_from([b'{"text":"a"}', b"\n", b"{", b"\xff", b"\\"])).map(b"".join)
)
@settings(deadline=None)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.jsonl.gz", "a.jsonl.zst"])
def test_any_bytes_are_records_or_named(tmp_path_factory, name: str, content: bytes):
    path = write(tmp_path_factory.mktemp("any") / name, content)
    try:
        found = entries(path)
    except (Invalid, DataLoss) as refused:
        assert name in refused.message
    else:
        assert all(entry.why is None or entry.value is None for entry in found)


@pytest.mark.parametrize(
    "end", [b"", b'{"text": "a"', b'{"text": "b"},', b'{"text": "a"} 3', b'{"a": NaN}]', b"\xff", b"[" * 200_000]
)
def test_an_array_that_is_not_json_is_refused_with_its_record(tmp_path, end):
    path = write(tmp_path / "a.json", b'[{"text": "a"}, ' + end)
    with pytest.raises(Invalid, match=r"a\.json is") as refused:
        entries(path)
    assert refused.value.remedy


def test_an_empty_array_has_no_records(tmp_path):
    assert entries(write(tmp_path / "a.json", b" [ ] ")) == []


def test_a_text_is_one_document(tmp_path):
    (entry,) = entries(write(tmp_path / "a.md", "\ufeffé\r\n\r\n".encode()))
    assert entry.value == {"text": "é\r\n\r\n"}


def test_a_text_of_many_megabytes_is_cut_at_paragraphs_and_nothing_of_it_is_lost(tmp_path):
    text = "".join(f"{number} é word\n" + "\n" * (number % 7 == 0) for number in range(300_000))
    found = entries(write(tmp_path / "a.txt", text.encode()))
    parts = [entry.value["text"] for entry in found]
    assert "".join(parts) == text
    assert len(parts) > 3
    assert all(part.endswith("\n\n") for part in parts[:-1])


def test_a_text_without_a_border_is_cut_all_the_same(tmp_path):
    found = entries(write(tmp_path / "a.txt", b"x" * (3 << 20)))
    assert sum(len(entry.value["text"]) for entry in found) == 3 << 20


def test_what_is_no_utf8_is_named_by_its_byte(tmp_path):
    (entry,) = entries(write(tmp_path / "a.txt", "é".encode() * 600_000 + b"\xff"))[-1:]
    assert entry.why == "is not UTF-8 at byte 1200000"


def test_an_empty_text_is_named(tmp_path):
    assert [entry.why for entry in entries(write(tmp_path / "a.txt", b""))] == ["is empty"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:20], lambda raw: raw[:30] + b"!!!" + raw[33:]]
)
def test_a_packed_file_that_is_damaged_is_told_from_one_that_ends(tmp_path, pack, damage):
    ending = "gz" if pack is gzip.compress else "zst"
    content = "\n".join(json.dumps({"text": f"{number * 7919} {number}"}) for number in range(5000))
    path = write(tmp_path / f"a.jsonl.{ending}", damage(pack(content.encode())))
    with pytest.raises(DataLoss, match=f"a.jsonl.{ending} is damaged"):
        entries(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("content", [b"x" * (50 << 20), b'{"a":1}\n' * (2 << 20)])
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, pack, content):
    monkeypatch.setattr(unpacked, "ALWAYS_TAKEN", 1 << 20)
    ending = "gz" if pack is gzip.compress else "zst"
    path = write(tmp_path / f"a.jsonl.{ending}", pack(content))
    with pytest.raises(Invalid, match="unpacks to more than 200 times its size"):
        for _ in read_entries(path, path.name, lambda _: None):
            pass


def test_a_file_of_many_records_is_read_in_little_memory(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(40_000):
            file.write(json.dumps({"text": f"{number} " + "x" * 4000}) + ",")
        file.write('{"text": "end"}]')
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from services.training.data.record_files import read_entries\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in read_entries(Path(sys.argv[1]), 'a.json', lambda _: None))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 40_001
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < path.stat().st_size // 4


def test_progress_is_told_in_bytes_of_the_file_itself(tmp_path):
    content = b'{"text": "a"}\n' * 100_000
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(content, mtime=0))
    told: list[int] = []
    for _ in read_entries(path, path.name, told.append):
        pass
    assert told == sorted(told)
    assert told[-1] == path.stat().st_size


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"data/a\.jsonl cannot be read"):
        entries(tmp_path / "a", "data/a.jsonl")


def test_a_packing_that_is_not_installed_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "zstandard", None)
    with pytest.raises(Invalid) as refused:
        entries(write(tmp_path / "a.jsonl.zst", b""))
    assert refused.value.remedy == "pip install zstandard"


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_is_refused_with_what_to_install_where_nothing_reads_it(tmp_path):
    with pytest.raises(Invalid) as refused:
        entries(write(tmp_path / "a.parquet", b""))
    assert refused.value.remedy == "pip install pyarrow"


def test_the_rows_of_a_parquet_file_are_its_records(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": f"{number}", "name": None}]} for number in range(200)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=50)
    assert [entry.value for entry in entries(tmp_path / "a.parquet")] == rows


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: raw[:10] + b"!" * 200 + raw[210:], lambda _: b""]
)
def test_a_parquet_file_that_is_damaged_is_named(tmp_path, damage):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist([{"text": f"{number * 7919}"} for number in range(500)]), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataLoss, match=r"a\.parquet is damaged"):
        entries(path)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl.zst", "lines"),
        ("a.JSON", "json"),
        ("a.parquet", "parquet"),
        ("a.md", "text"),
        ("a", "text"),
        ("a.gz", "text"),
    ],
)
def test_a_name_says_how_a_file_is_read(name, form):
    assert form_of(name) == form
