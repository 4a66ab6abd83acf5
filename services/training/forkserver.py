"""A process that forks others of itself on request: a worker begins in milliseconds, with all that it imports there.

To import torch takes a second; to fork a process that has, some 20 ms. Such a process has one thread and has computed
nothing on several: a child would wait for ever for threads that were not copied. Nor has it touched an accelerator.

Over its socket comes a byte with file descriptors for each child that is wanted. It answers with the child's number,
and tells how each has ended. It ends with its parent, and so do its children with it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence

from microkernel.isolation.child import die_with

__all__ = ["DESCRIPTORS", "ENDED", "FORKED", "NOTICE", "serve", "wanted"]

NOTICE = struct.Struct("!cii")
"""What it tells: `FORKED` or `ENDED`, a process, and in the latter case the status, below 0 a signal."""
FORKED, ENDED = b"f", b"e"
DESCRIPTORS = 4  # at most for a child


def wanted(link: socket.socket, descriptors: Sequence[int]) -> None:
    """Ask for a child that has copies of these descriptors."""
    socket.send_fds(link, [b"w"], list(descriptors))


def serve(link: socket.socket, become: Callable[[list[int]], None]) -> None:
    """Fork a child for each request; it calls `become` with its descriptors and ends. Returns when `link` closes."""
    wake, waker = socket.socketpair()
    wake.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    mine = os.getpid()
    try:
        while True:
            ready, _, _ = select.select([link, wake], [], [])
            if wake in ready:
                wake.recv(4096)
                _tell_of_ended(link)
            if link not in ready:
                continue
            descriptors = _received(link)
            if descriptors is None:
                return
            child = os.fork()
            if child == 0:
                _live(mine, [link, wake, waker], become, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            link.sendall(NOTICE.pack(FORKED, child, 0))
    except (BrokenPipeError, ConnectionResetError):
        return  # whoever asked has gone


def _received(link: socket.socket) -> list[int] | None:
    """The descriptors of a request; None where nobody will ask any more."""
    word, ancillary, _, _ = link.recvmsg(1, socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize))
    if not word:
        return None
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return list(descriptors)


def _tell_of_ended(link: socket.socket) -> None:
    """Every child that has ended, and how."""
    with contextlib.suppress(ChildProcessError):
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                return
            link.sendall(NOTICE.pack(ENDED, child, os.waitstatus_to_exitcode(status)))


def _live(
    parent: int, inherited: Sequence[socket.socket], become: Callable[[list[int]], None], descriptors: list[int]
) -> None:
    """A child's life, to its end."""
    status = 1
    try:
        die_with(parent)
        os.setpgid(0, 0)  # what is sent to the terminal's group, the node has to hear alone
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in inherited:
            each.close()
        become(descriptors)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a child never returns into its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
