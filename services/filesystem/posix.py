"""Errors by POSIX's names: the node says which one a refusal is, and clients raise what their users expect.

An error of the tree that POSIX has a name for has it as its first cause, such as `EISDIR: Is a directory`: the name and
not the number, which differs between systems.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from microkernel.errors import Code, MicrokernelError

__all__ = ["os_error", "os_errors", "posix"]

NAME = re.compile(r"(E[A-Z0-9]+): ")
BY_CODE = {
    Code.ABORTED: errno.EAGAIN,
    Code.CANCELLED: errno.ECANCELED,
    Code.DEADLINE: errno.ETIMEDOUT,
    Code.DENIED: errno.EACCES,
    Code.EXISTS: errno.EEXIST,
    Code.GONE: errno.ESTALE,
    Code.INVALID: errno.EINVAL,
    Code.NOT_FOUND: errno.ENOENT,
    Code.OVERLOADED: errno.EBUSY,
    Code.TOO_BIG: errno.EMSGSIZE,
    Code.UNAUTHENTICATED: errno.EACCES,
    Code.UNIMPLEMENTED: errno.ENOTSUP,
}


def posix(number: int) -> tuple[str, ...]:
    """The causes of an error that has the name of `number`."""
    return (f"{errno.errorcode[number]}: {os.strerror(number)}",)


def os_error(error: MicrokernelError, path: str | None = None) -> OSError:
    """What Python raises for it: `FileNotFoundError`, `PermissionError` and so on, with what it says and its remedy."""
    number = _number(error)
    return OSError(number, str(error)) if path is None else OSError(number, str(error), path)


@contextmanager
def os_errors(path: str | None = None) -> Iterator[None]:
    """Errors of the node as `os_error` has them."""
    try:
        yield
    except MicrokernelError as error:
        raise os_error(error, path) from error


def _number(error: MicrokernelError) -> int:
    for cause in error.causes:
        named = NAME.match(cause)
        number = None if named is None else getattr(errno, named[1], None)
        if isinstance(number, int):
            return number
    if error.code == Code.UNAVAILABLE:
        return errno.ECONNREFUSED if error.may_have_run is False else errno.ECONNRESET
    return BY_CODE.get(error.code, errno.EIO)
