"""The store: content-addressed, all or nothing, and honest about damage."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from microkernel.errors import AlreadyExists, CallCancelled, DataLoss, Invalid, NotFound
from services.models.pull import pull
from services.models.store import ModelStore
from services.models.transfer import Transfer


def everything(store: ModelStore) -> set[str]:
    """All files and links in the store but the lock."""
    return {
        str(path.relative_to(store.root))
        for path in store.root.rglob("*")
        if (path.is_file() or path.is_symlink()) and path.name != "lock"
    }


def test_a_stored_file_is_found_by_name_and_by_ref_under_its_own_name(store, make_gguf) -> None:
    path = make_gguf()
    model = pull(store, str(path), Transfer())
    assert model.name == "tiny-model-q4_1"
    assert store.find(model.name) == store.find(str(path)) == model
    assert Path(model.path).name == path.name
    assert Path(model.path).read_bytes() == path.read_bytes()
    assert (model.format, model.architecture, model.license) == ("gguf", "llama", "apache-2.0")


def test_a_blob_is_named_by_its_content_and_nobody_may_write_it(store, make_gguf) -> None:
    model = pull(store, str(make_gguf()), Transfer())
    (blob,) = store.blobs.iterdir()
    assert blob.name == f"sha256-{model.digest}"
    assert blob.stat().st_mode & 0o222 == 0


def test_the_copy_stays_as_it_is_when_the_original_is_edited(store, make_gguf) -> None:
    path = make_gguf()
    model = pull(store, str(path), Transfer())
    with path.open("r+b") as file:
        file.write(b"edited")
    assert store.verify(model.name) == model


def test_a_folder_is_stored_without_pickles_and_code(store, make_folder) -> None:
    model = pull(store, str(make_folder()), Transfer())
    assert (model.name, model.format, model.architecture) == ("tiny-folder", "safetensors", "llama")
    assert model.license == "apache-2.0"
    assert sorted(path.name for path in Path(model.path).iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert store.verify(model.name) == model


def test_the_same_content_under_two_names_is_kept_once_until_both_are_gone(store, make_gguf) -> None:
    path = str(make_gguf())
    pull(store, path, Transfer(), name="one")
    pull(store, "one", Transfer(), name="two")
    assert len(list(store.blobs.iterdir())) == 1
    assert store.remove("one") == 0
    assert store.verify("two").name == "two"
    assert store.remove("two") > 0
    assert everything(store) == set()


def test_another_model_does_not_take_a_name_that_is_taken(store, make_gguf, tmp_path: Path) -> None:
    first = pull(store, str(make_gguf(seed=1)), Transfer())
    other = make_gguf(seed=2, folder=tmp_path / "other")
    with pytest.raises(AlreadyExists, match=r"'tiny-model-q4_1' is taken by the model from .*another name"):
        pull(store, str(other), Transfer())
    assert store.verify(first.name) == first
    assert len(list(store.blobs.iterdir())) == 1
    assert pull(store, str(other), Transfer(), name="second").name == "second"


def test_a_pull_of_an_edited_file_replaces_its_own_model_as_a_whole(store, make_gguf) -> None:
    before = pull(store, str(make_gguf(seed=1)), Transfer())
    with Path(before.path).open("rb") as held:
        after = pull(store, str(make_gguf(seed=2)), Transfer())
        assert after.digest != before.digest
        assert held.read(4) == b"GGUF"  # who has the old file open keeps it
    assert not Path(before.path).exists()
    assert store.list() == (after,)
    assert len(list(store.blobs.iterdir())) == 1


def test_verify_names_the_damaged_file_and_a_new_pull_mends_it(store, make_folder) -> None:
    folder = make_folder()
    model = pull(store, str(folder), Transfer())
    blob = (Path(model.path) / "model.safetensors").resolve()
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(DataLoss, match=r"model 'tiny-folder': model\.safetensors is damaged.*pull .*Tiny-Folder again"):
        store.verify(model.name)
    with pytest.raises(DataLoss, match="is missing"):
        store.find(model.name)  # damaged weights are not loaded
    pull(store, str(folder), Transfer())
    assert store.verify(model.name).digest == model.digest
    assert not list(store.blobs.glob("*.damaged"))


def test_a_missing_or_shortened_file_is_noticed_when_the_model_is_looked_up(store, make_gguf) -> None:
    model = pull(store, str(make_gguf()), Transfer())
    (blob,) = store.blobs.iterdir()
    blob.chmod(0o644)
    blob.write_bytes(b"short")
    with pytest.raises(DataLoss, match="has 5 of"):
        store.find(model.name)
    blob.unlink()
    with pytest.raises(DataLoss, match="is missing"):
        store.find(model.name)
    with pytest.raises(DataLoss, match="cannot be read"):
        store.verify(model.name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda _text: "",
        lambda text: text.replace('"version": 1', '"version": 7'),
        lambda text: text.replace('"name": "one"', '"name": "../one"'),
        lambda text: text.replace('"sha256', '"').replace('"digest": "', '"digest": "../../etc/'),
        lambda text: text.replace("Tiny-Model", "other/Tiny-Model"),
        lambda text: json.dumps({**json.loads(text), "files": []}),
    ],
)
def test_a_broken_manifest_is_named_and_the_others_go_on(store, make_gguf, tmp_path: Path, damage) -> None:
    pull(store, str(make_gguf(seed=1)), Transfer(), name="one")
    two = pull(store, str(make_gguf(seed=2, folder=tmp_path / "b")), Transfer(), name="two")
    manifest = store.manifests / "one.json"
    manifest.write_text(damage(manifest.read_text()))
    assert store.list() == (two,)
    assert list(store.broken()) == ["one"]
    assert "one.json" in store.broken()["one"]
    with pytest.raises(DataLoss, match=r"one\.json"):
        store.find("one")
    store.open()
    assert len(list(store.blobs.iterdir())) == 2  # what a broken manifest names is not swept away
    store.remove("one")
    assert len(list(store.blobs.iterdir())) == 1
    assert store.verify("two") == two


def test_removing_what_is_not_there_or_with_tricks_is_refused(store) -> None:
    with pytest.raises(NotFound, match="no model 'absent'"):
        store.remove("absent")
    with pytest.raises(Invalid):
        store.remove("../../etc/passwd")


def test_opening_the_store_sweeps_away_what_a_crash_has_left(store, make_gguf) -> None:
    model = pull(store, str(make_gguf()), Transfer())
    whole = everything(store)
    (store.blobs / f"sha256-{'0' * 64}").write_bytes(b"blob without manifest")
    orphan = store.snapshots / "orphan" / "0123456789abcdef"
    orphan.mkdir(parents=True)
    (orphan / "x.gguf").symlink_to("../../../blobs/nowhere")
    (store.manifests / ".one.json.1234.tmp").write_bytes(b"half")
    fresh = store.partials / "origin-0123" / "fresh"
    fresh.mkdir(parents=True)
    (fresh / "half.gguf").write_bytes(b"half")
    (store.partials / "origin-0123.lock").touch()
    ModelStore(store.root).open()
    assert everything(store) == whole
    assert store.verify(model.name) == model


def test_an_abandoned_download_is_kept_for_a_week(store) -> None:
    with suppress(ConnectionError), store.partial("hf:org/repo", Transfer()) as scratch:
        (scratch.kept / "part").write_bytes(b"bytes")
        raise ConnectionError
    store.open()
    assert (scratch.kept / "part").exists()
    assert not scratch.fresh.exists()
    later = scratch.kept.stat().st_mtime + 8 * 86400
    ModelStore(store.root, now=lambda: later).open()
    assert list(store.partials.iterdir()) == []


def test_a_second_pull_of_the_same_origin_waits_and_can_be_cancelled_while_it_waits(store) -> None:
    waiting = Transfer()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            with store.partial("origin", waiting):
                errors.append(AssertionError("two at once"))
        except CallCancelled as error:
            errors.append(error)

    with store.partial("origin", Transfer()):
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.cancel()
        thread.join()
    assert [type(error) for error in errors] == [CallCancelled]


def test_pulls_in_many_threads_at_once_leave_a_whole_store(store, make_gguf, tmp_path: Path) -> None:
    paths = [make_gguf(f"m{number}.gguf", seed=number % 3, folder=tmp_path / "many") for number in range(8)]
    threads = [threading.Thread(target=pull, args=(store, str(path), Transfer())) for path in [*paths, *paths]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [model.name for model in store.list()] == [f"m{number}" for number in range(8)]
    assert len(list(store.blobs.iterdir())) == 3
    for model in store.list():
        store.verify(model.name)
    assert list(store.partials.iterdir()) == []


def test_two_files_of_one_content_are_both_in_the_folder_and_kept_once(store, make_folder) -> None:
    folder = make_folder()
    (folder / "added_tokens.json").write_bytes((folder / "tokenizer.json").read_bytes())
    model = pull(store, str(folder), Transfer())
    assert (Path(model.path) / "added_tokens.json").read_bytes() == b"{}"
    assert len(list(store.blobs.iterdir())) == len(list(Path(model.path).iterdir())) - 1
    assert store.verify(model.name) == model


def test_a_damaged_model_is_not_called_absent_when_it_is_pulled_by_name(store, make_gguf) -> None:
    path = make_gguf()
    model = pull(store, str(path), Transfer())
    next(store.blobs.iterdir()).unlink()
    with pytest.raises(DataLoss, match=r"is missing.*pull .*Tiny-Model\.Q4_1\.gguf again"):
        pull(store, model.name, Transfer())
    assert pull(store, str(path), Transfer()).digest == model.digest
    assert store.find(model.name).digest == model.digest
