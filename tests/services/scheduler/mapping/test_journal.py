"""What was committed is there after a crash, wherever that cut the file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import PreconditionFailed
from services.scheduler.mapping.journal import Journal, Record
from services.scheduler.mapping.work import Outcome


def record(start: int) -> Record:
    return Record(start, start + 1, Outcome(values=[{"n": start}, None, b"\x00"]))


def test_records_are_there_again_in_a_new_process(tmp_path):
    first = Journal(tmp_path / "job", b"digest", {"tasks": 7})
    first.commit([record(0), record(1)])
    first.commit([record(2)])
    first.close()
    second = Journal(tmp_path / "job", b"digest", {"tasks": 99})
    assert list(second.records()) == [record(0), record(1), record(2)]
    assert second.partition == {"tasks": 7}, "it goes on with the tasks that it was begun with"
    second.commit([record(3)])
    second.close()
    third = Journal(tmp_path / "job", b"digest", {})
    assert len(list(third.records())) == 4
    third.forget()
    assert not (tmp_path / "job").exists()


def test_another_job_of_that_name_is_refused(tmp_path):
    Journal(tmp_path / "job", b"one", {}).close()
    with pytest.raises(PreconditionFailed, match="another job"):
        Journal(tmp_path / "job", b"other", {})


def test_a_file_of_something_else_is_refused_and_left(tmp_path):
    (tmp_path / "job").write_bytes(b"a diary, not a journal")
    with pytest.raises(PreconditionFailed, match="no journal"):
        Journal(tmp_path / "job", b"digest", {})
    assert (tmp_path / "job").read_bytes() == b"a diary, not a journal"


@given(cut=st.integers(0, 400), flip=st.none() | st.integers(0, 399))
@settings(max_examples=150, deadline=None)
def test_a_file_that_was_cut_or_damaged_gives_whole_records_and_goes_on(tmp_path_factory, cut, flip):
    path = tmp_path_factory.mktemp("journal") / "job"
    journal = Journal(path, b"digest", {})
    begins = path.stat().st_size
    journal.commit([record(number) for number in range(8)])
    journal.close()
    content = bytearray(path.read_bytes())
    if flip is not None and begins + flip < len(content):
        content[begins + flip] ^= 0x40
    path.write_bytes(bytes(content[: max(begins, len(content) - cut)]))
    again = Journal(path, b"digest", {})
    found = list(again.records())
    assert found == [record(number) for number in range(len(found))]
    again.commit([record(100)])
    again.close()
    last = Journal(path, b"digest", {})
    assert list(last.records()) == [*found, record(100)]
    last.close()


@given(cut=st.integers(0, 40))
@settings(max_examples=41, deadline=None)
def test_a_file_that_was_cut_as_it_was_begun_is_begun_again(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "job"
    Journal(path, b"digest", {}).close()
    content = path.read_bytes()
    path.write_bytes(content[: min(cut, len(content) - 1)])
    again = Journal(path, b"digest", {})
    assert list(again.records()) == []
    again.close()
