"""All machines of a cluster may be told the same: which of them begins it, and what lets the others in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from microkernel.cli import make_parser
from microkernel.cli.boot import configured
from microkernel.config import Config
from microkernel.errors import Invalid

FIRST = "https://mk-0.nodes:7071"


def booted(tmp_path: Path, *arguments: str, config: str | None = None) -> Config:
    given = ["boot", "--root", str(tmp_path), *arguments]
    if config is not None:
        file = tmp_path / "mk.toml"
        file.write_text(config)
        given += ["--config", str(file)]
    return configured(make_parser().parse_args(given))


def cluster(config: Config) -> dict[str, Any]:
    return config.services["cluster"]


@pytest.mark.parametrize("advertise", ["mk-0.nodes:7071", "MK-0.nodes:7071", "mk-0.nodes"])
def test_the_first_that_is_named_to_join_begins_the_cluster(tmp_path: Path, advertise: str) -> None:
    config = booted(tmp_path, "--join", FIRST, "--advertise", advertise, "--cluster", "0.0.0.0:7071", "--node", "mk-0")
    assert not config.joins
    assert cluster(config)["join"] == ()
    assert cluster(config)["advertise"] == advertise


def test_the_others_join_it(tmp_path: Path) -> None:
    config = booted(tmp_path, "--join", FIRST, "--advertise", "mk-1.nodes:7071", "--node", "mk-1")
    assert config.joins
    assert cluster(config)["join"] == (FIRST,)


def test_a_node_does_not_join_itself(tmp_path: Path) -> None:
    named = [word for each in (FIRST, "mk-1.nodes:7071", "mk-2.nodes:7071") for word in ("--join", each)]
    config = booted(tmp_path, *named, "--advertise", "mk-1.nodes:7071", "--node", "mk-1")
    assert config.joins
    assert cluster(config)["join"] == (FIRST, "mk-2.nodes:7071")


@pytest.mark.parametrize("other", ["mk-0.nodes:7072", "mk-0.nodes2:7071", "mk-0.nodes"])
def test_another_port_or_host_is_another_node(tmp_path: Path, other: str) -> None:
    config = booted(tmp_path, "--join", FIRST, "--advertise", other, "--cluster", "0.0.0.0:7072", "--node", "mk-0")
    assert config.joins


def test_a_file_says_the_same_as_the_options(tmp_path: Path) -> None:
    text = f'[services.cluster]\njoin = ["{FIRST}"]\nadvertise = "mk-0.nodes"\nport = 7071\n'
    assert not booted(tmp_path, config=text).joins
    assert booted(tmp_path, "--advertise", "mk-1.nodes", "--node", "mk-1", config=text).joins


def test_addresses_in_brackets_are_compared_too(tmp_path: Path) -> None:
    config = booted(tmp_path, "--join", "https://[fd00::1]:7071", "--advertise", "[FD00::1]:7071")
    assert not config.joins


def test_the_file_of_the_join_secret_is_found_from_wherever_the_node_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cluster(booted(tmp_path, "--join-secret", "join"))["join_secret"] == str(tmp_path / "join")


@pytest.mark.parametrize("wrong", ["a b:7071:1", "host:99999", ""])
def test_what_others_cannot_dial_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(Invalid, match="no address that others can reach"):
        booted(tmp_path, "--advertise", wrong)
