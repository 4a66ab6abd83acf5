"""Models from a hub: a small server on this machine that speaks as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from microkernel.errors import (
    CallCancelled,
    DataLoss,
    Denied,
    Invalid,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from services.models import disk
from services.models.pull import Sources, pull
from services.models.store import ModelStore
from services.models.transfer import Transfer

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """One repository `org/tiny`; files over 1 kB are large ones with a sha256.

    With `stop_after` the next answer with a large file breaks off after that many bytes; when `hold` is clear it holds
    still there first.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.corrupt = False
        self.surplus = b""  # what is sent beyond a file's listed end
        self.status = 200
        self.ranges = True
        self.stop_after: int | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.requests: list[tuple[str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append((self.path, self.headers.get("Range")))
                try:
                    hub.answer(self)
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def sources(self) -> Sources:
        return Sources(hub_endpoint=f"http://127.0.0.1:{self.server.server_port}")

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if self.status != 200:
            return self.send(request, self.status, b"{}")
        if path.startswith("/api/models/org/tiny"):
            return self.send(request, 200, json.dumps(self.listing()).encode())
        found = re.fullmatch(rf"/org/tiny/resolve/{COMMIT}/(.+)", path)
        if found is None or found[1] not in self.files:
            return self.send(request, 404, b"{}")
        content = self.files[found[1]]
        if self.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        content += self.surplus
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        return self.send(request, 206, content, start) if self.ranges else self.send(request, 200, content)

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            file: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
            if len(content) > 1000:
                sha256 = hashlib.sha256(content).hexdigest()
                file["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 128}
            siblings.append(file)
        return {"id": "org/tiny", "sha": COMMIT, "tags": ["license:apache-2.0"], "siblings": siblings}

    def send(self, request: BaseHTTPRequestHandler, status: int, content: bytes, start: int = 0) -> None:
        body = content[start:]
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if self.stop_after is not None and len(body) > 1000:
            request.wfile.write(body[: self.stop_after])
            request.wfile.flush()
            self.stop_after = None
            self.hold.wait(60)
            request.close_connection = True
            return
        request.wfile.write(body)

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = Hub()
    yield hub
    hub.close()


def test_the_one_gguf_file_of_a_repository_is_stored(store, hub, make_gguf) -> None:
    hub.files = {
        "README.md": b"# tiny",
        "Tiny-Q8_0.gguf": make_gguf("x.gguf").read_bytes(),
        "x.bin": b"pickle",
    }
    told: list[tuple[str, int, int | None]] = []
    model = pull(store, "hf:org/tiny", Transfer(lambda *progress: told.append(progress)), sources=hub.sources)
    assert (model.name, model.ref, model.license) == ("tiny-q8_0", "hf:org/tiny", "apache-2.0")
    assert Path(model.path).read_bytes() == hub.files["Tiny-Q8_0.gguf"]
    assert [path for path, _ in hub.requests if "/resolve/" in path] == [f"/org/tiny/resolve/{COMMIT}/Tiny-Q8_0.gguf"]
    assert ("fetching", model.bytes, model.bytes) in told
    assert list(store.partials.iterdir()) == []
    asked = len(hub.requests)
    assert pull(store, "hf:org/tiny", Transfer(), sources=hub.sources) == model
    assert len(hub.requests) == asked


def test_a_model_folder_comes_without_pickles(store, hub, folder_files) -> None:
    hub.files = {
        **folder_files(0),
        "added_tokens.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"x",
        "evil.py": b"x",
    }
    model = pull(store, "hf:org/tiny@main", Transfer(), sources=hub.sources)
    assert (model.name, model.format) == ("tiny", "safetensors")
    assert {path.name: path.read_bytes() for path in Path(model.path).iterdir()} == {
        **folder_files(0),
        "added_tokens.json": b"{}",
    }


def test_a_repository_of_an_encoder_comes_with_its_pooling(store, hub, folder_files) -> None:
    hub.files = {**folder_files(0), "1_Pooling/config.json": b'{"pooling_mode": "cls"}', "onnx/config.json": b"{}"}
    model = pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert (Path(model.path) / "1_Pooling" / "config.json").read_bytes() == b'{"pooling_mode": "cls"}'
    assert not (Path(model.path) / "onnx").exists()


def test_an_adapter_comes_without_pickles_and_with_the_license_of_its_repository(store, hub, adapter_files) -> None:
    hub.files = {**adapter_files, "adapter_model.bin": b"pickle", "training_args.bin": b"pickle"}
    model = pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert (model.name, model.kind, model.license) == ("tiny", "adapter", "apache-2.0")
    assert {path.name for path in Path(model.path).iterdir()} == adapter_files.keys()


def test_several_gguf_files_are_listed_and_one_can_be_named(store, hub, make_gguf) -> None:
    hub.files = {f"q/{name}": make_gguf(name, seed=len(name)).read_bytes() for name in ("a.gguf", "bb.gguf")}
    with pytest.raises(Invalid, match=r"has 2 \.gguf files: a\.gguf, bb\.gguf.*hf:org/tiny:FILE"):
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    model = pull(store, "hf:org/tiny:bb.gguf", Transfer(), sources=hub.sources)
    assert Path(model.path).read_bytes() == hub.files["q/bb.gguf"]


def test_a_pull_goes_on_where_the_one_before_was_cancelled(store, hub, make_gguf) -> None:
    content = make_gguf("x.gguf", kilobytes=12_000).read_bytes()
    hub.files = {"x.gguf": content}
    hub.stop_after = 9 << 20
    hub.hold.clear()
    children: list[psutil.Process] = []

    def cancel(stage: str, done: int, _total: int | None) -> None:
        if stage == "fetching" and done >= 8 << 20:
            children.extend(psutil.Process().children())
            transfer.cancel()

    transfer = Transfer(cancel)
    with pytest.raises(CallCancelled):
        pull(store, "hf:org/tiny", transfer, sources=hub.sources)
    assert children
    assert not any(child.is_running() for child in children)
    assert store.list() == ()
    (part,) = store.partials.glob("*/kept/*")
    there = part.stat().st_size
    assert 8 << 20 <= there < len(content)
    hub.hold.set()
    hub.requests.clear()
    model = pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert Path(model.path).read_bytes() == content
    assert [asked for path, asked in hub.requests if "/resolve/" in path] == [f"bytes={there}-"]
    assert list(store.partials.iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_again_in_the_same_pull(store, hub, make_gguf, ranges: bool) -> None:
    content = make_gguf("x.gguf", kilobytes=3000).read_bytes()
    hub.files, hub.ranges, hub.stop_after = {"x.gguf": content}, ranges, 2 << 20
    model = pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert Path(model.path).read_bytes() == content
    assert len([path for path, _ in hub.requests if "/resolve/" in path]) == 2


def test_a_file_that_differs_from_the_hubs_digest_is_refused_and_not_kept(store, hub, folder_files) -> None:
    hub.files, hub.corrupt = folder_files(0), True
    with pytest.raises(DataLoss, match=r"\S+ is damaged: (\d+) of \1 bytes.*pull again"):
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert store.list() == ()
    assert list(store.blobs.iterdir()) == []
    hub.corrupt = False
    for _ in range(len(hub.files)):  # every damaged file is noticed by itself, and fetched anew
        try:
            model = pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
            break
        except DataLoss:
            continue
    assert store.verify(model.name) == model


def test_a_server_that_sends_more_than_it_listed_is_stopped_at_the_size(store, hub, make_gguf) -> None:
    hub.files, hub.surplus = {"x.gguf": make_gguf("x.gguf", kilobytes=3000).read_bytes()}, b"x" * (64 << 20)
    with pytest.raises(DataLoss, match=r"is longer than the \d+ bytes that are listed"):
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert sum(part.stat().st_size for part in store.partials.glob("*/kept/*")) == 0
    assert store.list() == ()


def test_a_big_file_without_a_sha256_is_refused_before_it_is_fetched(store, hub, folder_files, monkeypatch) -> None:
    hub.files = folder_files(0)
    monkeypatch.setattr("services.models.sources.hub.MAX_SMALL", 1)
    with pytest.raises(Invalid, match=r"bytes and no sha256, allowed are 1"):
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert not [path for path, _ in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (401, Denied), (403, Denied)])
def test_what_the_hub_refuses_is_said_in_one_line(store, hub, status: int, kind: type[Exception]) -> None:
    hub.status = status
    with pytest.raises(kind, match=r"hf:org/tiny") as caught:
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    assert "\n" not in str(caught.value)
    assert list(store.partials.iterdir()) == []


def test_a_hub_that_cannot_be_reached_is_said_so(store, monkeypatch) -> None:
    nowhere = Sources(hub_endpoint="http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="the hub cannot be reached for hf:org/tiny"):
        pull(store, "hf:org/tiny", Transfer(), sources=nowhere)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="the hub cannot be reached for hf:org/tiny"):
        pull(store, "hf:org/tiny", Transfer(), sources=nowhere)


def test_a_repository_without_a_model_or_without_room_is_refused(store, hub, make_gguf) -> None:
    hub.files = {"README.md": b"x", "pytorch_model.bin": b"pickle"}
    with pytest.raises(Invalid, match="hf:org/tiny has no model"):
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    hub.files = {"x.gguf": make_gguf("x.gguf").read_bytes()}
    with pytest.raises(PreconditionFailed, match="disk full"):
        pull(store, "hf:org/tiny", Transfer(reserve_bytes=1 << 60), sources=hub.sources)
    assert not [path for path, _ in hub.requests if "/resolve/" in path]


def test_a_disk_that_fills_up_keeps_what_was_fetched_and_says_where(small_disk, hub, make_gguf, monkeypatch) -> None:
    store = ModelStore(small_disk / "models")
    store.open()
    hub.files = {"x.gguf": make_gguf("x.gguf", kilobytes=3000).read_bytes()}
    monkeypatch.setattr(disk, "require_room", lambda *_args, **_fields: None)  # as if another process took the space
    with pytest.raises(PreconditionFailed, match=r"disk full: needs 3\.1 MB more in .*that were fetched are kept in"):
        pull(store, "hf:org/tiny", Transfer(), sources=hub.sources)
    (part,) = store.partials.glob("*/kept/*")
    assert part.stat().st_size > 100_000


def test_a_repository_of_many_files_is_read_whole(store, hub, make_gguf) -> None:
    content = make_gguf("x.gguf").read_bytes()
    hub.files = {**{f"images/{number:06}.png": b"" for number in range(3000)}, "x.gguf": content}
    assert Path(pull(store, "hf:org/tiny", Transfer(), sources=hub.sources).path).read_bytes() == content
