"""The state folder: where a node keeps its token, its address and the folders of its services.

One node at a time has it: a lock that the operating system drops with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import orjson

from microkernel.errors import PreconditionFailed

__all__ = ["CUT_OFF", "LOCK", "Root", "default_root"]

LOCK = "lock"
CUT_OFF = "restore-cut-off"  # a file that is there while the folder is not whole

TAKEN = frozenset({errno.EWOULDBLOCK, errno.EACCES})
GLANCE = 0.01  # seconds; who only looks at a lock has let go of it by then


def default_root() -> Path:
    """`MICROKERNEL_ROOT`, or `~/.microkernel`."""
    return Path(os.environ.get("MICROKERNEL_ROOT") or Path.home() / ".microkernel").expanduser()


class Root:
    """A state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.token_path = self.path / "token"
        self.node_path = self.path / "node.json"
        self._lock: int | None = None

    def acquire(self, *, restoring: bool = False) -> None:
        """Make the folder and take it. Raises `PreconditionFailed` if that cannot be or another node has it.

        Raises it too where the folder is not whole, as a restore was cut off, unless `restoring`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise PreconditionFailed(
                f"cannot use the state folder {self.path}: it is a file", remedy="choose another one with --root"
            ) from error
        except OSError as error:
            raise PreconditionFailed(
                f"cannot use the state folder {self.path}: {error.strerror}",
                remedy="choose another one with --root",
            ) from error
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            if error.errno not in TAKEN:
                raise PreconditionFailed(f"cannot lock {self.path}: {error.strerror}") from error
            node = self.read_node()
            where = f" at {node['url']} (pid {node['pid']})" if node else ""
            raise PreconditionFailed(
                f"a node already runs on the state folder {self.path}{where}",
                remedy="talk to it, stop it, or choose another folder with --root",
            ) from error
        if not restoring and (self.path / CUT_OFF).exists():
            os.close(handle)
            raise PreconditionFailed(
                f"{self.path} is not whole: a restore was cut off",
                remedy=f"mk restore FILE --root {self.path} --force",
            )
        self.node_path.unlink(missing_ok=True)  # of a node that was killed: nobody is to go there any more
        self._lock = handle

    def is_taken(self) -> bool:
        """Whether a node, of this process or another one, has the folder; nothing is made or taken for it."""
        try:
            handle = os.open(self.path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False  # no node has ever had it, or it is somebody else's
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
        except OSError as error:
            return error.errno in TAKEN
        finally:
            os.close(handle)
        return False

    def write_node(self, url: str, certificate: str | None = None) -> None:
        """Tell commands of the same user where this node listens, and the file of the certificate that it shows."""
        body = orjson.dumps({"url": url, "pid": os.getpid(), "certificate": certificate})
        fresh = self.node_path.with_suffix(".tmp")
        fresh.write_bytes(body)
        fresh.replace(self.node_path)

    def read_node(self) -> dict[str, Any] | None:
        """What `write_node` has written; None if nothing readable is there."""
        try:
            node = orjson.loads(self.node_path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        return node if isinstance(node, dict) and {"url", "pid"} <= node.keys() else None

    def running_node(self) -> dict[str, Any] | None:
        """What the node that runs on this folder has written; None if none does or does not listen yet.

        A node that was killed leaves its note behind, and anybody may listen on its port by then: only the lock
        tells that it is there.
        """
        return self.read_node() if self.is_taken() else None

    def release(self) -> None:
        """Give the folder back."""
        if self._lock is None:
            return
        handle, self._lock = self._lock, None
        try:
            self.node_path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _lock(handle: int) -> None:
    """Raises `OSError` where another node has the lock; one that is only looked at is free a moment later."""
    for _ in range(3):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            time.sleep(GLANCE)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
