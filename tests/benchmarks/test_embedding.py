"""The benchmark of embeddings: its texts, and its lines in a hurry, to see their form."""

from __future__ import annotations

import json

import pytest
from benchmark_reference import section_of

from benchmarks.embedding import __main__ as program
from benchmarks.embedding.lines import LINES, NAMES, wanted
from benchmarks.embedding.texts import KINDS, SHORTEST, texts_of


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_real_different_and_the_same_each_time(kind):
    texts = texts_of(kind, 50)
    assert texts == KINDS[kind](50)
    assert len(set(texts)) == 50
    assert all(len(text) >= SHORTEST for text in texts)


def test_every_goal_is_about_a_measure_of_its_line():
    assert len(set(NAMES)) == len(NAMES)
    for line in LINES:
        assert {goal.key for goal in line.goals} <= line.measures.keys()
        assert {goal.against for goal in line.goals} <= {contender.name for contender in line.contenders}
    assert [line.name for line in wanted(["para", "search"])] == ["paragraphs", "search"]


def test_the_reference_tells_of_every_line():
    section = section_of("embedding")
    for name in NAMES:
        assert f"`{name}`" in section


@pytest.mark.slow
@pytest.mark.model
def test_a_quick_run_measures_all_that_its_lines_say(tmp_path, capsys, default_model, embedding_model, monkeypatch):
    for name, path in (("stored_model", default_model), ("stored_encoder", embedding_model)):
        monkeypatch.setattr(f"benchmarks.default_model.{name}", lambda path=path: path)
    file = tmp_path / "result.json"
    assert program.main(["--quick", "--alone", "--json", str(file)]) == 0, capsys.readouterr().out
    for each in json.loads(file.read_bytes())["lines"]:
        (line,) = wanted([each["name"]])
        assert each["skipped"] == {}
        (taken,) = each["rounds"]
        assert set(taken["microkernel"]) == {measure.name for measure in line.measures.values()}
