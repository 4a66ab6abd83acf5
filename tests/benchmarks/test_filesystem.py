"""The benchmark of the tree: its lines in a hurry, to see their form."""

from __future__ import annotations

import json

from benchmark_reference import section_of

from benchmarks.filesystem import __main__ as program
from benchmarks.filesystem.lines import LINES, NAMES, wanted


def test_every_goal_is_about_a_measure_of_its_line():
    assert len(set(NAMES)) == len(NAMES)
    for line in LINES:
        assert {goal.key for goal in line.goals} <= line.measures.keys()
        assert {goal.against for goal in line.goals} <= {None, *(contender.name for contender in line.contenders)}
    assert [line.name for line in wanted(["lar", "names"])] == ["large", "names"]


def test_the_reference_tells_of_every_line():
    section = section_of("filesystem")
    for name in NAMES:
        assert f"`{name}`" in section


def test_a_quick_run_measures_all_that_its_lines_say(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MICROKERNEL_BENCH_DIR", str(tmp_path))
    file = tmp_path / "result.json"
    names = [name for name in NAMES if name != "search"]  # that has two models to load
    assert program.main(["--quick", "--only", *names, "--json", str(file)]) == 0, capsys.readouterr().out
    for each in json.loads(file.read_bytes())["lines"]:
        (line,) = wanted([each["name"]])
        assert each["skipped"] == {}
        (taken,) = each["rounds"]
        assert set(taken["microkernel"]) == {measure.name for measure in line.measures.values()}
