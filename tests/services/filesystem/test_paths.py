"""What is a path of the tree, and what is none."""

from __future__ import annotations

import itertools
import unicodedata
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.filesystem.paths import ROOT, TreePath, parse, twin_key


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/", ()),
        ("//", ()),
        ("/a", ("a",)),
        ("/a/", ("a",)),
        ("//a///b", ("a", "b")),
        ("/data/Ärzte 2024.txt", ("data", "Ärzte 2024.txt")),
        ("/data/A\u0308", ("data", "Ä")),  # two letters for one
        ("/.hidden/...x", (".hidden", "...x")),
        ("/100%/50%25", ("100%", "50%25")),
        ("/console/com10/auxiliary", ("console", "com10", "auxiliary")),
        ("/می‌خواهم", ("می‌خواهم",)),  # a joiner within a word
        ("/👩‍🔬", ("👩‍🔬",)),
    ],
)
def test_a_path_is_its_names_from_the_root_on(text, names):
    assert parse(text).names == names
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "...",
        "a.",
        " a",
        "a ",
        "%2e%2e",
        "%2E.",
        ".%2e",
        "%252e%252e",
        "a%2fb",
        "a%2Fb",
        "a%5cb",
        "a\\b",
        "..\\..",
        "\uff0e\uff0e",  # full stops as wide as Chinese letters
        "\u2024\u2024",  # leaders of one dot
        "a\uff0fb",  # a slash as wide as a Chinese letter
        "a\uff3cb",
        "%00",
        "a%00b",
        "a\0b",
        "a\nb",
        "a\x1bb",
        "a\x7fb",
        "a\u202eb",  # from here on the other way round
        "\u200bx",
        "x\u200d",
        "a\ufeffb",
        "a\u2028b",
        "a\ud800b",
        "con",
        "NUL",
        "nul.txt",
        "Com1",
        "lpt9.tar.gz",
        "com¹",
        "C:",
        "c:windows",
        "x" * 256,
        "ä" * 128,
    ],
)
def test_a_name_that_means_something_else_elsewhere_is_refused(name):
    for text in (f"/{name}", f"/data/{name}/x", f"/data/{name}"):
        with pytest.raises(Invalid) as refused:
            parse(text)
        assert refused.value.field == "path"
        assert refused.value.message.isascii(), "what nobody sees is not sent to a terminal"
        assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "text", ["", "a", "a/b", "./a", "../a", "~", "C:/a", "\\a", "/" + "/".join("a" * 65), "/" + "a/" * 2100]
)
def test_what_does_not_begin_at_the_root_or_is_too_long_is_refused(text):
    with pytest.raises(Invalid):
        parse(text)


HOSTILE = (
    *(
        "..",
        ".",
        "%2e",
        "%2E%2e",
        "%252e",
        "%c0%ae",
        "\uff0e",
        "\u2024",
        "/",
        "\\",
        "%2f",
        "%5C",
        "%252f",
        "\uff0f",
        "\u2215",
    ),
    *(
        "\0",
        "%00",
        "\n",
        "\r",
        "\u202e",
        "\u200b",
        "\u00ad",
        " ",
        ".",
        "etc",
        "passwd",
        "con",
        "nul",
        "C:",
        "~",
        "a",
        "ä",
        ";",
        "|",
    ),
)


def test_of_ten_thousand_hostile_paths_none_leaves_the_tree():
    chosen = itertools.islice(itertools.product(HOSTILE, repeat=3), 0, None, 4)
    count = taken = 0
    for parts in chosen:
        for text in ("/" + "".join(parts), "/data/" + "/".join(parts)):
            count += 1
            try:
                path = parse(text)
            except Invalid:
                continue
            taken += 1
            assert_harmless(path)
    assert count > 10_000
    assert taken > 100, "not all is refused"


@settings(max_examples=500, deadline=None)
@given(text=st.text(st.characters(), max_size=40).map(lambda text: "/" + text))
def test_whatever_is_taken_stays_what_it_is(text):
    try:
        path = parse(text)
    except Invalid:
        return
    assert_harmless(path)
    assert parse(str(path)) == path


def assert_harmless(path: TreePath) -> None:
    for name in path.names:
        for reading in (name, unquote(name), unquote(unquote(name)), unicodedata.normalize("NFKC", name)):
            assert reading.strip(". "), f"{name!r} is nothing but dots"
            assert "/" not in reading
            assert "\\" not in reading
            assert "\0" not in reading
        assert unquote(quote(name)) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [("README", "readme"), ("straße", "STRASSE"), ("ﬁle", "file"), ("Ⅳ", "iv"), ("می‌خواهم", "میخواهم"), ("x²", "x2")],
)
def test_twins_are_names_that_are_taken_for_one_another(one, other):
    assert twin_key(one) == twin_key(other)
    assert twin_key(one) != twin_key(one + "x")


def test_paths_know_where_they_are():
    path = parse("/data/a/b")
    assert (path.name, str(path.parent), ROOT.parent, ROOT.name) == ("b", "/data/a", ROOT, "")
    assert path.is_within(parse("/data"))
    assert path.is_within(path)
    assert not path.is_within(parse("/dat"))
    assert str(path.below(parse("/data"))) == "/a/b"
    assert str(parse("/data") / "x") == "/data/x"
