"""Zstandard for binary frames, where the package `zstandard` is installed; bounded by what the frame says of itself."""

from __future__ import annotations

from microkernel.errors import Unimplemented
from microkernel.wire.codec import CloseCode, ProtocolError

try:
    import zstandard
except ImportError:  # it is an extra: without it, compressed frames are refused
    zstandard = None  # type: ignore[assignment]

__all__ = ["compress", "decompress"]

LEVEL = 1  # on a fast link anything more takes longer than it saves


def compress(plain: bytes) -> bytes:
    """`plain` as one zstd frame; raises `Unimplemented` where there is no `zstandard`."""
    if zstandard is None:
        raise Unimplemented("frames cannot be compressed here", remedy="pip install zstandard")
    return zstandard.ZstdCompressor(level=LEVEL).compress(plain)


def decompress(frame: bytes | bytearray, start: int, size: int) -> bytearray:
    """`frame` with what follows `start` decompressed, `size` bytes in all.

    Raises `ProtocolError` when that is not exactly what comes out; no more than `size` bytes are ever made.
    """
    if zstandard is None:
        raise ProtocolError("compressed frames are not taken here: send without ZSTD", CloseCode.BINARY)
    packed = memoryview(frame)[start:]
    try:
        # One-shot decompression allocates what the zstd frame claims: the claim is judged before.
        claimed = zstandard.frame_content_size(packed)
        if claimed not in {-1, size - start}:
            raise ProtocolError(f"a compressed message holds {claimed} bytes, and {size - start} by its lengths")
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size - start, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"a compressed message cannot be read: {error}") from error
    if len(plain) != size - start:
        raise ProtocolError(f"a compressed message holds {len(plain)} bytes, and {size - start} by its lengths")
    return bytearray().join((frame[:start], plain))
