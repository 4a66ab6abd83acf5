"""The simulation of a cluster: its arithmetic, its network, and a small one in a hurry, to see its form."""

from __future__ import annotations

import json
import math
import random

import pytest
from benchmark_reference import section_of

from benchmarks.cluster import simulation
from benchmarks.cluster.scenarios import quantile
from benchmarks.cluster.virtual import ENVELOPE, Host, Meter, Network, Weather

KEYS = {key for rows in simulation.LINES.values() for _, _, key, _ in rows}


def test_a_quantile_is_the_smallest_number_that_so_many_do_not_exceed():
    numbers = [float(each) for each in range(1, 201)]
    assert quantile(numbers, 50) == 100.0
    assert quantile(numbers, 99) == 198.0
    assert quantile([7.0], 50) == quantile([7.0], 99) == 7.0


def test_messages_are_lost_and_late_as_often_as_the_weather_says():
    network = Network(random.Random(0), Weather(least=0.001, mean=0.002, loss=0.2, spikes=0.1, spike=10.0))
    times = [network.travel("a", "b") for _ in range(5000)]
    came = [each for each in times if each is not None]
    assert 0.77 < len(came) / len(times) < 0.83
    assert min(came) >= 0.001
    assert 0.06 < sum(each > 0.5 for each in came) / len(came) < 0.14


def test_nothing_goes_from_one_side_of_a_cut_to_the_other():
    network = Network(random.Random(0))
    network.side = {"a": 1}
    assert network.travel("a", "b") is None
    assert network.travel("b", "c") is not None


def test_what_is_sent_is_counted_with_its_frame():
    meter = Meter()
    network = Network(random.Random(0), meter=meter)
    hosts = [Host(network, name, seeds=("a",)) for name in ("a", "b")]
    for host in hosts:
        host.join()
    network.run(10.0)
    assert {len(host.membership) for host in hosts} == {2}
    assert meter.messages > 40
    assert meter.bytes > meter.messages * ENVELOPE


def test_a_frozen_host_hears_all_when_it_goes_on_and_one_that_ended_refuses():
    network = Network(random.Random(0))
    a, b = (Host(network, name, seeds=("a",)) for name in ("a", "b"))
    b.join()
    network.run(5.0)
    b.freeze()
    network.run(6.2)
    b.thaw()
    network.run(10.0)
    assert {len(a.membership), len(b.membership)} == {2}
    b.kill()
    network.run(11.0)
    assert len(a.membership) == 1


def test_a_small_run_measures_all_that_its_table_has_a_line_for(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert simulation.main(["--nodes", "3", "12", "--quick", "--json", str(file)]) == 0
    result = json.loads(file.read_bytes())
    assert set(result["found"]) == {"3", "12"}
    for found in result["found"].values():
        assert set(found) == KEYS
        assert all(math.isfinite(each) for each in found.values())
        assert found["wrongly dead"] == 0.0
    shown = capsys.readouterr().out
    assert all(about in shown for rows in simulation.LINES.values() for about, *_ in rows)
    assert "12 nodes" in shown


def test_a_size_at_which_nobody_can_be_asked_is_refused(capsys):
    with pytest.raises(SystemExit):
        simulation.main(["--nodes", "10", "2"])
    assert "at least 3 nodes" in capsys.readouterr().err


def test_what_is_never_known_is_said_so():
    found = dict.fromkeys(KEYS, 1.0) | {"hang all": math.inf}
    (line,) = (each for each in simulation.render({3: found}).splitlines() if "hangs: dead, all" in each)
    assert line.split()[-1] == "never"


def test_the_reference_tells_of_the_simulation():
    section = section_of("cluster")
    assert "benchmarks.cluster.simulation" in section
    for option in ("--nodes", "--quick", "--seed", "--json"):
        assert f"`{option}" in section
