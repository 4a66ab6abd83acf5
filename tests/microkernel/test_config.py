"""The configuration file: errors name the key and the line."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.config import Config, read_config, settings_of
from microkernel.errors import Invalid
from microkernel.message import Message


class Settings(Message):
    port: int = 1
    host: str = "here"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mk.toml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_a_file_is_read_with_its_types(write):
    config = read_config(
        write("""
            node = "n1"
            [supervision]
            strategy = "one_for_one"
            [services.gateway]
            port = 8080
        """)
    )
    assert config.node == "n1"
    assert config.supervision.strategy == "one_for_one"
    assert settings_of(config, "gateway", Settings) == Settings(port=8080)


def test_without_a_file_there_are_defaults():
    assert read_config(None) == Config()
    assert settings_of(Config(), "gateway", Settings) == Settings()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("node = 1", r"mk\.toml, line 1: node: Expected `str`"),
        ("\n[supervision]\nintensity = 'x'", r"line 3: supervision\.intensity: Expected `int`"),
        ("\n\nnoed = 'x'", r"unknown key 'noed' \(did you mean 'node'\?\)"),
        ("[supervision]\nstrategy = 'none'", r"line 2: supervision\.strategy: Invalid enum value"),
        ("node = 'a'\nb c", r"not TOML: .*line 2"),
        ("text = 'x'", "unknown key 'text'"),
    ],
)
def test_a_wrong_file_is_told_by_key_and_line(write, text, why):
    with pytest.raises(Invalid, match=why):
        read_config(write(text))


def test_a_wrong_section_of_a_service_is_told_by_key_and_line(write):
    config = read_config(write("node = 'a'\n\n[services.gateway]\nhost = 'x'\nport = 'high'\n"))
    with pytest.raises(Invalid, match=r"line 5: services\.gateway\.port: Expected `int`, got `str`"):
        settings_of(config, "gateway", Settings)
    config = read_config(write("[services.gateway]\nprot = 1\n"))
    with pytest.raises(Invalid, match=r"line 2: unknown key 'services\.gateway\.prot' \(did you mean 'port'\?\)"):
        settings_of(config, "gateway", Settings)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(Invalid, match="there is no config file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(Invalid, match="cannot read"):
        read_config(tmp_path)
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid, match="not UTF-8"):
        read_config(path)


def test_settings_given_on_the_command_line_go_over_the_files(write):
    config = read_config(write("[services.gateway]\nport = 8080\nhost = 'x'")).with_settings({"gateway": {"port": 1}})
    assert settings_of(config, "gateway", Settings) == Settings(port=1, host="x")


@given(st.text())
def test_any_text_is_a_configuration_or_a_named_error(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mk.toml"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            read_config(path)
        except Invalid as error:
            assert "mk.toml" in str(error)
