"""What a trainer keeps its state with: a copy into shared memory, and never a wait for the disk.

While one slot is being written, the next state goes into the other. If that one still waits when yet another state
comes, it is replaced: the newest state is worth most. Only where the writer just holds both is a state left out. Either
is told. A writer that dies is replaced, and gets what it had not written once more.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from microkernel.errors import DeadlineExceeded, Invalid, MicrokernelError, Unavailable
from services.training.checkpoints.channel import Channel, Failed, FromWriter, Open, Opened, Write, Written
from services.training.checkpoints.copying import Copier, threads_that_pay
from services.training.checkpoints.image import FILE_BYTES, plan
from services.training.checkpoints.manifest import PIECE
from services.training.checkpoints.shared import SLOTS, Content, Segment
from services.training.checkpoints.state import TrainingState

__all__ = ["CheckpointSaver", "LeftOut", "Restarted", "Taken"]

ROOM = 256 << 10  # bytes kept for what is said of a slot, beside twice the facts of the first state and the digests
DIGEST_ROOM = 80  # bytes for the digest of a piece
RESTARTS = 3  # writers that may die one after the other without a checkpoint written
BOOTSTRAP = "import sys; sys.path[:] = sys.argv[4:]; from services.training.checkpoints.writer import main; main()"


class Taken(msgspec.Struct, frozen=True):
    """A state was copied, and training waited `seconds` for it; `replaced` is the step of one that still waited."""

    step: int
    turn: int
    seconds: float
    replaced: int | None = None


class LeftOut(msgspec.Struct, frozen=True):
    """A state was not copied, and why."""

    step: int
    why: str


class Restarted(msgspec.Struct, frozen=True):
    """The writer ended with this status (negative: a signal), and another one has taken its place."""

    status: int | None


class CheckpointSaver:
    """The memory and the writer of one job's checkpoints in `folder`. For one thread; close it.

    `state` is one like those to come: its tensors' names and sizes are those of all, its facts may grow to twice their
    bytes. The writer signs with the key in the file `key`, and counts checkpoints as complete that it or one of the
    public keys `trusted` has signed: `keep` of them stay, and the best. `parent` is the number and digest of the
    checkpoint that the job goes on from. Raises `Invalid`, and `PreconditionFailed` where memory lacks.
    """

    def __init__(
        self,
        state: TrainingState,
        *,
        folder: Path,
        job: str,
        key: Path,
        keep: int = 2,
        parent: tuple[int, str] | None = None,
        trusted: Sequence[bytes] = (),
        file_bytes: int = FILE_BYTES,
        threads: int = 0,
    ) -> None:
        state.check()
        if keep < 1:
            raise Invalid("at least one checkpoint has to be kept", field="keep")
        self._sizes = state.sizes
        self._order = Open(
            str(folder.absolute()), job, str(key.absolute()), keep, self._sizes, file_bytes, parent, tuple(trusted)
        )
        layout = plan(self._sizes, file_bytes)
        facts = len(msgspec.json.encode(state.facts))
        digests = DIGEST_ROOM * (layout.size // PIECE + len(layout.images) + 1)
        self.segment = Segment.create(ROOM + 2 * facts + digests, layout.size)
        with self.segment.bytes_of(0) as memory:
            self._copier = Copier(layout, threads or threads_that_pay(layout, state, memory))
        self._waiting: dict[int, tuple[int, int]] = {}  # by slot: turn and step of what is not written yet
        self._events: list[FromWriter | Restarted] = []
        self._turn = 0
        self._newest = SLOTS - 1  # the slot of what was written last: the other one is taken first
        self._deaths = 0
        self._process, self._channel = self._start()

    @property
    def pid(self) -> int:
        """The process that writes."""
        return self._process.pid

    @property
    def waiting(self) -> tuple[int, ...]:
        """The steps of states that are not written yet, in their order."""
        return tuple(step for _, step in sorted(self._waiting.values()))

    def save(self, state: TrainingState) -> Taken | LeftOut:
        """Copy `state`; what becomes of it is told by `poll`. Raises `Invalid` for one that is unlike the first."""
        began = time.perf_counter()
        state.check()
        step = state.facts.step
        if state.sizes != self._sizes:
            raise Invalid(f"the tensors of step {step} are not those that memory was prepared for", field="tensors")
        told = msgspec.json.encode(state.facts)
        if len(told) > self.segment.room:
            raise Invalid(f"{len(told)} bytes of facts are too many for the {self.segment.room} that are kept for them")
        self._absorb()
        if self._deaths > RESTARTS:
            return LeftOut(step, f"writers of checkpoints have died {self._deaths} times in a row")
        if self._channel.waiting:
            return LeftOut(step, "the writer of checkpoints does not listen")
        slot = self._take()
        if slot is None:
            return LeftOut(step, "both slots are being written")
        try:
            self._absorb()  # the slot may have been written just before it was taken
            replaced = self._waiting.pop(slot, None)
            self._turn += 1
            self.segment.say(slot, self._turn, Content.NOTHING)
            with self.segment.bytes_of(slot) as memory:
                self._copier.copy(state, memory)
            self.segment.say(slot, self._turn, Content.FACTS, told)
        finally:
            self.segment.give(slot)
        self._waiting[slot] = (self._turn, step)
        self._send(slot)
        return Taken(step, self._turn, time.perf_counter() - began, None if replaced is None else replaced[1])

    def poll(self) -> list[FromWriter | Restarted]:
        """What has happened since the last time; it never waits."""
        self._absorb()
        events, self._events = self._events, []
        return events

    def wait(self, timeout: float) -> list[FromWriter | Restarted]:
        """`poll`, once nothing waits any more. Raises `DeadlineExceeded` after `timeout` seconds; events stay then."""
        end = time.monotonic() + timeout
        while True:
            self._absorb()
            if not self._waiting:
                return self.poll()
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the checkpoints of the steps {self.waiting} were not written in {timeout} s")
            select.select([self._channel], [self._channel] if self._channel.waiting else [], [], left)

    def close(self, timeout: float = 60.0) -> list[FromWriter | Restarted]:
        """Let the writer finish, for so many seconds, and end it; the last events."""
        try:
            return self.wait(timeout)
        except DeadlineExceeded:
            self._process.kill()
            return self.poll()
        finally:
            self._channel.close()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._copier.close()
            self.segment.close()

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        ours, theirs = socket.socketpair()
        with theirs:
            handles = (theirs.fileno(), self.segment.handle)
            arguments = [str(each) for each in (*handles, os.getpid())]
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-c", BOOTSTRAP, *arguments, *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=handles,
                process_group=0,
            )
        ours.setblocking(False)
        channel = Channel(ours, FromWriter)
        channel.send(self._order)
        return process, channel

    def _take(self) -> int | None:
        """A slot that is ours now: a free one, the one written last at the end, or one that waits."""
        order = sorted(range(SLOTS), key=lambda slot: (slot in self._waiting, slot == self._newest))
        for slot in (*order, *order):  # the writer may go from one to the other between two tries
            if self.segment.take(slot):
                return slot
        return None

    def _send(self, slot: int) -> None:
        try:
            self._channel.send(Write(slot, self._waiting[slot][0]))
        except Unavailable:
            self._replace()

    def _absorb(self) -> None:
        try:
            self._channel.flush()
            while (message := self._channel.receive()) is not None:
                self._note(message)
        except Unavailable:
            self._replace()

    def _note(self, message: object) -> None:
        assert isinstance(message, Opened | Written | Failed)
        self._events.append(message)
        if isinstance(message, Opened):
            return
        if isinstance(message, Failed) and message.turn == 0:
            self._deaths = RESTARTS  # it ends now, and another one would fare no better
            return
        if self._waiting.get(message.slot, (0, 0))[0] == message.turn:
            del self._waiting[message.slot]
        if isinstance(message, Written):
            self._deaths = 0
            self._newest = message.slot
            self._order = msgspec.structs.replace(self._order, parent=(message.number, message.digest))

    def _replace(self) -> None:
        """Start another writer for one that is gone, and tell it what is to be written."""
        if self._deaths > RESTARTS:
            return
        self._deaths += 1
        self._channel.close()
        self._process.kill()
        status = self._process.wait()
        if self._deaths > RESTARTS:
            self._give_up()
            return
        self._process, self._channel = self._start()
        self._events.append(Restarted(status))
        for slot in sorted(self._waiting, key=lambda slot: self._waiting[slot]):
            self._send(slot)

    def _give_up(self) -> None:
        """No writer lives: what waits is told to have failed."""
        error: MicrokernelError = Unavailable(
            "the writer of checkpoints has died too often, and was not started again", remedy="see what it has logged"
        )
        for slot, (turn, _) in self._waiting.items():
            self._events.append(Failed(slot, turn, error.report()))
        self._waiting.clear()
