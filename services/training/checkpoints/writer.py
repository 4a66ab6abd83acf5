"""The process that writes checkpoints: `python -m services.training.checkpoints.writer LINK SEGMENT PARENT`.

LINK and SEGMENT are descriptors that it inherits, PARENT is the process that started it. It imports no torch, and so
takes 16 MB of its own and a third of a second to start. When its trainer closes the link or dies, it writes what it was
told to before and ends.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from microkernel.errors import DataLoss, MicrokernelError, Unavailable, from_exception
from services.training.checkpoints.channel import Channel, Failed, Open, Opened, Write, Written
from services.training.checkpoints.priority import end_after, run_last
from services.training.checkpoints.shared import SLOTS, Content, Segment
from services.training.checkpoints.writing import FolderWriter

__all__ = ["main", "serve"]


def main() -> None:
    """The program."""
    link, segment, parent = (int(each) for each in sys.argv[1:4])
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # Ctrl-C is for the trainer
    end_after(parent)
    run_last()
    serve(socket.socket(fileno=link), Segment(segment))


def serve(link: socket.socket, segment: Segment) -> None:
    """Write what is asked for over `link` until it is closed at the other end; the first message is an `Open`.

    For a process of its own: locks on slots are between processes.
    """
    channel = Channel(link, Open | Write)
    folder: FolderWriter | None = None
    try:
        while True:
            message = channel.receive()
            if isinstance(message, Open) and folder is None:
                folder = _opened(channel, message)
                if folder is None:
                    return
            elif isinstance(message, Write) and folder is not None:
                _write(channel, segment, folder, message)
            else:
                raise DataLoss("a writer of checkpoints was told to write before it was opened, or opened twice")
    except Unavailable:
        return  # the trainer is done, or gone: all it had sent was read before the link's end
    finally:
        if folder is not None:
            folder.close()
        channel.close()


def _opened(channel: Channel, message: Open) -> FolderWriter | None:
    try:
        folder = FolderWriter(message)
    except (MicrokernelError, OSError) as error:
        _tell(channel, Failed(0, 0, from_exception(error, service="training").report()))
        return None
    _tell(channel, Opened(folder.notes))
    return folder


def _write(channel: Channel, segment: Segment, folder: FolderWriter, asked: Write) -> None:
    """Write a slot, unless it is being filled again or was: then another message follows, or the trainer is gone."""
    if asked.slot >= SLOTS or not segment.take(asked.slot):
        return
    try:
        content, facts = segment.told(asked.slot)
        if segment.turn(asked.slot) != asked.turn or content != Content.FACTS:
            return
        began = time.monotonic()
        with segment.bytes_of(asked.slot) as memory:
            manifest, digest = folder.write(memory, facts, lambda sealed: _hold(segment, asked, sealed))
        seconds, step, size = time.monotonic() - began, manifest.facts.step, manifest.bytes
        # It is told before the slot is given back: who takes it then has heard of it.
        _tell(channel, Written(asked.slot, asked.turn, step, manifest.number, digest, size, seconds, folder.notes))
    except (MicrokernelError, OSError) as error:
        _tell(channel, Failed(asked.slot, asked.turn, from_exception(error, service="training").report()))
    finally:
        segment.give(asked.slot)


def _hold(segment: Segment, asked: Write, sealed: bytes) -> None:
    """Say beside the slot what it is, for whoever restarts from memory; one that has no room there is on the disk."""
    if len(sealed) <= segment.room:
        segment.say(asked.slot, asked.turn, Content.MANIFEST, sealed)


def _tell(channel: Channel, message: Opened | Written | Failed) -> None:
    """A trainer that is gone hears nothing; what it sent before is still written."""
    try:
        channel.send(message)
    except Unavailable:
        return


if __name__ == "__main__":
    main()
