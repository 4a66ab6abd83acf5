"""Checks of this machine and its node, for `mk doctor` and `mk boot --check`: each is one line, and how to mend it."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import stat
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from microkernel.capability import checked_token
from microkernel.cli.output import clean, print_json, size, write
from microkernel.errors import MicrokernelError, PreconditionFailed
from microkernel.message import Message

__all__ = [
    "Check",
    "check_folder",
    "check_imports",
    "check_packages",
    "check_port",
    "check_python",
    "check_token",
    "failed",
    "show",
]

LEAST_PYTHON = (3, 11)
LEAST_FREE = 1 << 30  # bytes: a small model and its state


class Check(Message, kw_only=True):
    """One thing that was looked at. `remedy` says how to mend what is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def failed(name: str, error: Exception, remedy: str = "") -> Check:
    """A check that ended with an error."""
    if isinstance(error, MicrokernelError):
        return Check(name=name, ok=False, detail=error.message, remedy=error.remedy or remedy)
    return Check(name=name, ok=False, detail=f"{type(error).__name__}: {error}", remedy=remedy)


def show(checks: list[Check], *, as_json: bool) -> int:
    """Print all; returns the exit code."""
    if as_json:
        print_json(checks)
    else:
        marks = ("✓", "✗") if (sys.stdout.encoding or "").lower().startswith("utf") else ("ok", "!!")
        width = max((len(check.name) for check in checks), default=0)
        for check in checks:
            remedy = f" → {check.remedy}" if check.remedy and not check.ok else ""
            detail = " ".join(clean(check.detail + remedy).split())
            write(f"{_coloured(marks[0 if check.ok else 1], ok=check.ok)} {check.name.ljust(width)}  {detail}")
    return 0 if all(check.ok for check in checks) else 1


def _coloured(mark: str, *, ok: bool) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return mark
    return f"\x1b[{32 if ok else 31}m{mark}\x1b[0m"


def check_python() -> Check:
    """The interpreter's version."""
    least = ".".join(map(str, LEAST_PYTHON))
    return Check(
        name="python",
        ok=sys.version_info >= LEAST_PYTHON,
        detail=f"{sys.version.split()[0]} at {sys.executable}",
        remedy=f"install Python {least} or newer",
    )


def check_imports(*modules: str) -> list[Check]:
    """Whether the packages that carry the work can be imported."""
    return [_check_import(module) for module in modules]


def _check_import(module: str) -> Check:
    try:
        found = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything; the check is there to say so
        return failed(module, error, remedy=f"pip install --force-reinstall {module}")
    return Check(name=module, ok=True, detail=str(getattr(found, "__version__", "imports")))


def check_packages() -> Check:
    """The installed packages against what this distribution asks for."""
    name, wrong = "packages", []
    try:
        wanted = requires("microkernel") or []
    except PackageNotFoundError:
        return Check(name=name, ok=False, detail="microkernel is not installed", remedy="pip install -e .")
    from packaging.requirements import Requirement

    count = 0
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    if wrong:
        return Check(name=name, ok=False, detail="; ".join(wrong), remedy="pip install -e . in a fresh environment")
    return Check(name=name, ok=True, detail=f"all {count} fit")


def check_folder(root: Path) -> list[Check]:
    """Whether the state folder can be written, is private, and has room."""
    name = "state folder"
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not there.is_dir():
        return [Check(name=name, ok=False, detail=f"{there} is a file", remedy="choose another folder with --root")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [Check(name=name, ok=False, detail=f"{there} cannot be written", remedy="choose another with --root")]
    state = str(root) if there == root else f"{root} (will be made)"
    checks = [Check(name=name, ok=True, detail=state)]
    free = shutil.disk_usage(there).free
    checks.append(
        Check(
            name="disk",
            ok=free >= LEAST_FREE,
            detail=f"{size(free)} free",
            remedy=f"free some: a model needs {size(LEAST_FREE)} and more",
        )
    )
    return checks


def check_token(root: Path) -> Check:
    """Whether the token of the environment will do, and token and key are for their user's eyes only."""
    if given := os.environ.get("MICROKERNEL_TOKEN"):
        try:
            checked_token(given)
        except PreconditionFailed as error:
            return failed("token", error)
    found = [Check(name="token", ok=True, detail="MICROKERNEL_TOKEN")] if given else []
    for path in (root / "token.key",) if given else (root / "token", root / "token.key"):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            return failed("token", error)
        detail, remedy = f"{path}, mode {mode:04o}", f"chmod 600 {path}"
        found.append(Check(name="token", ok=mode & 0o077 == 0, detail=detail, remedy=remedy))
    found.append(Check(name="token", ok=True, detail="none yet: the first boot makes one"))
    return next((check for check in found if not check.ok), found[0])


def check_port(host: str, port: int) -> Check:
    """Whether a node could listen there."""
    where = f"{port} on {host}"
    if port == 0:
        return Check(name="port", ok=True, detail=f"any free one on {host}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError:
        return Check(name="port", ok=False, detail=f"{where} is not allowed", remedy="take one above 1023 with --port")
    except OSError as error:
        detail = f"{where}: {error.strerror or error}"
        return Check(
            name="port", ok=False, detail=detail, remedy="choose another with --port, or stop what listens there"
        )
    return Check(name="port", ok=True, detail=f"{where} is free")
