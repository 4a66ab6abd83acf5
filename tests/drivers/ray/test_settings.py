"""What can be set, and how Ray comes to know us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivers.ray.launcher import RayLauncher
from drivers.ray.settings import RaySettings, bridge_environment, checked
from microkernel.config import section_of
from microkernel.errors import Invalid, PreconditionFailed

SECTION = ("services", "cluster", "launchers", "ray")

NO_ADDRESS = ("", "local", "host", "host:0", "host:x", "http://host:1", "ray://host", "ray://a:b@host:1", "host:1/x")


def test_an_address_is_all_that_has_to_be_said() -> None:
    assert section_of({"address": "auto"}, RaySettings, SECTION).num_cpus == 1.0


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({}, "missing required field `address`"),
        *(({"address": address}, "ray.address: it is 'auto', HOST:PORT or ray://HOST:PORT") for address in NO_ADDRESS),
        ({"address": "auto", "num_cpu": 1}, "did you mean 'num_cpus'?"),
        ({"address": "auto", "num_cpus": -1}, "ray.num_cpus: Expected `float` >= 0"),
        ({"address": "auto", "port": 70000}, "ray.port: Expected `int` <= 65535"),
        ({"address": "auto", "orphan_seconds": 1}, "ray.orphan_seconds: Expected `float` >= 60"),
        ({"address": "auto", "resources": {"GPU": 1}}, "ray.resources: CPU and GPU are num_cpus and num_gpus"),
        ({"address": "auto", "token_file": "a", "token_env": "B"}, "ray.token_file: there is a token_env too"),
    ],
)
def test_what_cannot_be_is_named_with_its_key(section: dict[str, Any], told: str) -> None:
    with pytest.raises(Invalid) as raised:
        checked(section_of(section, RaySettings, SECTION))
    assert told in str(raised.value)


def test_without_a_token_none_is_shown_that_happens_to_lie_around() -> None:
    assert bridge_environment(RaySettings(address="auto"), {"PATH": "/bin"}) == {
        "PATH": "/bin",
        "RAY_AUTH_MODE": "disabled",
    }


def test_rays_own_variables_hold_where_the_settings_say_nothing() -> None:
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}
    assert bridge_environment(RaySettings(address="auto"), ours) == ours


def test_a_token_that_is_set_is_the_one_that_is_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    ours = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "other", "RAY_AUTH_TOKEN_PATH": "other", "MINE": "m"}
    by_file = bridge_environment(RaySettings(address="auto", token_file=str(tmp_path / "token")), ours)
    by_name = bridge_environment(RaySettings(address="auto", token_env="MINE"), ours)
    assert by_file == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "MINE": "m"}
    assert by_name == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "m", "MINE": "m"}


@pytest.mark.parametrize("token", [{"token_file": "/nowhere/token"}, {"token_env": "NOT_SET"}])
async def test_a_token_that_is_not_to_be_had_is_told_before_ray_is_asked(tmp_path: Path, token: dict[str, str]) -> None:
    launcher = RayLauncher()
    launcher.settings = RaySettings(address="auto", **token)
    with pytest.raises(Invalid, match=r"ray\.token_"):
        await launcher.open("owner", tmp_path)


def test_what_speaks_with_ray_has_no_token_of_ours() -> None:
    ours = {"MICROKERNEL_TOKEN": "t", "MICROKERNEL_JOIN_TOKEN": "t", "HOME": "/"}
    assert bridge_environment(RaySettings(address="auto"), ours) == {"HOME": "/", "RAY_AUTH_MODE": "disabled"}


async def test_without_ray_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    launcher = RayLauncher()
    launcher.settings = RaySettings(address="auto")
    with pytest.raises(PreconditionFailed) as raised:
        await launcher.open("owner", tmp_path)
    assert raised.value.remedy == "pip install 'microkernel[ray]'"
