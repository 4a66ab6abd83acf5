from __future__ import annotations

import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import DataLoss, PreconditionFailed
from services.training.checkpoints.facts import Facts, Parameter
from services.training.checkpoints.image import image_of
from services.training.checkpoints.keys import SigningKey, TrustedKeys
from services.training.checkpoints.manifest import (
    PIECE,
    Manifest,
    Parent,
    StoredFile,
    digest_of,
    digest_of_pieces,
    file_name,
    opened,
    sealed,
)

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
TRUSTED = TrustedKeys([KEY.public])


def file_of(number: int, tensors: dict[str, int], index: int = 0) -> StoredFile:
    size = image_of(tensors).size
    pieces = tuple(digest_of(bytes([each])) for each in range(-(-size // PIECE)))
    return StoredFile(file_name(number, index), size, digest_of_pieces(pieces), pieces, tensors)


GOOD = Manifest(
    format=1,
    job="job",
    number=7,
    made=1.7e9,
    parent=Parent(6, digest_of(b"six")),
    facts=Facts(step=50, metrics={"loss": 0.1}, layout={"weights": (Parameter("a", (10, 10), 0),)}, left_out=(3, 9)),
    files=(file_of(7, {"weights": 100}),),
)
FILE = GOOD.files[0]
SEALED = sealed(GOOD, KEY)


def changed(**fields) -> Manifest:
    return msgspec.structs.replace(GOOD, **fields)


def file_changed(**fields) -> Manifest:
    return changed(files=(msgspec.structs.replace(FILE, **fields),))


def test_a_manifest_comes_back_as_it_was():
    assert opened(SEALED, "m", TRUSTED, 7) == GOOD


def test_a_flipped_bit_anywhere_is_found():
    for bit in range(8 * len(SEALED)):
        content = bytearray(SEALED)
        content[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(DataLoss):
            opened(bytes(content), "m", TRUSTED)


def test_a_manifest_that_is_cut_off_anywhere_is_found():
    for end in range(len(SEALED)):
        with pytest.raises(DataLoss):
            opened(SEALED[:end], "m", TRUSTED)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_manifest_are_named(content):
    with pytest.raises(DataLoss, match=r"^m is damaged"):
        opened(content, "m", TRUSTED)


def test_nesting_without_end_is_refused():
    content = b'{"manifest":' + b"[" * 200_000 + b"]" * 200_000 + b',"key":"","signature":""}'
    with pytest.raises(DataLoss):
        opened(content, "m", TRUSTED)


@pytest.mark.parametrize(
    "manifest",
    [
        file_changed(name="../checkpoint-00000007-0.safetensors"),
        file_changed(name="/etc/passwd"),
        file_changed(name=file_name(6, 0)),
        file_changed(size=1 << 62),
        file_changed(size=FILE.size - 1),
        file_changed(tensors={"weights": 1 << 60}),
        file_changed(tensors={"weights": -1}),
        file_changed(tensors={"../weights": 100}),
        file_changed(tensors={}),
        file_changed(pieces=()),
        file_changed(pieces=FILE.pieces * 2),
        file_changed(pieces=("x" * 64,)),
        file_changed(pieces=(digest_of(b"other"),)),
        file_changed(digest=digest_of(b"other")),
        changed(files=()),
        changed(files=(FILE, file_of(7, {"weights": 100}, 1))),
        changed(facts=Facts(step=1, layout={"weights": (Parameter("a", (101,), 0),)})),
        changed(facts=Facts(step=1, layout={"weights": (Parameter("a", (10**9, 10**9), 0),)})),
        changed(facts=Facts(step=-1)),
        changed(facts=Facts(step=1, layout={"other": ()})),
        changed(number=8),
        changed(number=0),
        changed(parent=Parent(6, "..")),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_though_it_is_signed(manifest):
    with pytest.raises(DataLoss):
        opened(sealed(manifest, KEY), "m", TRUSTED, 7)


@pytest.mark.parametrize("change", [{"unknown": 1}, {"facts": {"step": 1, "unknown": 1}}, {"made": "now"}])
def test_a_field_that_is_not_known_is_refused_though_it_is_signed(change):
    value = {**json.loads(SEALED)["manifest"], **change}
    content = json.dumps(value, separators=(",", ":")).encode()
    envelope = {"manifest": value, "key": KEY.fingerprint, "signature": KEY.sign(content).hex()}
    with pytest.raises(DataLoss):
        opened(json.dumps(envelope, separators=(",", ":")).encode() + b"\n", "m", TRUSTED)


def test_a_later_format_is_not_called_damage():
    with pytest.raises(PreconditionFailed, match="the format 2"):
        opened(sealed(changed(format=2), KEY), "m", TRUSTED)


def test_a_manifest_that_another_key_has_signed_is_refused():
    other = SigningKey(Ed25519PrivateKey.generate())
    with pytest.raises(DataLoss, match="not trusted here"):
        opened(sealed(GOOD, other), "m", TRUSTED)


def test_another_keys_signature_under_a_trusted_name_is_refused():
    other = SigningKey(Ed25519PrivateKey.generate())
    forged = sealed(GOOD, other).replace(other.fingerprint.encode(), KEY.fingerprint.encode())
    with pytest.raises(DataLoss, match="not what was signed"):
        opened(forged, "m", TRUSTED)


def test_a_change_of_spaces_alone_is_found():
    with pytest.raises(DataLoss, match="not written as a manifest is"):
        opened(SEALED.replace(b',"key"', b', "key"'), "m", TRUSTED)
