"""What the command line says of a cluster, as the configuration has it."""

from __future__ import annotations

import math
import tomllib
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.cli import make_parser
from microkernel.cli.boot import configured
from microkernel.cli.boot_cluster import _toml
from microkernel.config import Config
from microkernel.errors import Invalid


def boot(tmp_path: Path, *words: str) -> Config:
    return configured(make_parser().parse_args(["boot", "--root", str(tmp_path / "state"), *words]))


def cluster(config: Config) -> dict[str, Any]:
    return config.services.get("cluster", {})


def test_a_node_alone_says_nothing_of_a_cluster(tmp_path: Path) -> None:
    config = boot(tmp_path)
    assert (config.node, config.joins, cluster(config)) == ("node0", False, {})


def test_a_node_that_joins_has_a_name_of_its_own_which_it_keeps(tmp_path: Path) -> None:
    first = boot(tmp_path, "--join", "127.0.0.1:7071", "--token", "t")
    again = boot(tmp_path, "--join", "127.0.0.1:7071")
    assert first.joins
    assert first.node == again.node != "node0"
    assert (cluster(first)["join"], cluster(first)["token"]) == (("127.0.0.1:7071",), "t")


def test_the_join_token_may_be_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROKERNEL_JOIN_TOKEN", " t \n")
    assert cluster(boot(tmp_path, "--join", "127.0.0.1:7071"))["token"] == "t"
    assert "token" not in cluster(boot(tmp_path))


def test_workers_that_the_configuration_asks_for_are_booted_as_those_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mk.toml"
    path.write_text("[services.cluster]\nnodes = 2\n")
    told = cluster(boot(tmp_path, "--config", str(path), "--model", "some/model"))
    assert told["nodes"] == 2
    assert (
        told["worker"]
        == cluster(boot(tmp_path, "--config", str(path), "--model", "some/model", "--nodes", "2"))["worker"]
    )
    assert ("--config", str(path), "--model", "some/model") == told["worker"][:4]
    assert "nodes" not in cluster(boot(tmp_path, "--config", str(path), "--until-eof")), "workers start no workers"


def test_a_join_token_for_no_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="--join URL"):
        boot(tmp_path, "--token", "t")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("10.0.0.1:7071", "10.0.0.1", 7071), ("10.0.0.1", "10.0.0.1", None), ("[::1]:7071", "::1", 7071)],
)
def test_where_others_come_is_an_address(tmp_path: Path, text: str, host: str, port: int | None) -> None:
    told = cluster(boot(tmp_path, "--cluster", text))
    assert (told["host"], told.get("port")) == (host, port)


@pytest.mark.parametrize("text", ["", ":7071", "a:b:c", "10.0.0.1:99999", "[::1"])
def test_what_is_no_address_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid, match="no address to listen on"):
        boot(tmp_path, "--cluster", text)


def test_workers_have_the_settings_the_models_and_the_services_of_their_node(tmp_path: Path) -> None:
    file = tmp_path / "kv.py"
    settings = tmp_path / "node.toml"
    settings.write_text('disable = ["monitor"]\n')
    words = cluster(
        boot(
            tmp_path, "--nodes", "2", "--service", str(file), "--config", str(settings), "--model", "some",
            "--set", "services.inference.slots=4",
        )
    )["worker"]  # fmt: skip
    pairs = list(zip(words[::2], words[1::2], strict=True))
    assert ("--service", str(file)) in pairs
    assert ("--config", str(settings)) in pairs
    assert ("--model", "some") in pairs
    assert ("--set", "services.inference.slots=4") in pairs
    assert ("--set", f'services.models.root="{tmp_path / "state" / "models"}"') in pairs
    assert {("--without", "monitor"), ("--without", "gateway")} <= set(pairs)
    make_parser().parse_args(["boot", *words])


