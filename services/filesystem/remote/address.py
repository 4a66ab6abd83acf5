"""Where other storage is: a URL as fsspec has it, without credentials."""

from __future__ import annotations

import msgspec
from fsspec.registry import available_protocols, known_implementations

from microkernel.errors import Invalid

__all__ = ["Address", "package_of", "parse_address"]

LONGEST = 2048

# What is mounted is read by users of the node: these would let one name lead to anywhere, or keep bytes elsewhere.
REFUSED = {
    "async_wrapper": "wraps another one",
    "asynclocal": "is file://",
    "blockcache": "is a cache, which a mount has",
    "cached": "is a cache, which a mount has",
    "data": "is a content and no place",
    "dir": "is a folder of another one",
    "filecache": "is a cache, which a mount has",
    "generic": "leads anywhere",
    "reference": "leads anywhere",
    "simplecache": "is a cache, which a mount has",
}
AT_SIGNS = frozenset({"git", "github", "gist", "gitlab", "hf"})  # `name@revision`, and `owner:name` before it
INNER = frozenset({"zip", "tar", "libarchive"})  # they are files of another store


class Address(msgspec.Struct, frozen=True):
    """A URL that may be told; `kind` is the outermost protocol."""

    url: str
    kind: str

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where a cache only costs."""
        return self.kind in {"file", "memory"}


def parse_address(url: str) -> Address:
    """What a mount says. Raises `Invalid`, which never repeats the URL: there may be a password in it."""
    if not url.isprintable() or not url.strip() or len(url) > LONGEST:
        raise _invalid(f"the URL is empty, has letters that nobody sees, or is longer than {LONGEST}")
    links = url.split("::")
    kinds = [_kind_of(link, first=place == 0) for place, link in enumerate(links)]
    for link, kind in zip(links, kinds, strict=True):
        _check(link.partition("://")[2], kind)
    if kinds[0] in INNER and len(links) == 1:
        raise _invalid(f"{kinds[0]}:// is within a file", f"say which: {kinds[0]}://::file:///folder/name")
    if kinds[0] == "file" and len(links) > 1:
        raise _invalid("file:// is within nothing else")
    if kinds[0] == "file" and not links[0].removeprefix("file://").startswith("/"):
        raise _invalid("a path begins at the root", "write file:///folder")
    return Address(url, kinds[0])


def package_of(kind: str) -> str:
    """What to install for a protocol, in the words of fsspec."""
    known = known_implementations.get(kind, {})
    package = known.get("class", "").partition(".")[0]
    told = known.get("err", "").partition(";")[0].strip().splitlines()
    if package and package != "fsspec":
        return f"pip install {package}"
    return told[0] if told else f"install the package that brings {kind}:// for fsspec"


def _kind_of(link: str, *, first: bool) -> str:
    kind, colon, _ = link.partition("://")
    if not colon and first:
        raise _invalid("the URL has no protocol", "write file:///folder for a folder of this machine")
    kind = "file" if kind == "local" else kind
    if kind in REFUSED:
        raise _invalid(f"{kind}:// {REFUSED[kind]}", "name the place itself")
    if kind not in available_protocols():
        raise _invalid(f"{_short(kind)}:// is not known", "see fsspec's list of protocols, or install what brings it")
    return kind


def _check(rest: str, kind: str) -> None:
    """Raises `Invalid` for what may be a credential."""
    before, at, _ = rest.partition("/")[0].rpartition("@")
    remedy = "the library takes credentials from its own files and variables, or name variables in options_env"
    if at and kind not in AT_SIGNS and (":" in before or kind in {"http", "https"}):
        raise _invalid("there is a password in the URL, which others could read", remedy)
    if "?" in rest or "#" in rest:
        raise _invalid("the URL has a '?' or '#', behind which names cannot be put", remedy)


def _short(text: str) -> str:
    return ascii(text[:20])[1:-1]


def _invalid(wrong: str, remedy: str | None = None) -> Invalid:
    return Invalid(wrong, field="url", remedy=remedy)
