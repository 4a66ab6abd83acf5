"""A server that is a process of its own, on a free port: waited for, stopped still, killed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["ServerProcess", "llama_cpp_server", "node_process"]

LONGEST_START = 120.0  # seconds


class ServerProcess:
    """Runs `command`, whose port stands where it says PORT, from the block's begin to its end."""

    def __init__(self, command: list[str], log: Path, *, ready: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.address}/v1"
        self._command = [part.replace("PORT", str(self.port)) for part in command]
        self._log = log
        self._ready = ready

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def start(self) -> None:
        """Begin, again after a kill; returns when it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, cwd=self._log.parent)
        until = time.monotonic() + LONGEST_START
        while not self._answers():
            assert self.process.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < until, self._log.read_text(errors="replace")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Have it stand still, with its connections open."""
        self.process.send_signal(signal.SIGSTOP)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}{self._ready}", timeout=5.0):
                return True
        except urllib.error.HTTPError as error:
            return error.code in {401, 403}
        except OSError:
            return False


def node_process(model: Path, root: Path) -> ServerProcess:
    """A node with `model`; its token is in `root`."""
    boot = [sys.executable, "-m", "microkernel", "boot", "--root", str(root), "--model", str(model), "--port", "PORT"]
    root.mkdir(parents=True, exist_ok=True)
    return ServerProcess(boot, root / "process.log", ready="/readyz")


def llama_cpp_server(model: Path, log: Path, *options: str) -> ServerProcess:
    """llama-cpp-python's server with `model`, as `smol`."""
    serve = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "smol", "--n_ctx", "512"]
    serve += ["--n_threads", "1", "--host", "127.0.0.1", "--port", "PORT", *options]
    return ServerProcess(serve, log, ready="/v1/models")
