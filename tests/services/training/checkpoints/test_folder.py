from __future__ import annotations

import os
import pickle
import random

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_states import JOB, KeptJob, flip, same, state_of

from microkernel.errors import Aborted, DataLoss, NotFound
from services.training.checkpoints.folder import CheckpointFolder, read
from services.training.checkpoints.keys import SigningKey, TrustedKeys
from services.training.checkpoints.manifest import file_name, manifest_name
from services.training.checkpoints.scan import clean, load
from services.training.checkpoints.writing import FolderWriter


@pytest.fixture
def job(tmp_path):
    job = KeptJob(tmp_path, keep=3)
    yield job
    job.close()


def test_a_state_comes_back_bit_for_bit(job):
    state = state_of(50, loss=0.5, tokens=12_345, seed=7, position=99, left_out=(4, 5), data_digest="d", extra={"a": 1})
    job.write(state)
    assert same(job.folder.newest()[1], state)


def test_a_state_comes_back_from_several_files(tmp_path):
    job = KeptJob(tmp_path, file_bytes=12_000)
    job.write(state_of(50))
    assert len(job.folder.newest()[0].manifest.files) == 3
    assert same(job.folder.newest()[1], state_of(50))


def test_numbers_that_are_no_numbers_come_back_too(job):
    state = state_of(1)
    state.tensors["weights"][:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    job.write(state)
    found = job.folder.newest()[1].tensors["weights"]
    assert torch.equal(found.view(torch.int32), state.tensors["weights"].view(torch.int32))


def test_tensors_that_were_read_can_be_trained_on(job):
    job.write(state_of(1))
    job.folder.newest()[1].tensors["weights"].add_(1.0)
    assert same(job.folder.newest()[1], state_of(1))


def test_an_empty_folder_has_none(job):
    with pytest.raises(NotFound):
        job.folder.newest()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two checkpoints, of which the tests damage the second."""
    job = KeptJob(tmp_path_factory.mktemp("two"))
    job.write(state_of(1), state_of(2))
    return job


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(bit=st.integers(0, 1 << 40), name=st.sampled_from([file_name(2, 0), manifest_name(2)]))
def test_a_flipped_bit_in_any_file_leads_to_the_checkpoint_before(two, bit, name):
    flip(two.path / name, bit)
    try:
        checkpoint, state, notes = two.folder.newest()
    finally:
        flip(two.path / name, bit)
    assert (checkpoint.number, same(state, state_of(1))) == (1, True)
    assert any(name in note for note in notes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(end=st.integers(0, 1 << 40), name=st.sampled_from([file_name(2, 0), manifest_name(2)]))
def test_a_file_that_is_cut_off_leads_to_the_checkpoint_before(two, end, name):
    content = (two.path / name).read_bytes()
    (two.path / name).write_bytes(content[: end % len(content)])
    try:
        checkpoint, _, notes = two.folder.newest()
    finally:
        (two.path / name).write_bytes(content)
    assert checkpoint.number == 1
    assert any(name in note for note in notes)


def test_a_damaged_piece_is_named_by_its_bytes(tmp_path):
    job = KeptJob(tmp_path, sizes={"weights": 3 << 20})
    job.write(state_of(1, sizes={"weights": 3 << 20}))
    flip(job.path / file_name(1, 0), 8 * (5 << 20))
    with pytest.raises(DataLoss, match=f"{file_name(1, 0)} is damaged between the bytes 4194304 and 8388608"):
        job.folder.newest()


@pytest.mark.parametrize("how", ["missing", "longer", "link", "folder", "fifo"])
def test_a_file_that_is_another_thing_leads_to_the_checkpoint_before(job, how):
    job.write(state_of(1), state_of(2))
    path = job.path / file_name(2, 0)
    content = path.read_bytes()
    path.unlink()
    match how:
        case "longer":
            path.write_bytes(content + b"\0")
        case "link":
            (job.path / "elsewhere").write_bytes(content)
            path.symlink_to(job.path / "elsewhere")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    checkpoint, _, notes = job.folder.newest()
    assert checkpoint.number == 1
    assert any(path.name in note for note in notes)


class Trap:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_under_the_name_of_a_file_is_refused_and_not_opened(job):
    job.write(state_of(1))
    path = job.path / file_name(1, 0)
    content = pickle.dumps(Trap())
    path.write_bytes(content + bytes(path.stat().st_size - len(content)))
    with pytest.raises(DataLoss, match="it is a pickle, which is never opened"):
        job.folder.newest()


def test_a_file_of_torch_save_is_refused(job):
    job.write(state_of(1))
    checkpoint = load(job.path, 1, job.trusted)
    path = job.path / file_name(1, 0)
    torch.save({"weights": torch.zeros(9_500)}, path)
    path.write_bytes(
        path.read_bytes().ljust(checkpoint.manifest.files[0].size, b"\0")[: checkpoint.manifest.files[0].size]
    )
    with pytest.raises(DataLoss, match="it is a pickle"):
        read(checkpoint)


def test_a_folder_without_one_that_is_whole_says_what_is_wrong_with_each(job):
    job.write(state_of(1), state_of(2))
    flip(job.path / manifest_name(1), 100)
    flip(job.path / file_name(2, 0), 99_999)
    with pytest.raises(DataLoss) as caught:
        job.folder.newest()
    assert manifest_name(1) in caught.value.message
    assert file_name(2, 0) in caught.value.message


def test_one_that_a_key_has_signed_which_is_not_trusted_is_passed_over(job):
    job.write(state_of(1))
    other = TrustedKeys([SigningKey(Ed25519PrivateKey.generate()).public])
    with pytest.raises(DataLoss, match="not trusted here"):
        CheckpointFolder(job.path, JOB, other).newest()


def test_a_checkpoint_under_another_number_is_passed_over(job):
    job.write(state_of(1), state_of(2))
    (job.path / manifest_name(1)).rename(job.path / manifest_name(9))
    checkpoint, _, notes = job.folder.newest()
    assert checkpoint.number == 2
    assert any(manifest_name(9) in note for note in notes)


def test_one_of_another_job_is_passed_over(job):
    job.write(state_of(1))
    found = CheckpointFolder(job.path, "other", job.trusted).scan()
    assert found.complete == ()
    assert "is of the job 'job'" in found.notes[0]


def test_verifying_reads_every_byte(job):
    job.write(state_of(1), state_of(2), state_of(3))
    flip(job.path / file_name(2, 0), 50_000)
    assert [each.number for each in job.folder.scan().complete] == [3, 2, 1]
    assert [each.number for each in job.folder.verify().complete] == [3, 1]


def test_each_checkpoint_names_the_one_before(job):
    job.write(state_of(1), state_of(2))
    second, first = job.folder.scan().complete
    assert (second.manifest.parent.number, second.manifest.parent.digest) == (1, first.digest)


def test_another_checkpoint_in_the_place_of_a_parent_is_told(tmp_path):
    one, other = KeptJob(tmp_path), KeptJob(tmp_path / "other")
    one.write(state_of(1), state_of(2))
    other.write(state_of(5))
    for name in (manifest_name(1), file_name(1, 0)):
        (one.path / name).write_bytes((other.path / name).read_bytes())
    trusted = TrustedKeys([one.key.public, other.key.public])
    notes = CheckpointFolder(one.path, JOB, trusted).scan().notes
    assert notes == (f"{manifest_name(2)} follows another {manifest_name(1)} than is there",)


def test_what_killed_writers_left_is_cleared_away(job):
    job.write(state_of(1))
    job.close()
    for name in (f"{file_name(2, 0)}.partial", file_name(2, 0), f"{manifest_name(2)}.partial"):
        (job.path / name).write_bytes(b"half")
    clean(job.path)
    assert job.names() == [file_name(1, 0), manifest_name(1)]


def test_a_removal_that_was_begun_is_finished(job):
    job.write(state_of(1), state_of(2))
    job.close()
    (job.path / manifest_name(1)).rename(job.path / f"{manifest_name(1)}.removed")
    clean(job.path)
    assert job.names() == [file_name(2, 0), manifest_name(2)]


def test_what_is_not_known_stays_where_it_is(job):
    job.write(*(state_of(step) for step in range(1, 9)))
    job.close()
    strange = ["notes.txt", "checkpoint-1.json", "checkpoint-00000001.json.bak", file_name(2, 0), "x.partial"]
    for name in strange:
        (job.path / name).write_text("mine")
    notes = clean(job.path)
    job.write(state_of(9))
    assert set(strange) <= set(job.names())
    assert notes == (f"{file_name(2, 0)} has no manifest, and is left as it is",)


def test_a_damaged_checkpoint_is_not_removed_and_its_number_not_given_again(job):
    job.write(state_of(1))
    job.close()
    flip(job.path / manifest_name(1), 100)
    assert job.write(state_of(2)) == 2
    assert manifest_name(1) in job.names()


def test_two_writers_do_not_share_a_folder(job):
    job.write(state_of(1))
    with pytest.raises(Aborted, match="another process writes"):
        FolderWriter(job.order, wait=0.0)


def test_every_byte_of_a_manifest_may_be_noise(two):
    path = two.path / manifest_name(2)
    content = path.read_bytes()
    noise = random.Random(0)
    try:
        for _ in range(50):
            path.write_bytes(noise.randbytes(noise.randrange(4000)))
            assert two.folder.newest()[0].number == 1
    finally:
        path.write_bytes(content)
