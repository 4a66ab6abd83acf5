"""What the agent tells a worker, as it comes: a thread reads it, the loop of steps looks when it can heed it."""

from __future__ import annotations

import os
import queue
import socket
import threading
from enum import IntEnum

from microkernel.errors import DataLoss
from services.training.orders import Form, Order, Report, Rest, Save, Start, Stop, decode_order, frame, frames

__all__ = ["Inbox", "Wish"]

ORPHANED = 3  # status of a process whose agent has gone


class Wish(IntEnum):
    """What is to be done at the end of a step; of several workers' wishes the greatest is all workers'."""

    NOTHING = 0
    SAVE = 1
    REST = 2
    STOP = 3


class Inbox:
    """A worker's end of the line to its agent. Once that has gone, so has the process."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._forms: queue.SimpleQueue[Form | Stop | Start] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of wishes and calls, which two threads change
        self._calls = 0  # groups that wait to be formed
        self._wish = Wish.NOTHING
        self._thread = threading.Thread(target=self._read, name="orders", daemon=True)
        self._thread.start()

    def tell(self, report: Report) -> None:
        """Tell the agent."""
        try:
            self._link.sendall(frame(report))
        except OSError:
            os._exit(ORPHANED)

    @property
    def wish(self) -> Wish:
        """What the agent wants at the end of a step."""
        return self._wish

    def heeded(self, wish: Wish) -> None:
        """The wish, or a greater one of others, was done."""
        with self._lock:
            if self._wish <= wish:
                self._wish = Wish.NOTHING

    @property
    def is_called(self) -> bool:
        """Whether there is to be another group: this one has no future."""
        return self._calls > 0

    def wait(self) -> Form | Stop | Start:
        """The next order that begins something, or ends everything; of several groups the last one."""
        while True:
            order = self._forms.get()
            if not isinstance(order, Form):
                return order
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    return order  # nobody is at the places to meet that were called before

    def _read(self) -> None:
        buffer = bytearray()
        try:
            while chunk := self._link.recv(1 << 16):
                buffer += chunk
                for body in frames(buffer):
                    self._take(decode_order(body))
        except (OSError, DataLoss) as error:
            os.write(2, f"the line to the agent is broken: {error}\n".encode())
        os._exit(ORPHANED)

    def _take(self, order: Order) -> None:
        match order:
            case Form():
                with self._lock:
                    self._calls += 1
                self._forms.put(order)
            case Start():
                self._forms.put(order)
            case Save():
                self._want(Wish.SAVE)
            case Rest():
                self._want(Wish.REST)
            case Stop():
                self._want(Wish.STOP)
                self._forms.put(order)  # for one that waits for a group

    def _want(self, wish: Wish) -> None:
        with self._lock:
            self._wish = max(self._wish, wish)
