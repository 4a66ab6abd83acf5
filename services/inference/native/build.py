"""Finds the kernels' library for this CPU, or builds it: one that came with the installation, or in a folder of ours.

A build takes seconds, once: its file's name says of which sources, flags and compiler it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from microkernel.errors import PreconditionFailed
from services.inference.native import recipe
from services.inference.native.library import Kernels

__all__ = ["open_kernels"]

PREBUILT = Path(__file__).parent
ABANDONED = 3600.0  # seconds after which what a build that was killed left behind is removed


def open_kernels(folder: Path | None, variant: str | None = None) -> Kernels:
    """The kernels for this CPU's best instruction set, or for `variant`; built in `folder` where none are there.

    Without a `folder` only those are taken that came with the installation. Raises `PreconditionFailed`, which says
    in one line why there are none; the torch decoder computes then.
    """
    chosen = _choose(variant)
    kernels = _load(PREBUILT / f"_kernels_{chosen}.so", chosen)
    if kernels is not None:
        return kernels
    if folder is None:
        raise PreconditionFailed(f"no kernels for {chosen} came with this installation")
    _check_private(folder)
    compiler = recipe.find_compiler()
    if compiler is None:  # there may be a build from before it went away
        kernels = next(filter(None, (_load(path, chosen) for path in folder.glob(f"kernels-{chosen}-*.so"))), None)
        if kernels is None:
            raise PreconditionFailed("no C++ compiler was found", remedy="install g++ or clang++, or name one in CXX")
        return kernels
    path = folder / _name(chosen, compiler)
    kernels = _load(path, chosen)
    if kernels is not None:
        return kernels
    _build(path, chosen, compiler)
    try:
        return Kernels(path, chosen)
    except OSError as error:
        raise PreconditionFailed(f"the kernels were built and cannot be loaded: {error}") from error


def _choose(variant: str | None) -> str:
    here = recipe.runnable()
    if variant is None:
        if not here:
            raise PreconditionFailed("there are no kernels for this CPU's instruction set")
        return here[0]
    if variant not in here:
        others = f", only for {', '.join(here)}" if here else ""
        raise PreconditionFailed(f"this CPU cannot run kernels for {variant}{others}")
    return variant


def _load(path: Path, variant: str) -> Kernels | None:
    """The library at `path`, None where there is none, one of other sources, or one that cannot be loaded here."""
    if recipe.is_current(path, variant):
        with contextlib.suppress(OSError, PreconditionFailed):  # such as built against a newer C library
            return Kernels(path, variant)
    return None


def _check_private(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if folder.stat().st_mode & 0o022:
            raise PreconditionFailed(
                f"{folder} is open to other users, and what is built there is run", remedy=f"chmod go-w {folder}"
            )


def _name(variant: str, compiler: list[str]) -> str:
    content = f"{recipe.mark(variant)} {compiler} {_version(compiler)}"
    return f"kernels-{variant}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"


def _version(compiler: list[str]) -> str:
    try:
        command = [*compiler, "--version"]
        said = subprocess.run(command, capture_output=True, timeout=10, check=False)  # noqa: S603 - no shell reads it
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.decode(errors="replace").partition("\n")[0]


def _build(path: Path, variant: str, compiler: list[str]) -> None:
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise PreconditionFailed(f"the kernels cannot be built in {folder}: {error.strerror}") from error
    wrong = recipe.compile_kernels(variant, compiler, path)
    if wrong is not None:
        raise PreconditionFailed(f"the kernels cannot be built: {wrong}")
    _remove_old(folder, variant, path)


def _remove_old(folder: Path, variant: str, newest: Path) -> None:
    for path in folder.glob(f"kernels-{variant}-*.so"):
        if path != newest:
            path.unlink(missing_ok=True)  # who has it loaded keeps it
    for path in folder.glob(f"{recipe.UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
