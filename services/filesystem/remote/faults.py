"""What libraries raise, as errors of ours, without the credentials that their texts may hold."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from microkernel.errors import (
    Aborted,
    AlreadyExists,
    Denied,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
    Unimplemented,
)
from services.filesystem.remote.address import Address, package_of
from services.filesystem.remote.secrets import Secrets

__all__ = ["changed_meanwhile", "error_of", "faults_named"]

RETRY = 5.0  # seconds, where a store does not say when to come back


@contextmanager
def faults_named(where: str, address: Address, secrets: Secrets) -> Iterator[None]:
    """Whatever is raised within, as an error of ours that names `where`; the library's own is not chained to it."""
    try:
        yield
    except MicrokernelError:
        raise
    except Exception as error:  # noqa: BLE001 - back ends raise what they like
        told = error_of(error, where, address, secrets)
        raise told from None


def error_of(error: BaseException, where: str, address: Address, secrets: Secrets) -> MicrokernelError:
    """The error of ours for one of a library's."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and _status_of(cause) not in {404, 410}:
        error = cause  # as the back end for https says it of a server that does not answer
    text = secrets.hide(f"{type(error).__name__}: {error}")
    causes = (text,)
    if isinstance(error, ImportError):
        return PreconditionFailed(
            f"{where} cannot be reached: the back end of {address.kind}:// is not installed",
            remedy=package_of(address.kind),
            causes=causes,
        )
    return _by_status(error, where, causes) or _by_class(error, where, text, causes)


def changed_meanwhile(where: str) -> Aborted:
    """A file that is not any more what a reader began with."""
    return Aborted(f"{where} was changed while it was read", remedy="read it again")


def _by_status(error: BaseException, where: str, causes: tuple[str, ...]) -> MicrokernelError | None:
    status = _status_of(error)
    if status in {401, 403, 407}:
        return _denied(where, causes)
    if status in {404, 410}:
        return NotFound(f"there is no {where}", field="path", causes=causes)
    if status == 412:
        return changed_meanwhile(where)
    if status in {429, 503}:
        return Overloaded(
            f"the store of {where} asks to come back later ({status})", retry_after=_retry_of(error), causes=causes
        )
    if status is not None and 500 <= status < 600:
        return Unavailable(f"the store of {where} failed ({status})", remedy="try again", causes=causes)
    return None


def _by_class(error: BaseException, where: str, text: str, causes: tuple[str, ...]) -> MicrokernelError:
    number = error.errno if isinstance(error, OSError) else None
    made: MicrokernelError
    if isinstance(error, FileNotFoundError) or type(error).__name__ in {"RepositoryNotFoundError", "NoSuchKey"}:
        made = NotFound(f"there is no {where}", field="path", causes=causes)
    elif isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        made = _denied(where, causes)
    elif isinstance(error, FileExistsError):
        made = AlreadyExists(f"{where} is there already", field="path", causes=causes)
    elif isinstance(error, IsADirectoryError):
        made = Invalid(f"{where} is a folder", field="path", causes=causes)
    elif isinstance(error, NotADirectoryError):
        made = NotFound(f"there is no {where}: a file is on the way", field="path", causes=causes)
    elif isinstance(error, NotImplementedError):
        made = Unimplemented(f"the store of {where} cannot do this", causes=causes)
    elif number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        made = PreconditionFailed(f"there is no room for {where}", remedy="free space where it is", causes=causes)
    elif number == errno.ENOTEMPTY:
        made = PreconditionFailed(f"{where} is not empty", remedy="remove it with what is in it", causes=causes)
    elif isinstance(error, TypeError):
        made = PreconditionFailed(
            f"{where} cannot be mounted so: {text}", remedy="check the options of the mount", causes=causes
        )
    else:
        made = Unavailable(
            f"{where} cannot be reached: {text}", remedy="check the network, the URL and its options", causes=causes
        )
    return made


def _denied(where: str, causes: tuple[str, ...]) -> Denied:
    return Denied(
        f"the store does not let this node have {where}",
        remedy="give the library credentials: its own files and variables, or options_env of the mount",
        causes=causes,
    )


def _status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of a library has; each keeps it elsewhere."""
    response: Any = getattr(error, "response", None)
    found: Any = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode", found)
    if found is None:
        found = getattr(error, "code", None)  # of gcsfs
    return found if isinstance(found, int) and 400 <= found < 600 else None


def _retry_of(error: BaseException) -> float:
    headers: Any = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None) or {}
    told = str(headers.get("Retry-After", "")) if hasattr(headers, "get") else ""
    return float(told) if told.isdecimal() and len(told) < 5 else RETRY
