"""Which files of this machine a job's configuration means, and where they go in the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkernel.cli.job_files import Configuration, local_files
from microkernel.errors import Invalid, NotFound

TEXT = 'name = "tiny"\n[data]\ntrain = ["a.jsonl"]\n'


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    folder = tmp_path / "job"
    (folder / "part").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "part/c.jsonl", "../d.jsonl"):
        (folder / name).write_text("{}")
    return Configuration(folder / "tiny.toml", TEXT)


def places(config: Configuration, *given: str) -> dict[str, list[str]]:
    found = local_files(config, "tiny", "train", given)
    return {path: [each.path for each in files] for path, files in found.items()}


def test_files_beside_the_configuration_go_below_the_name_of_the_job(config: Configuration):
    assert places(config, "a.jsonl", "part/c.jsonl") == {
        "a.jsonl": ["/data/tiny/a.jsonl"],
        "part/c.jsonl": ["/data/tiny/part/c.jsonl"],
    }


def test_a_pattern_means_its_files_in_order(config: Configuration):
    assert places(config, "*.jsonl") == {"*.jsonl": ["/data/tiny/a.jsonl", "/data/tiny/b.jsonl"]}


def test_a_folder_means_the_files_in_it(config: Configuration):
    assert places(config, "part") == {"part": ["/data/tiny/part/c.jsonl"]}


def test_a_file_from_elsewhere_goes_by_its_name_alone(config: Configuration):
    assert places(config, "../d.jsonl") == {"../d.jsonl": ["/data/tiny/d.jsonl"]}


@pytest.mark.parametrize("path", ["/data/x.jsonl", "file:///srv/x.jsonl", "s3://bucket/x.jsonl"])
def test_what_the_node_understands_is_left_to_it(config: Configuration, path: str):
    assert places(config, path) == {}


@pytest.mark.parametrize("path", ["missing.jsonl", "missing/*.jsonl"])
def test_a_file_that_is_not_there_is_named_with_the_line(config: Configuration, path: str):
    with pytest.raises(NotFound, match=r"tiny.toml, line 3: data.train: there is no file .*missing"):
        places(config, path)


def test_a_name_that_the_tree_would_take_for_a_pattern_is_refused(config: Configuration):
    (config.path.parent / "what?.jsonl").write_text("{}")
    with pytest.raises(Invalid, match="sign of patterns"):
        places(config, "w*.jsonl")
