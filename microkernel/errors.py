"""The one hierarchy of errors: every error has a code, a cause, and a word on what to do.

Codes are gRPC's (https://grpc.github.io/grpc/core/md_doc_statuscodes.html) plus `DEADLOCK`, `TOO_BIG` and `GONE`.
An error that crosses a link is sent as `ErrorReport` and raised again at the other end as the same class.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, TypeVar

import msgspec

__all__ = [
    "Code",
    "ErrorReport",
    "MicrokernelError",
    "Aborted",
    "AlreadyExists",
    "CallCancelled",
    "DataLoss",
    "Deadlock",
    "DeadlineExceeded",
    "Denied",
    "Gone",
    "Internal",
    "Invalid",
    "NotFound",
    "Overloaded",
    "PreconditionFailed",
    "TooBig",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "copy_of",
    "from_exception",
    "from_report",
]

MAX_CAUSES = 8  # a chain longer than this tells a reader nothing more

E = TypeVar("E", bound="MicrokernelError")


class Code(StrEnum):
    """Why a call ended without a result."""

    CANCELLED = "CANCELLED"
    INVALID = "INVALID"
    DEADLINE = "DEADLINE"
    NOT_FOUND = "NOT_FOUND"
    EXISTS = "EXISTS"
    DENIED = "DENIED"
    OVERLOADED = "OVERLOADED"
    PRECONDITION = "PRECONDITION"
    ABORTED = "ABORTED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    DEADLOCK = "DEADLOCK"
    TOO_BIG = "TOO_BIG"
    GONE = "GONE"


class ErrorReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is sent: flat, and readable without our classes."""

    code: Code
    message: str
    service: str | None = None
    remedy: str | None = None
    field: str | None = None
    retry_after_ms: int | None = None
    may_have_run: bool | None = None
    causes: tuple[str, ...] = ()


class MicrokernelError(Exception):
    """Base of all errors that the kernel, its services and its clients raise on purpose.

    `message` is one sentence that names what failed. `remedy` says what the reader can do, where there is something
    to do. `retry_after` is in seconds. `may_have_run` tells, for a call that did not come back, whether its handler
    may have started. The chain of causes is Python's own: `raise NotFound(...) from error`.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        service: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
        may_have_run: bool | None = None,
        causes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.service = service
        self.field = field
        self.retry_after = retry_after
        self.may_have_run = may_have_run
        self._causes = causes

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message

    @property
    def causes(self) -> tuple[str, ...]:
        """What led here, nearest first: those of another node, then Python's own chain."""
        causes = list(self._causes)
        seen: BaseException | None = self.__cause__
        while seen is not None and len(causes) < MAX_CAUSES:
            causes.append(f"{type(seen).__name__}: {seen}")
            seen = seen.__cause__
        return tuple(causes)

    def report(self) -> ErrorReport:
        """The error as it is sent over a link."""
        retry = None if self.retry_after is None else max(0, round(self.retry_after * 1000))
        return ErrorReport(
            code=self.code,
            message=self.message,
            service=self.service,
            remedy=self.remedy,
            field=self.field,
            retry_after_ms=retry,
            may_have_run=self.may_have_run,
            causes=self.causes,
        )


class CallCancelled(MicrokernelError):
    """The caller, or somebody with the right to, ended the call."""

    code = Code.CANCELLED


class Invalid(MicrokernelError):
    """The message does not fit the handler's type or limits; `field` names the culprit."""

    code = Code.INVALID


class DeadlineExceeded(MicrokernelError):
    """The time given to the call ran out."""

    code = Code.DEADLINE


class NotFound(MicrokernelError):
    """No such service, handler, model, process or file."""

    code = Code.NOT_FOUND


class AlreadyExists(MicrokernelError):
    """The name is taken."""

    code = Code.EXISTS


class Denied(MicrokernelError):
    """The caller's rights do not cover this call."""

    code = Code.DENIED


class Overloaded(MicrokernelError):
    """A limit is reached; `retry_after` says when to come back."""

    code = Code.OVERLOADED


class PreconditionFailed(MicrokernelError):
    """The system is not in a state in which this can be done."""

    code = Code.PRECONDITION


class Aborted(MicrokernelError):
    """Another operation got in between; trying again from the start may work."""

    code = Code.ABORTED


class Unimplemented(MicrokernelError):
    """The other end does not know this kind of message."""

    code = Code.UNIMPLEMENTED


class Internal(MicrokernelError):
    """A defect: a handler raised something that it did not mean to."""

    code = Code.INTERNAL


class Unavailable(MicrokernelError):
    """The service is not up; `may_have_run` says whether the call had started."""

    code = Code.UNAVAILABLE


class DataLoss(MicrokernelError):
    """Stored bytes are damaged or missing."""

    code = Code.DATA_LOSS


class Unauthenticated(MicrokernelError):
    """No valid token was given."""

    code = Code.UNAUTHENTICATED


class Deadlock(MicrokernelError):
    """Waiting would never end: the call waits for itself through others."""

    code = Code.DEADLOCK


class TooBig(MicrokernelError):
    """A message, frame or prompt is over its limit."""

    code = Code.TOO_BIG


class Gone(MicrokernelError):
    """It was there once: an event that left the ring, a session that ended."""

    code = Code.GONE


_BY_CODE: dict[Code, type[MicrokernelError]] = {
    kind.code: kind
    for kind in (
        CallCancelled, Invalid, DeadlineExceeded, NotFound, AlreadyExists, Denied, Overloaded, PreconditionFailed,
        Aborted, Unimplemented, Internal, Unavailable, DataLoss, Unauthenticated, Deadlock, TooBig, Gone,
    )
}  # fmt: skip


def from_report(report: ErrorReport) -> MicrokernelError:
    """The error that `report` tells of, to be raised at this end."""
    return _BY_CODE[report.code](
        report.message,
        remedy=report.remedy,
        service=report.service,
        field=report.field,
        retry_after=None if report.retry_after_ms is None else report.retry_after_ms / 1000,
        may_have_run=report.may_have_run,
        causes=report.causes,
    )


def from_exception(error: BaseException, *, service: str | None = None) -> MicrokernelError:
    """`error` itself if it is ours, otherwise an `Internal` that has it as its cause."""
    if isinstance(error, MicrokernelError):
        if error.service is None:
            error.service = service
        return error
    where = f"{service} raised" if service else "raised"
    wrapped = Internal(f"{where} {type(error).__name__}: {error}", service=service)
    wrapped.__cause__ = error
    return wrapped


def copy_of(error: MicrokernelError, kind: type[E], *, message: str | None = None) -> E:
    """What `error` says as a `kind`: one of its own for each who gets it, or it would collect everybody's traceback.

    `message` is another sentence for it, such as one that says of what it is true.
    """
    return kind(
        error.message if message is None else message,
        remedy=error.remedy,
        service=error.service,
        field=error.field,
        retry_after=error.retry_after,
        may_have_run=error.may_have_run,
        causes=error.causes,
    )
