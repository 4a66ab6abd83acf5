"""How values cross between a service and the kernel (hot: once a message): as they are, or as MessagePack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from microkernel.buffers import Array, decode_custom
from microkernel.errors import ErrorReport, Internal, Invalid, MicrokernelError, TooBig, from_exception, from_report
from microkernel.isolation.kinds import as_fields, kind_named, name_of_value

__all__ = ["LONGEST", "ByReference", "MessagePack", "Packing"]

ARRAY = 1  # the code of MessagePack's extension that holds one: its dtype, its shape and its bytes
LONGEST = 64 * 2**20  # bytes of one message to or from a process
MAX_DECODERS = 4096


class Packing(Protocol):
    """What a link does to bodies and errors before they go and when they have come."""

    def pack(self, value: Any, what: str) -> Any:
        """`value` as a body; raises `Invalid` and `TooBig` that name `what`."""

    def name(self, value: Any, declared: Any) -> Any:
        """The name of its type, to go with the body; None where the other end needs none."""

    def unpack(self, body: Any, kind: Any, what: str) -> Any:
        """A body as a `kind`; raises `Internal` that names `what` where it does not fit."""

    def unpack_named(self, body: Any, name: Any, what: str) -> Any:
        """A body as the type of that name, or else as plain values that have their fields as attributes too."""

    def pack_error(self, error: MicrokernelError) -> Any:
        """`error` as it crosses."""

    def unpack_error(self, error: Any) -> MicrokernelError:
        """The error, to be raised at this end."""


class ByReference:
    """Between threads: a body is the value itself, as between services of one loop."""

    def pack(self, value: Any, what: str) -> Any:  # noqa: ARG002 - see Packing
        return value

    def name(self, value: Any, declared: Any) -> Any:  # noqa: ARG002
        return None

    def unpack(self, body: Any, kind: Any, what: str) -> Any:  # noqa: ARG002
        return body

    def unpack_named(self, body: Any, name: Any, what: str) -> Any:  # noqa: ARG002
        return body

    def pack_error(self, error: MicrokernelError) -> Any:
        return error

    def unpack_error(self, error: Any) -> MicrokernelError:
        return from_exception(error)


class MessagePack:
    """Between processes: a body is packed once and read once, at the end that knows its type."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_custom)
        self._decoders: dict[Any, Callable[[msgspec.Raw], Any]] = {}
        self._plain: Callable[[msgspec.Raw], Any] = msgspec.msgpack.Decoder(ext_hook=_decode_extension).decode

    def pack(self, value: Any, what: str) -> Any:
        try:
            if isinstance(value, msgspec.Raw):  # JSON text, as `Port.call` takes it
                value = msgspec.json.decode(value or b"{}")
            body = self._encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise Invalid(f"{what} cannot be sent to another process: {error}") from error
        if len(body) > LONGEST:
            raise TooBig(
                f"{what} takes {len(body) / 2**20:.1f} MiB; {LONGEST // 2**20} MiB go to another process at once",
                remedy="send it as a stream of smaller items",
            )
        return msgspec.Raw(body)

    def name(self, value: Any, declared: Any) -> Any:
        return name_of_value(value, declared)

    def unpack(self, body: Any, kind: Any, what: str) -> Any:
        try:
            return self._decoder(kind)(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Internal(f"{what} is not of the type that it was declared to have: {error}") from error

    def unpack_named(self, body: Any, name: Any, what: str) -> Any:
        kind = kind_named(name)
        value = self.unpack(body, kind, what)
        return as_fields(value) if kind is Any else value

    def pack_error(self, error: MicrokernelError) -> Any:
        return error.report()

    def unpack_error(self, error: Any) -> MicrokernelError:
        return from_report(msgspec.convert(error, ErrorReport))

    def _decoder(self, kind: Any) -> Callable[[msgspec.Raw], Any]:
        """A decoder a type, made once: there are as many as handlers and the types of what they answer."""
        try:
            decode = self._decoders.get(kind)
        except TypeError:  # a type that has no hash, such as one with a list in its annotation
            return _decoder(kind)
        if decode is None:
            try:
                decode = _decoder(kind)
            except TypeError:  # such as a union of structs without tags: nothing in the bytes tells which
                decode = self._plain
            if len(self._decoders) >= MAX_DECODERS:
                self._decoders.clear()
            self._decoders[kind] = decode
        return decode


def _decoder(kind: Any) -> Callable[[msgspec.Raw], Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=decode_custom, ext_hook=_decode_extension).decode


def _encode_custom(value: Any) -> Any:
    if isinstance(value, Array):
        return msgspec.msgpack.Ext(ARRAY, msgspec.msgpack.encode((value.dtype, value.shape, value.view())))
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def _decode_extension(code: int, data: memoryview) -> Any:
    if code != ARRAY:
        raise ValueError(f"an extension of code {code} is not known")
    # A copy, which is aligned as libraries want it and does not keep the rest of the message in memory.
    dtype, shape, raw = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], bytes])
    return Array(raw, dtype, shape)
