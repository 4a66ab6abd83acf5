"""What may be said of the filesystem."""

from __future__ import annotations

from microkernel.errors import Invalid
from services.filesystem.paths import parse
from services.filesystem.remote.settings import Mount
from services.filesystem.stored.settings import VolumeSettings

__all__ = ["FilesystemSettings"]


class FilesystemSettings(VolumeSettings, kw_only=True):
    """The section `[services.filesystem]`.

    `quotas` say what an owner may keep on disk, in bytes, old versions included; `default_quota` what all others may.
    Versions are kept for `keep_seconds` after they have ended, those of snapshots for longer. `mirror` is a folder on
    another disk, to which a scrub copies all contents, and from which it repairs what is damaged. `tmp_bytes` is what
    `/tmp` may hold, which is in memory. `mounts` puts [other storage](../how-to/files.md) into the tree, by paths.
    """

    tmp_bytes: int = 256 << 20
    mounts: dict[str, Mount] = {}

    def __post_init__(self) -> None:
        try:
            paths = [parse(text) for text in self.mounts]
        except Invalid as error:
            raise ValueError(str(error)) from None
        if len(set(paths)) < len(paths):
            raise ValueError("a path is mounted twice")