def test_a_worker_listens_where_its_node_does_on_a_port_of_its_own(tmp_path: Path) -> None:
    settings = tmp_path / "node.toml"
    settings.write_text('[services.cluster]\nnodes = 2\nport = 7071\nhost = "0.0.0.0"\ndrain_seconds = 5.0\n')
    words = ("--config", str(settings), "--advertise", "10.0.0.1:7071", "--nodes", "2")
    worker = cluster(boot(tmp_path, *words))["worker"]
    told = cluster(boot(tmp_path, *worker, "--join", "10.0.0.1:7071", "--until-eof"))
    assert (told["host"], told["advertise"]) == ("0.0.0.0", "10.0.0.1")
    assert "port" not in told
    assert "nodes" not in told
    assert told["drain_seconds"] == 5.0


def test_nodes_of_one_machine_share_its_memory(tmp_path: Path) -> None:
    config = boot(tmp_path, "--nodes", "3")
    assert config.services["memory"]["share"] == 0.2
    assert config.services["inference"]["cache_share"] == 0.125
    assert "services.memory.share=0.2" in cluster(config)["worker"]


def test_a_share_that_is_set_stays(tmp_path: Path) -> None:
    config = boot(tmp_path, "--nodes", "3", "--set", "services.memory.share=0.5")
    assert config.services["memory"]["share"] == 0.5


def test_a_setting_goes_over_the_file_and_text_needs_no_quotes(tmp_path: Path) -> None:
    settings = tmp_path / "node.toml"
    settings.write_text("[services.gateway]\nport = 1\nhost = 'a'\n")
    config = boot(tmp_path, "--config", str(settings), "--set", "services.gateway.port=2", "--set", "node=here")
    assert (config.services["gateway"], config.node) == ({"port": 2, "host": "a"}, "here")


@pytest.mark.parametrize("setting", ["", "node", "=1", "a b=1", "[x]=1", "source=x"])
def test_what_is_no_setting_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(Invalid):
        boot(tmp_path, "--set", setting)


def test_a_service_that_is_left_out_is_not_started(tmp_path: Path) -> None:
    assert boot(tmp_path, "--without", "inference", "--without", "inference").disable == ("inference",)


LAUNCHERS = ("--set", "services.cluster.launchers.ray.address=auto")


def test_nodes_on_other_systems_machines_have_the_settings_of_this_one_but_for_what_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'node = "first"\nplugins = ["mine.py"]\ndisable = ["monitor"]\nlag_threshold = 0.5\n'
        '[isolation]\nmodels = "thread"\n[services.scheduler]\npolicy = "fifo"\n[services.gateway]\nport = 1\n'
    )
    config = boot(tmp_path, "--config", str(file), "--model", "tiny", *LAUNCHERS)
    assert tomllib.loads(cluster(config)["launched"]) == {
        "disable": ["monitor", "gateway"],
        "lag_threshold": 0.5,
        "isolation": {"models": "thread"},
        "services": {"scheduler": {"policy": "fifo"}, "inference": {"model": "tiny"}},
    }


def test_a_node_without_launchers_has_no_configuration_for_others(tmp_path: Path) -> None:
    assert "launched" not in cluster(boot(tmp_path, "--set", "services.scheduler.policy=fifo"))


def test_a_configuration_that_is_given_for_others_is_left_as_it_is(tmp_path: Path) -> None:
    given_text = 'log_level = "debug"'
    config = boot(tmp_path, *LAUNCHERS, "--set", f"services.cluster.launched='{given_text}'")
    assert cluster(config)["launched"] == given_text


TOML = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(UTC)),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(TOML)
def test_what_a_value_is_written_as_means_that_value(value: Any) -> None:
    assert tomllib.loads(f"key = {_toml(value)}")["key"] == value


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, 1e22, date(2026, 1, 2), time(1, 2, 3), datetime(2026, 1, 2, tzinfo=UTC), "\x7f"]
)
def test_odd_values_are_written_as_toml_has_them(value: Any) -> None:
    assert tomllib.loads(f"key = {_toml(value)}")["key"] == value
