"""Requests for certificates, good ones and whatever else comes in their place."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.cluster.certificates.request import LARGEST_REQUEST, NodeKey, public_key_of

GOOD = NodeKey().request("n1")


def made_with(key, hash_=None):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hash_).public_bytes(Encoding.PEM)


def test_the_key_of_a_request_is_that_of_the_node():
    key = NodeKey()
    assert public_key_of(key.request("n1")) == key.private.public_key()


def test_no_two_keys_are_the_same():
    assert NodeKey().private.public_key() != NodeKey().private.public_key()


def test_the_private_key_is_in_no_request():
    key = NodeKey()
    secret = key.private.private_numbers().private_value.to_bytes(32, "big")
    assert secret not in x509.load_pem_x509_csr(key.request("n1")).public_bytes(Encoding.DER)


def test_an_ed25519_key_is_taken():
    key = ed25519.Ed25519PrivateKey.generate()
    assert public_key_of(made_with(key)) == key.public_key()


@pytest.mark.parametrize(
    "make",
    [
        lambda: made_with(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        lambda: made_with(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        lambda: made_with(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()),
        lambda: made_with(ed448.Ed448PrivateKey.generate()),
    ],
    ids=["RSA", "P-384", "secp256k1", "Ed448"],
)
def test_keys_of_other_kinds_are_refused(make):
    with pytest.raises(Invalid, match="P-256 or Ed25519"):
        public_key_of(make())


def test_a_request_for_the_key_of_somebody_else_is_refused():
    """The public key of another, the signature of one's own."""
    ours = x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER)
    theirs = x509.load_pem_x509_csr(NodeKey().request("n1"))
    swapped = ours.replace(_point(x509.load_pem_x509_csr(GOOD)), _point(theirs))
    assert swapped != ours
    with pytest.raises(Invalid, match="not signed with the key"):
        public_key_of(x509.load_der_x509_csr(swapped).public_bytes(Encoding.PEM))


def test_a_request_that_is_too_large_is_refused_unread():
    with pytest.raises(Invalid, match=f"at most {LARGEST_REQUEST:,} bytes"):
        public_key_of(GOOD + b"\n" * LARGEST_REQUEST)


@pytest.mark.parametrize(
    "text", [b"", b"\0", b"-----BEGIN CERTIFICATE REQUEST-----", GOOD[:-40], GOOD[:100] + GOOD[104:]]
)
def test_what_is_no_request_is_refused(text):
    with pytest.raises(Invalid, match="no request"):
        public_key_of(text)


@settings(deadline=None)
@given(st.binary(max_size=LARGEST_REQUEST + 1))
def test_any_bytes_are_a_request_or_invalid(raw):
    with pytest.raises(Invalid):
        public_key_of(raw)


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=8), st.integers(0, 8))
def test_a_request_with_any_change_is_as_good_as_before_or_invalid(place, put, cut):
    try:
        key = public_key_of(GOOD[:place] + put + GOOD[place + cut :])
    except Invalid:
        return
    assert key == public_key_of(GOOD)


_DER = x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_DER) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_request_with_any_change_below_the_text_is_as_good_as_before_or_invalid(changes):
    raw = bytearray(_DER)
    for place, value in changes:
        raw[place] = value
    try:
        key = public_key_of(_pem(bytes(raw)))
    except Invalid:
        return
    assert key == public_key_of(GOOD)


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


def _point(request) -> bytes:
    numbers = request.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
