"""Which versions of the packages were measured."""

from __future__ import annotations

from importlib import metadata

__all__ = ["package_versions"]


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions; a package that is not installed is left out."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
