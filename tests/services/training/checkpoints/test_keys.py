from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from microkernel.errors import DataLoss, Invalid, PreconditionFailed
from services.training.checkpoints.keys import SigningKey, TrustedKeys


def test_a_key_is_made_once_however_many_want_it_first(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: SigningKey.at(tmp_path / "key").fingerprint, range(16)))
    assert len(set(keys)) == 1


def test_a_key_is_for_its_owner_only(tmp_path):
    SigningKey.at(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_nothing_but_the_key_is_left_of_its_making(tmp_path):
    SigningKey.at(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_that_others_may_read_is_refused(tmp_path):
    SigningKey.at(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(PreconditionFailed, match="may be read by others"):
        SigningKey.at(tmp_path / "key")


def test_a_file_that_holds_no_key_is_named(tmp_path):
    (tmp_path / "key").write_text("nothing")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(DataLoss, match="holds no private key"):
        SigningKey.at(tmp_path / "key")


def test_a_signature_of_another_key_is_not_believed(tmp_path):
    mine, other = SigningKey(Ed25519PrivateKey.generate()), SigningKey(Ed25519PrivateKey.generate())
    trusted = TrustedKeys([mine.public])
    trusted.verify("x", mine.fingerprint, mine.sign(b"content"), b"content")
    with pytest.raises(DataLoss, match="not trusted here"):
        trusted.verify("x", other.fingerprint, other.sign(b"content"), b"content")
    with pytest.raises(DataLoss, match="not what was signed"):
        trusted.verify("x", mine.fingerprint, other.sign(b"content"), b"content")


def test_a_public_key_has_32_bytes():
    with pytest.raises(Invalid):
        TrustedKeys([b"short"])
