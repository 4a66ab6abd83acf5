"""Models from paths."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from microkernel.errors import Aborted, DataLoss, Invalid, NotFound
from services.models import disk
from services.models.outside import OutsideModels
from services.models.pull import pull
from services.models.transfer import Transfer


def assert_nothing_left(store) -> None:
    assert store.list() == ()
    assert list(store.blobs.iterdir()) == list(store.partials.iterdir()) == []


def test_progress_goes_from_finding_over_every_byte_to_the_end(store, make_gguf) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = make_gguf(kilobytes=3000)
    pull(store, str(path), Transfer(lambda *progress: told.append(progress)))
    size = path.stat().st_size
    assert told[0] == ("finding", 0, None)
    assert told[-1] == ("fetching", size, size)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_truncated_file_is_named_and_nothing_is_left(store, make_gguf) -> None:
    path = make_gguf()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataLoss, match=r"Tiny-Model\.Q4_1\.gguf was cut off"):
        pull(store, str(path), Transfer())
    assert_nothing_left(store)


def test_a_file_that_changes_while_it_is_copied_is_not_taken(store, make_gguf) -> None:
    path = make_gguf(kilobytes=3000)

    def append(stage: str, done: int, _total: int | None) -> None:
        if stage == "fetching" and done == disk.CHUNK:
            with path.open("ab") as file:
                file.write(b"more")

    with pytest.raises(Aborted, match="was changed while it was copied"):
        pull(store, str(path), Transfer(append))
    assert_nothing_left(store)


def test_what_is_no_model_is_refused_with_a_hint(store, tmp_path: Path, make_gguf) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    make_gguf("a.gguf", folder=tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe.gguf")
    for ref, message in [
        (tmp_path / "absent.gguf", "No such file"),
        (tmp_path / "x.bin", "no .gguf file"),
        (tmp_path / "folder", r"give one of its files: a\.gguf"),
        (tmp_path / "pipe.gguf", "neither a file nor a folder"),
    ]:
        with pytest.raises((Invalid, NotFound), match=message):
            pull(store, str(ref), Transfer())
    assert_nothing_left(store)


def test_a_folder_with_a_missing_shard_or_a_cut_file_is_refused(store, make_folder) -> None:
    folder = make_folder()
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    with pytest.raises(DataLoss, match=r"missing: model-2\.safetensors"):
        pull(store, str(folder), Transfer())
    index.unlink()
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(DataLoss, match=r"model\.safetensors was cut off"):
        pull(store, str(folder), Transfer())
    weights.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(DataLoss, match="its header is said to have"):
        pull(store, str(folder), Transfer())
    (folder / "config.json").write_text("{")
    with pytest.raises(DataLoss, match=r"config\.json is damaged"):
        pull(store, str(folder), Transfer())
    assert_nothing_left(store)


def test_a_file_outside_the_store_is_found_where_it_lies_and_seen_when_it_changes(store, make_gguf) -> None:
    outside = OutsideModels(store)
    path = make_gguf(seed=1)
    pulled = pull(store, str(path), Transfer())
    found = outside.find(str(path))
    assert (found.path, found.digest, found.name) == (str(path), pulled.digest, pulled.name)
    make_gguf(seed=2)
    assert outside.find(str(path)).digest != pulled.digest
    assert outside.find(pulled.name) == pulled
    path.unlink()
    assert outside.find(str(path)) == pulled
    with pytest.raises(NotFound):
        outside.find("absent")


def test_a_folder_outside_the_store_has_the_digest_that_its_copy_gets(store, make_folder) -> None:
    folder = make_folder()
    assert OutsideModels(store).find(str(folder)).digest == pull(store, str(folder), Transfer()).digest


def test_a_folder_inside_of_a_model_is_stored_where_it_belongs_to_it(store, make_folder) -> None:
    folder = make_folder()
    for inner in ("1_Pooling", "onnx"):
        (folder / inner).mkdir()
        (folder / inner / "config.json").write_text(inner)
    stored = pull(store, str(folder), Transfer())
    assert (Path(stored.path) / "1_Pooling" / "config.json").read_text() == "1_Pooling"
    assert not (Path(stored.path) / "onnx").exists()
    assert OutsideModels(store).find(str(folder)).digest == stored.digest


def test_an_adapter_is_stored_as_one_and_is_the_same_where_it_lies(store, tmp_path: Path, adapter_files) -> None:
    folder = tmp_path / "My-Adapter"
    folder.mkdir()
    for name, content in (adapter_files | {"adapter_model.bin": b"pickle", "optimizer.pt": b"pickle"}).items():
        (folder / name).write_bytes(content)
    model = pull(store, str(folder), Transfer())
    assert (model.name, model.kind, model.format, model.license) == (
        *("my-adapter", "adapter", "safetensors"),
        "apache-2.0",
    )
    assert {path.name: path.read_bytes() for path in Path(model.path).iterdir()} == adapter_files
    found = OutsideModels(store).find(str(folder))
    assert (found.kind, found.digest, found.path) == ("adapter", model.digest, str(folder))


def test_a_gguf_file_that_says_so_is_an_adapter_and_any_other_a_model(store, make_gguf) -> None:
    kinds = {
        name: pull(store, str(make_gguf(f"{name or 'plain'}.gguf", kind=name)), Transfer()).kind
        for name in ("adapter", "model", "")
    }
    assert kinds == {"adapter": "adapter", "model": "model", "": "model"}


def test_a_model_beside_an_adapter_is_a_model_and_a_pickled_adapter_is_nothing(
    store, make_folder, tmp_path: Path, adapter_files
) -> None:
    folder = make_folder()
    for name, content in adapter_files.items():
        (folder / name).write_bytes(content)
    assert pull(store, str(folder), Transfer()).kind == "model"
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text("{}")
    (pickled / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(Invalid, match="pickled is no model folder"):
        pull(store, str(pickled), Transfer())


def test_an_adapter_that_was_cut_is_refused(store, tmp_path: Path, adapter_files) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    for name, content in adapter_files.items():
        (folder / name).write_bytes(content[:-4] if name.endswith("safetensors") else content)
    with pytest.raises(DataLoss, match=r"adapter_model\.safetensors was cut off"):
        pull(store, str(folder), Transfer())
    assert_nothing_left(store)
