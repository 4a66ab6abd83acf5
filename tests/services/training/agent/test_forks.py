"""Processes that a fork server makes: asked for by real sockets, forked from a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from microkernel.errors import Unavailable
from services.training.agent.forks import Forks

# Children say who they are and do what they are told, a byte at a time.
SERVER = """
import os, signal, socket, sys, time
from microkernel.isolation.child import die_with
from services.training.forkserver import serve

def become(descriptors):
    control = socket.socket(fileno=descriptors[0])
    control.sendall(f"{os.getpid()} {os.getppid()} {os.getpgid(0)}\\n".encode())
    word = control.recv(1)
    if word == b"x":
        sys.exit(7)
    if word == b"e":
        raise ValueError("what it was told to raise")
    if word == b"k":
        os.kill(os.getpid(), signal.SIGKILL)

die_with(os.getppid())
serve(socket.socket(fileno=0), become)
"""


class Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=theirs, stderr=subprocess.PIPE)
        self.forks = Forks(ours)

    async def child(self):
        """A child, its end of the line, and what it has said of itself."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                forked = await self.forks.fork([theirs.fileno()])
        except Unavailable:
            ours.close()
            raise
        ours.setblocking(False)
        words = (await asyncio.get_running_loop().sock_recv(ours, 100)).split()
        return forked, ours, [int(word) for word in words]


@pytest.fixture
async def server():
    made = Server()
    yield made
    await made.forks.close()
    made.process.communicate()


async def test_a_child_is_a_process_of_its_own_with_what_it_was_given(server):
    forked, control, (pid, parent, group) = await server.child()
    control.close()
    assert (forked.pid, server.process.pid, forked.pid) == (pid, parent, group)


@pytest.mark.parametrize(("word", "status"), [(b"o", 0), (b"x", 7), (b"e", 1), (b"k", -signal.SIGKILL)])
async def test_how_a_child_has_ended_is_told(server, word, status):
    forked, control, _ = await server.child()
    with control:
        control.sendall(word)
        assert await asyncio.wait_for(forked.ended, 30) == status


async def test_many_children_are_told_apart(server):
    children = await asyncio.gather(*(server.child() for _ in range(10)))
    for number, (_, control, _) in enumerate(children):
        control.sendall(b"x" if number % 2 else b"o")
        control.close()
    ended = await asyncio.gather(*(forked.ended for forked, _, _ in children))
    assert ended == [0, 7] * 5


async def test_a_stopped_child_is_killed_with_the_server(server):
    forked, control, _ = await server.child()
    with control:
        forked.send(signal.SIGSTOP)
        child = psutil.Process(forked.pid)
        server.process.kill()
        assert await asyncio.wait_for(forked.ended, 30) == -signal.SIGKILL
        async with asyncio.timeout(30):
            while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.01)


async def test_a_child_that_nobody_waits_for_is_not_left(server):
    ours, theirs = socket.socketpair()
    with theirs:
        asking = asyncio.create_task(server.forks.fork([theirs.fileno()]))
        await asyncio.sleep(0)
        asking.cancel()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    with ours:
        while await asyncio.wait_for(loop.sock_recv(ours, 100), 30):
            pass  # it has said who it is, at most, and its end of the line closes


async def test_a_server_that_has_gone_forks_nothing(server):
    server.process.kill()
    server.process.wait()

    async def ask_on():
        while True:
            _, control, _ = await server.child()
            control.close()

    with pytest.raises(Unavailable, match="has gone"):
        await asyncio.wait_for(ask_on(), 30)


async def test_all_ends_when_the_line_is_closed(server):
    forked, control, _ = await server.child()
    with control:
        await server.forks.close()
        assert forked.ended.result() == -signal.SIGKILL
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        assert os.getpgid(0) != forked.pid
