"""What relative paths of a job's configuration mean to the node, which does not see the file they are relative to."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkernel.errors import DataLoss, Invalid
from services.training.config import read_job, with_files
from services.training.history import History

TEXT = '[model]\nbase = "tiny"\n[data]\ntrain = ["a.jsonl", "/data/b.jsonl"]\nevaluation = ["file:///srv/c.jsonl"]\n'
FILES = {"a.jsonl": ("/data/tiny/a.jsonl", "/data/tiny/more.jsonl")}


def test_a_relative_path_is_replaced_in_its_place_by_what_it_stands_for():
    data = with_files(read_job(TEXT), FILES, TEXT).data
    assert data.train == ("/data/tiny/a.jsonl", "/data/tiny/more.jsonl", "/data/b.jsonl")
    assert data.evaluation == ("file:///srv/c.jsonl",)


@pytest.mark.parametrize("files", [{}, {"a.jsonl": ()}, {"b.jsonl": ("/data/b.jsonl",)}])
def test_a_relative_path_that_stands_for_nothing_is_refused_with_its_line(files):
    with pytest.raises(Invalid, match=r"job.toml, line 4: data.train: 'a.jsonl' is relative"):
        with_files(read_job(TEXT), files, TEXT, "job.toml")


def test_a_job_that_is_taken_up_has_the_files_that_it_was_started_with(tmp_path: Path):
    history = History(tmp_path)
    assert history.files(history.begin("tiny", TEXT, FILES)) == FILES
    assert history.files(history.begin("tiny", TEXT)) == {}


def test_damaged_names_of_files_are_told(tmp_path: Path):
    history = History(tmp_path)
    job = history.begin("tiny", TEXT, FILES)
    (history.folder(job) / "files.json").write_text("[")
    with pytest.raises(DataLoss, match=r"files.json is damaged"):
        history.files(job)
